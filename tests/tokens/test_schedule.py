"""Who is in an update depends on neither budget nor processes, and every group is in exactly one place."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefiere.tokens.schedule import longest_first, members, split, updates_per_epoch, visited

LENGTHS = st.lists(st.integers(2, 500), min_size=1, max_size=60).map(np.asarray)


@given(st.integers(1, 200), st.integers(1, 50), st.integers(0, 5))
def test_an_epoch_visits_every_group_once(n: int, batch: int, epoch: int) -> None:
    per_epoch = updates_per_epoch(n, batch)
    seen = np.concatenate([members(n, batch, seed=3, step=epoch * per_epoch + i) for i in range(per_epoch)])
    assert sorted(seen) == list(range(n))


def test_epochs_and_seeds_shuffle_differently() -> None:
    orders = {tuple(members(50, 50, seed=s, step=e)) for s in (0, 1) for e in (0, 1)}
    assert len(orders) == 4


def test_nothing_to_train_on_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing to train on"):
        members(0, 4, seed=0, step=0)


@settings(max_examples=200)
@given(LENGTHS, st.integers(1, 800), st.integers(1, 4))
def test_every_group_is_in_one_microbatch_within_budget(lengths: np.ndarray, budget: int, world: int) -> None:
    indices = np.arange(len(lengths))[::-1]
    plan = split(indices, lengths, budget=budget, world_size=world)
    placed = [i for rank in plan.ranks for micro in rank for i in micro]
    assert Counter(placed) == Counter(range(len(lengths)))
    assert len({len(rank) for rank in plan.ranks}) == 1, "ranks have different numbers of micro-batches"
    assert len(plan.ranks) == world
    for rank in plan.ranks:
        for micro in rank:
            assert len(micro) <= 1 or lengths[list(micro)].sum() <= budget
    empty = sum(not micro for rank in plan.ranks for micro in rank)
    assert empty < world, "an empty micro-batch costs a pass: only what makes ranks equal"


@settings(max_examples=200)
@given(LENGTHS, st.integers(1, 800))
def test_the_longest_first_cut_holds_every_group_once_in_order(lengths: np.ndarray, budget: int) -> None:
    indices = np.arange(len(lengths))[::2]
    parts = longest_first(indices, lengths, budget)
    order = [i for part in parts for i in part]
    assert order == sorted(indices.tolist(), key=lambda i: (-lengths[i], i))
    sums = [int(lengths[list(part)].sum()) for part in parts]
    assert all(total <= budget or len(part) == 1 for total, part in zip(sums, parts, strict=True))
    following = [int(lengths[part[0]]) for part in parts[1:]]
    assert all(total + n > budget for total, n in zip(sums, following, strict=False)), "the next one would have fitted"


def test_ranks_get_about_equal_work() -> None:
    lengths = np.random.default_rng(0).integers(10, 300, 256)
    plan = split(np.arange(256), lengths, budget=2048, world_size=4)
    loads = [sum(int(lengths[list(m)].sum()) for m in rank) for rank in plan.ranks]
    assert max(loads) / min(loads) < 1.05


@pytest.mark.parametrize("steps", [1, 4, 9, 10, 25])
def test_what_so_many_updates_see(steps: int) -> None:
    seen = visited(37, 4, seed=3, steps=steps)
    expected = {int(i) for step in range(steps) for i in members(37, 4, seed=3, step=step)}
    assert seen.tolist() == sorted(expected)
