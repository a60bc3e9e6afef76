"""Weights laid out for oneDNN give the model's own results, and leave it as it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import tiny
from prefiere.sample.packed_weights import packed_weights

IDS = torch.arange(6, 30)[None]


@pytest.fixture
def model() -> nn.Module:
    return tiny.model("llama", hidden=128, tie_word_embeddings=True)


@torch.no_grad()
def test_results_are_the_model_s_own_and_nothing_stays_behind(model: nn.Module) -> None:
    before, state = model(IDS).logits, list(model.state_dict())
    with packed_weights(model):
        assert any("forward" in m.__dict__ for m in model.modules()), "nothing was packed"
        inside = model(IDS).logits
        assert list(model.state_dict()) == state
    assert not any("forward" in m.__dict__ for m in model.modules())
    torch.testing.assert_close(inside, before, rtol=1e-5, atol=1e-5 * float(before.abs().max()))
    assert torch.equal(model(IDS).logits, before)


@torch.no_grad()
def test_autocast_decides_about_the_dtype(model: nn.Module) -> None:
    exact = model.double()(IDS).logits
    model.float()
    with torch.autocast("cpu", torch.bfloat16):
        plain = model(IDS).logits
        with packed_weights(model):
            inside = model(IDS).logits
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


def test_an_error_and_others_hooks(model: nn.Module) -> None:
    hooked = model.model.layers[0].mlp.up_proj
    hook = hooked.forward = lambda x: x.new_zeros(*x.shape[:-1], hooked.out_features)

    def fails() -> None:
        with packed_weights(model):
            assert hooked.forward is hook
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fails()
    assert [m for m in model.modules() if "forward" in m.__dict__] == [hooked]


def test_not_where_memory_is_scarce(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefiere.sample.packed_weights.SHARE", 0.0)
    with packed_weights(model):
        assert not any("forward" in m.__dict__ for m in model.modules())
