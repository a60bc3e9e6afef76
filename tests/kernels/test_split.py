"""The tokens of a row shared by several processes, which are threads here, against one that has all of them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tiny
from prefiere.kernels import attention
from prefiere.kernels.split import Split
from prefiere.models.check.trial import share_rows
from prefiere.models.source import ModelError
from prefiere.models.trunk import CRITIC, POLICY, Trunk
from prefiere.tokens.pack import PackedBatch, pack
from random_groups import store
from sharing import by_all

attention.register()


def trunk_of(model: Any) -> Trunk:
    """A trunk of its own, with a head of each kind, on packed rows."""
    model = copy.deepcopy(model)
    model.set_attn_implementation(attention.NAME)
    trunk = Trunk(model)
    for sign, role in ((1.0, POLICY), (-1.0, CRITIC)):
        head = nn.Linear(model.config.get_text_config().hidden_size, 1)
        with torch.no_grad():
            head.weight.copy_(torch.linspace(-sign, sign, head.weight.numel())[None])
            head.bias.fill_(sign)
        trunk.heads[role] = head
    return trunk


def learnt(trunk: Trunk, batch: PackedBatch) -> tuple[dict[str, Tensor], dict[str, Tensor], list[int]]:
    """Everything that a trunk says of a batch, the gradients of a loss of all of it, and how many tokens each of its
    layers had."""
    had, layers = list[int](), trunk.decoder.get_submodule("layers" if hasattr(trunk.decoder, "layers") else "h")
    for layer in layers:
        layer.register_forward_pre_hook(lambda _, args: had.append(args[0].shape[1]))
    out = trunk(batch, entropy=True)
    said = {
        "logp": out.logp_N, "correct": out.correct_N, "entropy": out.entropy_N,
        "values": trunk.values(batch, CRITIC), "scores": trunk.scores(batch, POLICY),
    }  # fmt: skip
    weights = [torch.linspace(-1, 1, len(said[name])) for name in ("logp", "values", "scores")]
    torch.stack(
        [(said[n] * w).sum() for n, w in zip(("logp", "values", "scores"), weights, strict=True)]
    ).sum().backward()
    with torch.no_grad():
        said["states"] = trunk.states(batch, batch.predictor_N, batch.owner_N, None, batch.reads)
    gradients = {n: p.grad for n, p in trunk.named_parameters() if p.grad is not None}
    return {n: x.detach() for n, x in said.items()}, gradients, had


@pytest.mark.parametrize(
    ("family", "window", "size"),
    [
        ("llama", None, 2),
        ("llama", None, 4),
        ("mistral", 7, 2),
        ("gemma2", 7, 4),
        ("gpt2", None, 2),
        ("mixtral", None, 2),
    ],
)
def test_shared_tokens_change_nothing(family: Any, window: int | None, size: int) -> None:
    """Four heads, and two key heads, which four processes have repeated."""
    model = tiny.model(family, sliding_window=window)
    batch = pack(list(store(4, 2, partly=True)))
    one, whole, had = learnt(trunk_of(model), batch)

    def work(split: Split) -> Any:
        trunk = trunk_of(model)
        trunk.split = split
        return learnt(trunk, batch)

    parts = by_all(size, work)
    for said, gradients, _ in parts:
        assert gradients.keys() == whole.keys(), "every process has a part of every gradient"
        for name, value in one.items():
            torch.testing.assert_close(said[name], value, rtol=1e-5, atol=1e-5, msg=name)
    largest = max(float(g.norm()) for g in whole.values())
    for name, g in whole.items():
        apart = float((sum(gradients[name] for _, gradients, _ in parts) - g).norm())
        assert apart <= 1e-5 * max(float(g.norm()), 0.01 * largest), name
    total = len(batch.tokens_T)
    assert [sum(each) for each in zip(*(own for _, _, own in parts), strict=True)] == had
    assert all(own[0] <= total // size + 1 for _, _, own in parts)


def test_a_row_may_have_fewer_tokens_than_processes() -> None:
    model, batch = tiny.model("llama"), pack(list(store(1, 1, prompt=1, completion=1)))
    assert len(batch.tokens_T) == 2
    one, whole, _ = learnt(trunk_of(model), batch)

    def work(split: Split) -> Any:
        trunk = trunk_of(model)
        trunk.split = split
        return learnt(trunk, batch)

    parts = by_all(4, work)
    torch.testing.assert_close([said["logp"] for said, _, _ in parts], [one["logp"]] * 4, rtol=1e-5, atol=1e-5)
    for name, g in whole.items():
        torch.testing.assert_close(sum(gradients[name] for _, gradients, _ in parts), g, rtol=1e-4, atol=1e-6, msg=name)


def test_heads_that_do_not_divide_are_refused() -> None:
    three = Split(0, 3, lambda rows, give, take: rows, lambda value: value)
    with pytest.raises(ValueError, match=r"^3 processes cannot share 4 heads: [^\n]*sequence_parallel_size$"):
        three.to_heads(*(torch.zeros(6, 4, 2) for _ in range(3)), total=18)


def test_a_model_is_tried_before_its_tokens_are_shared() -> None:
    class Earlier(nn.Module):
        """What a layer that goes from token to token does: a part of the token before."""

        def __init__(self, inside: nn.Module):
            super().__init__()
            self.inside = inside

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.inside(x + 0.5 * x.roll(1, 1))
            return out

    model = tiny.model("llama")

    def tried(split: Split, broken: bool = False, packed: bool = True) -> Trunk:
        trunk = trunk_of(model)
        trunk.packed = packed
        if broken:
            layer: Any = trunk.decoder.get_submodule("layers.0")
            layer.mlp = Earlier(layer.mlp)
        share_rows(trunk, split, "a-model")
        return trunk

    assert all(trunk.split is not None for trunk in by_all(2, tried))
    with pytest.raises(
        ModelError, match=r"^sequence_parallel_size=2: a-model says something else [^\n]*Leave it out\.$"
    ):
        by_all(2, lambda split: tried(split, broken=True))
    with pytest.raises(
        ModelError, match=r"^sequence_parallel_size=2: a-model runs on padded rows[^\n]*leave it out\.$"
    ):
        by_all(2, lambda split: tried(split, packed=False))
