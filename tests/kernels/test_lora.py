"""LoRA as one function against PEFT's own forward of the same layer, in process: output and every gradient."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

import tiny
from prefiere.kernels import lora
from prefiere.kernels.attention import NAME, register
from prefiere.kernels.linear import route, use_onednn
from prefiere.kernels.packed import PackedLinear
from prefiere.models.trunk import Trunk
from prefiere.tokens.pack import pack
from random_groups import store

register()


class Net(nn.Module):
    """Two layers, one with a bias, and something between them."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(12, 20), nn.Linear(20, 12, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.down(torch.nn.functional.silu(self.up(x)))
        return y


def adapted(**options):
    """The net under an adapter that does something, and an input."""
    torch.manual_seed(0)
    model = get_peft_model(Net(), LoraConfig(r=3, lora_alpha=5, target_modules=["up", "down"], **options))
    for name, p in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(p, std=0.5)
    return model, torch.randn(2, 7, 12, requires_grad=True)


def grads(model, x, autocast=None):
    """Output, and the gradients of input and adapter."""
    with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
        out = model(x)
    weights = torch.linspace(-1, 1, out.numel()).view(out.shape)
    learnt = [p for p in model.parameters() if p.requires_grad]
    return [out, *torch.autograd.grad((out.float() * weights).sum(), [x, *learnt])]


@pytest.fixture
def used(monkeypatch) -> list[int]:
    """How often the one function ran."""
    calls: list[int] = []
    real = lora._Adapted.apply
    monkeypatch.setattr(lora._Adapted, "apply", lambda *a: (calls.append(1), real(*a))[1])
    return calls


