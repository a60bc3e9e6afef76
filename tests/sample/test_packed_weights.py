"""Weights laid out for oneDNN give the model's own results, and leave it as it was."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

import tiny
from prefiere.kernels.linear import products_of, route, use_onednn
from prefiere.kernels.matmul import LaidOut
from prefiere.sample.local import generate
from prefiere.sample.packed_weights import packed_weights
from prefiere.sample.sampling import Sampling, Vocabulary

IDS = torch.arange(6, 30)[None]
LARGE = 11
"""Linear layers that are laid out: five in each of two blocks (those of keys and values are small), and the head."""


@pytest.fixture
def model() -> nn.Module:
    return tiny.model("llama", hidden=128, tie_word_embeddings=True)


@pytest.fixture
def used(monkeypatch) -> list[torch.dtype]:
    """The dtype of each product with laid-out weights."""
    dtypes: list[torch.dtype] = []
    real = LaidOut.__call__
    monkeypatch.setattr(LaidOut, "__call__", lambda self, x: (dtypes.append(self.dtype), real(self, x))[1])
    return dtypes


def untouched(model: nn.Module) -> bool:
    """Whether no layer has a forward of its own."""
    return not any("forward" in vars(m) for m in model.modules())


@torch.no_grad()
def test_results_are_the_model_s_own_and_nothing_stays_behind(model: nn.Module, used) -> None:
    before, state = model(IDS).logits, list(model.state_dict())
    with packed_weights(model):
        inside = model(IDS).logits
        assert list(model.state_dict()) == state
    assert len(used) == LARGE
    assert untouched(model)
    torch.testing.assert_close(inside, before, rtol=1e-5, atol=1e-5 * float(before.abs().max()))
    assert torch.equal(model(IDS).logits, before)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN")
@torch.no_grad()
def test_layers_whose_products_go_through_onednn_are_laid_out_too(model: nn.Module, used) -> None:
    plain = model(IDS).logits
    route(model)
    use_onednn(model, True)
    before = model(IDS).logits
    with packed_weights(model):
        inside = model(IDS).logits
    assert len(used) == LARGE
    torch.testing.assert_close(inside, plain, rtol=1e-5, atol=1e-5 * float(before.abs().max()))
    products = products_of(model)
    assert products.onednn
    assert not products.laid_out
    assert torch.equal(model(IDS).logits, before), "after a rollout the model runs as before it"


@torch.no_grad()
def test_the_base_under_an_adapter_is_laid_out(model: nn.Module, used) -> None:
    expected = []
    for laid in (False, True):
        torch.manual_seed(0)
        base = tiny.model("llama", hidden=128, tie_word_embeddings=True)
        adapted = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
        if laid:
            route(adapted)
            with packed_weights(adapted):
                expected.append(adapted(IDS).logits)
        else:
            expected.append(adapted(IDS).logits)
    assert len(used) == LARGE, "ten bases and the head, no adapter"
    torch.testing.assert_close(*expected, rtol=1e-4, atol=1e-5 * float(expected[0].abs().max()))


@torch.no_grad()
def test_autocast_decides_about_the_dtype(model: nn.Module, used) -> None:
    exact = model.double()(IDS).logits
    model.float()
    with torch.autocast("cpu", torch.bfloat16):
        plain = model(IDS).logits
        with packed_weights(model):
            inside = model(IDS).logits
    assert used == [torch.bfloat16] * (LARGE if torch.ops.mkldnn._is_mkldnn_bf16_supported() else 0)
    assert inside.dtype == plain.dtype == torch.bfloat16
    noise = (plain - exact).abs().mean()
    assert (inside - exact).abs().mean() < 1.2 * noise, "within the noise of bfloat16 against float64"


def test_a_weight_that_changes_later_is_seen(model: nn.Module) -> None:
    with torch.no_grad(), packed_weights(model):
        before = model(IDS).logits
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(2)
        with packed_weights(model):
            assert not torch.equal(model(IDS).logits, before)


def test_a_gradient_is_never_lost(model: nn.Module) -> None:
    with packed_weights(model):
        model(IDS).logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("routed", [False, True])
def test_an_error_leaves_everything_as_it_was(model: nn.Module, routed: bool, monkeypatch) -> None:
    """Sampling raises in its third step; a routed model is routed afterwards, another one is not."""
    if routed:
        route(model)
        use_onednn(model, torch.backends.mkldnn.is_available())
    before, steps = model(IDS).logits, []
    real = type(model).forward

    def fails(self, *args, **kwargs):
        steps.append(len(products_of(model).laid_out))
        if len(steps) == 3:
            raise RuntimeError("inside")
        return real(self, *args, **kwargs)

    monkeypatch.setattr(type(model), "forward", fails)
    with pytest.raises(RuntimeError, match="inside"):
        generate(model, [np.arange(6, 12, dtype=np.int32)], Sampling(max_new_tokens=8), Vocabulary((1,)))
    monkeypatch.undo()
    assert steps == [LARGE] * 3
    assert not products_of(model).laid_out
    assert untouched(model) is not routed
    assert torch.equal(model(IDS).logits, before)


@torch.no_grad()
def test_others_hooks_and_forwards_stay(model: nn.Module) -> None:
    replaced, hooked = model.model.layers[0].mlp.up_proj, model.model.layers[0].mlp.gate_proj
    theirs = replaced.forward = lambda x: x.new_zeros(*x.shape[:-1], replaced.out_features)
    hooked.register_forward_hook(lambda m, args, out: out)
    with packed_weights(model):
        laid = products_of(model.lm_head).laid_out
        assert replaced.forward is theirs
        assert replaced not in laid
        assert hooked not in laid
        assert len(laid) == LARGE - 2
    assert [m for m in model.modules() if "forward" in vars(m)] == [replaced]


def test_not_where_memory_is_scarce(model: nn.Module, used, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefiere.sample.packed_weights.SHARE_FOR_COPIES", 0.0)
    with torch.no_grad(), packed_weights(model):
        model(IDS)
    assert not used
    assert untouched(model)
