"""torch.compile over a trunk whose attention, head and last layer are prefiere's."""

import pytest
import torch

import tiny
from prefiere.kernels import attention
from prefiere.kernels.linear import route, use_onednn
from prefiere.models.trunk import Trunk
from prefiere.tokens.pack import pack
from random_groups import store


@pytest.mark.long
@pytest.mark.parametrize("onednn", [False, True])
def test_a_compiled_trunk_gives_the_same_gradients(onednn: bool) -> None:
    attention.register()
    plain, compiled = tiny.model("llama"), tiny.model("llama")
    for model in (plain, compiled):
        model.set_attn_implementation(attention.NAME)
    route(compiled)
    use_onednn(compiled, onednn and torch.backends.mkldnn.is_available())
    one, two = Trunk(plain).train(), Trunk(compiled).train()
    two.compile(dynamic=True)
    for seed in (0, 1):  # another layout must not need another answer
        batch = pack(store(5, 2, seed=seed, partly=True))
        for trunk in (one, two):
            trunk.zero_grad()
            trunk(batch).logp_N.sum().backward()
        for (name, p), q in zip(one.named_parameters(), two.parameters(), strict=True):
            assert (p.grad - q.grad).norm() <= 1e-5 * max(p.grad.norm(), 1e-2), name