def test_fp32_is_what_peft_computes(used) -> None:
    model, x = adapted()
    expected = grads(model, x)
    route(model)
    for mine, theirs in zip(grads(model, x), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
    assert len(used) == 2


def test_bf16_has_no_more_noise_than_peft(used) -> None:
    """Both against float64. Dtypes are PEFT's: bf16 out, fp32 gradients of input and adapter."""
    model, x = adapted()
    exact = copy.deepcopy(model).double()
    expected = grads(exact, x.detach().double().requires_grad_())
    theirs = grads(model, x, torch.bfloat16)
    route(model)
    mine = grads(model, x, torch.bfloat16)
    assert len(used) == 2
    for a, b, e in zip(mine, theirs, expected, strict=True):
        assert a.dtype == b.dtype
        assert (a.double() - e).norm() <= 1.5 * (b.double() - e).norm() + 1e-3 * e.norm()


@pytest.mark.parametrize(
    "options",
    [{"use_dora": True}, {"lora_bias": True}, {"lora_dropout": 0.5}],
    ids=str,
)
def test_what_is_not_plain_goes_pefts_way(options, used) -> None:
    model, x = adapted(**options)
    torch.manual_seed(1)
    expected = grads(model, x)
    route(model)
    torch.manual_seed(1)
    for mine, theirs in zip(grads(model, x), expected, strict=True):
        assert torch.equal(mine, theirs)
    assert not used


@pytest.mark.parametrize("bias", ["lora_only", "all"])
def test_a_bias_that_is_learnt_gets_its_gradient(bias, used) -> None:
    model, x = adapted(bias=bias)
    assert model.base_model.model.up.base_layer.bias.requires_grad
    expected = grads(model, x)
    route(model)
    for mine, theirs in zip(grads(model, x), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
    assert len(used) == 1, "the layer without a bias"


def test_dropout_that_is_switched_off_is_plain(used) -> None:
    model, x = adapted(lora_dropout=0.5)
    route(model)
    model.eval()
    model(x)
    assert len(used) == 2


def test_a_layer_that_does_something_else_is_asked(used) -> None:
    """What another library has put into a layer's forward must not be passed by; nor must its hooks."""
    model, x = adapted()
    expected = model(x)
    route(model)
    for layer in (model.base_model.model.up.base_layer, model.base_model.model.down.base_layer):
        layer.forward = lambda rows, layer=layer: 2 * nn.functional.linear(rows, layer.weight, layer.bias)
    doubled = model(x)
    assert not used
    assert (doubled - expected).abs().max() > 0.1
    for layer in (model.base_model.model.up.base_layer, model.base_model.model.down.base_layer):
        del layer.forward
    handle = model.base_model.model.up.base_layer.register_forward_hook(lambda m, i, out: out * 0)
    model(x)
    assert len(used) == 1
    handle.remove()
    route(model)
    use_onednn(model, True)
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
    assert len(used) == 3


def test_disabled_merged_and_other_adapters(used) -> None:
    model, x = adapted()
    model.add_adapter("second", LoraConfig(r=2, target_modules=["up"]))
    nn.init.normal_(model.base_model.model.up.lora_B["second"].weight)
    expected = {}
    for fused in (False, True):
        if fused:
            route(model)
        with model.disable_adapter():
            base = model(x)
        model.set_adapter("second")
        second = model(x)
        model.set_adapter("default")
        model.base_model.merge_adapter()
        merged = model(x)
        model.base_model.unmerge_adapter()
        if not fused:
            expected = {"base": base, "second": second, "merged": merged}
    torch.testing.assert_close(base, expected["base"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(second, expected["second"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(merged, expected["merged"], rtol=1e-5, atol=1e-5)
    assert len(used) == 1, "the second adapter's layer; what it does not adapt, what is disabled or merged is PEFT's"
    torch.testing.assert_close(model(x), merged, rtol=1e-4, atol=1e-4)


def test_a_frozen_input_gets_no_gradient() -> None:
    model, x = adapted()
    route(model)
    model(x.detach()).sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_trunk_under_lora_and_checkpointing(checkpointing, used) -> None:
    """The whole model's log-probs and gradients, PEFT's way and ours."""
    batch = pack(store(5, 2))
    found = []
    for fused in (False, True):
        torch.manual_seed(0)
        base = tiny.model("llama")
        base.set_attn_implementation(NAME)
        model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
        if fused:
            route(model)
        trunk = Trunk(model).train()
        if checkpointing:
            trunk.checkpoint_gradients()
            trunk.lm.enable_input_require_grads()
        logp = trunk(batch).logp_N
        logp.sum().backward()
        found.append([logp.detach(), *(p.grad for p in model.parameters() if p.requires_grad)])
    assert len(used) == (28 if checkpointing else 14)
    for mine, theirs in zip(*found, strict=True):
        assert (mine - theirs).norm() <= 1e-5 * theirs.norm()


def test_packed_weights(tmp_path, used) -> None:
    """LoRA on a GPTQ base: the same through PEFT's own forward."""
    import quantized
    from prefiere.models.load import load_model
    from prefiere.models.source import find_model

    folder, _ = quantized.folder(quantized.mistral(tmp_path / "base"), tmp_path / "packed")
    torch.manual_seed(0)
    model = get_peft_model(
        load_model(find_model(folder)), LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    )
    assert any(isinstance(m, PackedLinear) for m in model.modules())
    ids = torch.arange(6, 30)[None]

    def run():
        model.zero_grad()
        logits = model(input_ids=ids).logits
        logits.float().square().sum().backward()
        return [logits.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]

    expected = run()
    route(model)
    for mine, theirs in zip(run(), expected, strict=True):
        assert (mine - theirs).norm() <= 1e-4 * theirs.norm()
    assert len(used) == 4


@pytest.mark.parametrize("onednn", [False, True])
def test_an_output_may_be_changed_in_place(onednn) -> None:
    """As OLMo's clip_qkv and AdaLoRA do: the gradient is that of a clamp out of place."""
    model, x = adapted()
    layer = model.base_model.model.up
    layer(x).clamp(-0.5, 0.5).square().sum().backward()
    expected = {n: p.grad.clone() for n, p in layer.named_parameters() if p.grad is not None}
    layer.zero_grad()
    route(model)
    use_onednn(model, onednn)
    layer(x).clamp_(-0.5, 0.5).square().sum().backward()
    assert expected
    for n, p in layer.named_parameters():
        if n in expected:
            torch.testing.assert_close(p.grad, expected[n])
