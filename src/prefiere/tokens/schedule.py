"""Who is in an update and how it is cut into micro-batches: pure functions of lengths, budget, seed, step and world.

Who is in an update depends on neither the budget nor the number of processes, so hardware changes speed and never the
result. Every rank gets equally many micro-batches; an empty one is a filler that keeps collective calls in step.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One update: its members (group indices [B]) and ``ranks[r][m]``, the groups of rank r's m-th micro-batch."""

    members: np.ndarray
    ranks: tuple[tuple[tuple[int, ...], ...], ...]


def updates_per_epoch(n: int, batch_size: int) -> int:
    """Number of updates that an epoch over n groups takes; the last one may be smaller."""
    return -(-n // batch_size)


def members(n: int, batch_size: int, *, seed: int, step: int) -> np.ndarray:
    """Group indices [<= batch_size] of update ``step`` (counted from 0 over all epochs).

    Each epoch is a fresh permutation of all n groups under (seed, epoch).
    """
    if n < 1:
        raise ValueError("there is nothing to train on: every example was dropped")
    epoch, position = divmod(step, updates_per_epoch(n, batch_size))
    return _order(n, seed, epoch)[position * batch_size : (position + 1) * batch_size]


def visited(n: int, batch_size: int, *, seed: int, steps: int) -> np.ndarray:
    """Group indices, in order, that so many updates see at all."""
    if steps >= updates_per_epoch(n, batch_size):
        return np.arange(n)
    return np.unique(np.concatenate([members(n, batch_size, seed=seed, step=step) for step in range(steps)]))


@lru_cache(maxsize=2)
def _order(n: int, seed: int, epoch: int) -> np.ndarray:
    order = np.random.default_rng([seed, epoch]).permutation(n)
    order.setflags(write=False)
    return order


def split(indices: Sequence[int] | np.ndarray, lengths: np.ndarray, *, budget: int, world_size: int = 1) -> StepPlan:
    """Cut groups into micro-batches of at most ``budget`` tokens, equally many and about equally long for each rank.

    A group that is longer than the budget alone gets a micro-batch to itself. Longest-first into the emptiest bin.
    """
    chosen = np.asarray(indices)
    sizes = lengths[chosen]
    order = np.argsort(-sizes, kind="stable")
    longest_first = list(zip(chosen[order].tolist(), sizes[order].tolist(), strict=True))
    bins = max(1, min(-(-int(sizes.sum()) // max(1, budget)), len(chosen)))  # more would be empty, and cost a pass each
    while True:
        bins = -(-bins // world_size) * world_size
        filled = _balance(longest_first, bins)
        if bins >= len(chosen) or all(load <= budget or len(b) <= 1 for load, b in filled):
            break
        bins += 1
    # Bins in order of size, dealt to the ranks in turn: the ranks' m-th micro-batches are about equally long.
    filled.sort(key=lambda bin_: -bin_[0])
    ranks = tuple(tuple(tuple(b) for _, b in filled[r::world_size]) for r in range(world_size))
    return StepPlan(chosen, ranks)


def longest_first(indices: np.ndarray, lengths: np.ndarray, budget: int) -> tuple[tuple[int, ...], ...]:
    """Cut groups into micro-batches of at most ``budget`` tokens, those of like length together: linear, for many.

    A group that is longer than the budget alone gets a micro-batch to itself. For passes without gradients, where who
    shares a micro-batch with whom matters to nobody.
    """
    parts: list[tuple[int, ...]] = []
    current: list[int] = []
    total = 0
    for i in indices[np.argsort(-lengths[indices], kind="stable")].tolist():
        length = int(lengths[i])
        if current and total + length > budget:
            parts.append(tuple(current))
            current, total = [], 0
        current.append(i)
        total += length
    return (*parts, tuple(current)) if current else tuple(parts)


def cut_for(rank: int, size: int) -> Callable[[np.ndarray, np.ndarray, int], Sequence[tuple[int, ...]]]:
    """How one of ``size`` processes cuts its share of a pass without gradients, from indices, lengths and a budget in
    tokens: each has equally many micro-batches. One process alone has everything."""
    if size == 1:
        return longest_first
    return lambda indices, lengths, budget: split(indices, lengths, budget=budget, world_size=size).ranks[rank]


def _balance(longest_first: list[tuple[int, int]], bins: int) -> list[tuple[int, list[int]]]:
    """(Tokens, groups) of each bin."""
    heap = [(0, b) for b in range(bins)]
    filled: list[list[int]] = [[] for _ in range(bins)]
    for i, length in longest_first:
        load, b = heap[0]
        filled[b].append(i)
        heapq.heapreplace(heap, (load + length, b))
    return [(load, filled[b]) for load, b in sorted(heap, key=lambda item: item[1])]
