"""One router: what it routes, what it leaves to others, and one state for each model."""

from __future__ import annotations

import copy

import torch
from torch import nn

import tiny
from prefiere.kernels.attention import NAME, register
from prefiere.kernels.linear import as_made, products_of, route, unroute, use_onednn
from prefiere.models.trunk import Trunk
from prefiere.tokens.pack import pack
from random_groups import store

register()


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))


def test_values_types_and_what_is_saved_stay() -> None:
    model, x = net(), torch.randn(3, 4)
    expected, state, parts = model(x), list(model.state_dict()), list(map(type, model.modules()))
    assert route(model) == [model[0], model[2]]
    assert torch.equal(model(x), expected)
    assert list(model.state_dict()) == state
    assert list(map(type, model.modules())) == parts
    assert route(model) == [], "once is enough"
    unroute([model[0], model[2]])
    assert not any("forward" in vars(m) for m in model.modules())
    assert torch.equal(model(x), expected)


def test_one_state_for_each_model() -> None:
    one, other = net(), net()
    route(one)
    route(other)
    use_onednn(one, True)
    assert products_of(one[0]) is products_of(one[2])
    assert products_of(one).onednn
    assert not products_of(other).onednn


def test_what_is_added_later_joins_the_state() -> None:
    model = net()
    route(model)
    use_onednn(model, True)
    model.append(nn.Linear(4, 2))
    assert route(model) == [model[3]]
    assert products_of(model[3]) is products_of(model[0])


def test_a_copy_uses_its_own_weights_and_has_a_state_of_its_own() -> None:
    model = net()
    route(model)
    use_onednn(model, True)
    other = copy.deepcopy(model)
    assert products_of(other).onednn
    use_onednn(other, False)
    assert products_of(model).onednn
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
        assert other(torch.ones(1, 4)).abs().max() == 0
        assert model(torch.ones(1, 4)).abs().max() > 0


def test_other_libraries_come_first() -> None:
    model = net()
    theirs = model[0].forward = lambda x: 2 * x
    assert route(model) == [model[2]]
    assert model[0].forward is theirs
    assert not as_made(model[0])
    assert as_made(model[2])
    called = []
    handle = model[2].register_forward_hook(lambda m, args, out: called.append(1) or out * 0)
    assert not as_made(model[2])
    assert model(torch.ones(1, 4)).abs().max() == 0
    assert called
    handle.remove()
    assert as_made(model[2])


def test_a_head_that_was_hooked_is_called() -> None:
    """Log-probs are otherwise computed from the head's weight, past the module."""
    model = tiny.model("llama")
    model.set_attn_implementation(NAME)
    trunk, batch = Trunk(model), pack(store(3, 2))
    before = trunk(batch).logp_N
    model.lm_head.register_forward_hook(lambda m, args, out: out * 0)
    flat = trunk(batch).logp_N
    torch.testing.assert_close(flat, torch.full_like(before, -float(torch.tensor(model.config.vocab_size).log())))
