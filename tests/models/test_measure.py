"""The pass without gradients: what it leaves as it was, what it runs in, and what it does when memory runs out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from prefiere.kernels.memory import OutOfMemory
from prefiere.models.measure import Budget, Found, measure
from prefiere.models.trunk import Trunk
from random_groups import store

GROUPS = store(9, 2)
LENGTHS = GROUPS.lengths


def lengths_of(groups: Any, forward: Callable[[Any], Any] = lambda batch: None, **options: Any) -> list[Found[str]]:
    """A pass that finds how many tokens each group's completions have."""
    trunk = options.pop("trunk", None) or Trunk(torch.nn.Linear(1, 1))  # type: ignore[arg-type]
    given = {"budget": Budget(60), "compute": None, **options}
    return measure(trunk, groups, forward, lambda out, batch: {"scored": batch.scored_C.view(-1, 2)}, **given)


def by_group(found: list[Found[str]]) -> dict[int, list[float]]:
    return {i: row.tolist() for part in found for i, row in zip(part.groups, part.arrays["scored"], strict=True)}


EXPECTED = {i: [float(len(c)) for c in g.completions] for i, g in enumerate(GROUPS)}


def test_every_group_is_measured_once_and_told_of() -> None:
    done: list[int] = []
    found = lengths_of(GROUPS, progress=done.append)
    assert by_group(found) == EXPECTED
    assert sum(len(part.groups) for part in found) == 9
    assert done == [len(part.groups) for part in found]
    assert len(done) > 1, "one micro-batch held all: the test does not test"
    assert {part.arrays["scored"].dtype for part in found} == {np.dtype("float32")}


def test_members_alone_are_measured_and_a_filler_tells_nothing() -> None:
    members = np.asarray([7, 2, 3])
    found = lengths_of(GROUPS, members=members, cut=lambda chosen, lengths, budget: [(), tuple(chosen.tolist()), ()])
    assert [part.groups for part in found] == [(7, 2, 3)]
    assert by_group(found) == {i: EXPECTED[i] for i in (7, 2, 3)}
    assert lengths_of(GROUPS, members=np.asarray([], np.int64)) == []


def test_the_budget_is_halved_until_it_fits() -> None:
    said: list[str] = []
    budget = Budget(400, notice=said.append)

    def tight(batch: Any) -> None:
        if len(batch.tokens_T) > 110:
            raise torch.OutOfMemoryError("no memory")

    assert by_group(lengths_of(GROUPS, tight, budget=budget)) == EXPECTED
    assert budget.tokens == 100
    assert said == [f"out of memory: going on with tokens_per_microbatch={n}" for n in (200, 100)]


def test_what_cannot_be_cut_smaller_says_what_to_do() -> None:
    def full(batch: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    with pytest.raises(OutOfMemory, match=f"a single example of {LENGTHS.max()} tokens: set a smaller max_length"):
        lengths_of(GROUPS, full)
    fixed = Budget(60, adapt=False)
    with pytest.raises(OutOfMemory, match="tokens_per_microbatch=60: set a smaller one"):
        lengths_of(GROUPS, full, budget=fixed)
    assert fixed.tokens == 60


def test_another_error_is_not_taken_for_memory() -> None:
    def broken(batch: Any) -> None:
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        lengths_of(GROUPS, broken)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_the_trunk_is_evaluated_and_given_back_as_it_was(training: bool, fails: bool) -> None:
    trunk = Trunk(tiny.model("llama"), packed=False).train(training)
    seen: list[tuple[bool, bool]] = []

    def forward(batch: Any) -> torch.Tensor:
        seen.append((trunk.model.training, trunk(batch).logp_N.requires_grad))
        if fails:
            raise ValueError("no")
        return torch.zeros(())

    if fails:
        with pytest.raises(ValueError, match="no"):
            lengths_of(GROUPS, forward, trunk=trunk)
    else:
        lengths_of(GROUPS, forward, trunk=trunk)
    assert set(seen) == {(False, False)}
    assert trunk.training == trunk.model.training == training


@pytest.mark.parametrize("compute", [None, torch.float32, torch.bfloat16])
def test_forwards_run_in_the_precision_and_what_reads_them_does_not(compute: torch.dtype | None) -> None:
    seen: list[tuple[bool, bool]] = []

    def work(inside: bool, batch: Any) -> dict[str, torch.Tensor]:
        seen.append((inside, torch.is_autocast_enabled("cpu")))
        return {"half": torch.ones(1, dtype=torch.bfloat16), "double": torch.full((1,), 0.1, dtype=torch.float64)}

    trunk = Trunk(torch.nn.Linear(1, 1))  # type: ignore[arg-type]
    found = measure(
        trunk, GROUPS, lambda batch: torch.is_autocast_enabled("cpu"), work, budget=Budget(60), compute=compute
    )
    assert set(seen) == {(compute == torch.bfloat16, False)}
    assert found[0].arrays["half"].dtype == np.float32
    assert found[0].arrays["double"][0] == 0.1, "float64 stays what it is"
