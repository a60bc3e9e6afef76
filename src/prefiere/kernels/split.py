"""The tokens of a packed row over several processes: Ulysses (Jacobs et al. 2023, DeepSpeed-Ulysses, section 3).

Each process has a run of the row's tokens, and runs the layers on them. For attention the processes exchange: each gets
all tokens of some of the heads, attends as it would to the whole row, and gives every process its tokens back. Nothing
else in a decoder looks from one token to another.

Suffixes: _T tokens of the row, _R those of this process, _N places in the row, _O those of this process.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from math import gcd
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Split:
    """Process number ``place`` of the ``size`` that share a row.

    exchange: from rows in the order of the processes that they go to, how many go to each, and how many each has for
    this one, to these. add: the sum of a tensor over the processes.
    """

    place: int
    size: int
    exchange: Callable[[Tensor, list[int], list[int]], Tensor]
    add: Callable[[Tensor], Tensor]

    def _ends(self, total: int) -> list[int]:
        return [total * n // self.size for n in range(self.size + 1)]

    def shares(self, total: int) -> bool:
        """Whether there is a token for each process; else each runs the whole row, and what the first says counts."""
        return total >= self.size

    def run(self, total: int) -> slice:
        """The tokens of ``total`` that this process runs."""
        return slice(*self._ends(total)[self.place : self.place + 2]) if self.shares(total) else slice(0, total)

    def own(self, place_N: Tensor, total: int) -> Tensor:
        """Which of these places of a row of ``total`` tokens this process speaks for, by their numbers [O]."""
        run, at = self.run(total), np.asarray(place_N.tolist(), np.int64)  # as a list: an estimate has no arrays
        mine = (at >= run.start) & (at < run.stop) & (self.shares(total) or self.place == 0)
        return torch.from_numpy(np.flatnonzero(mine)).to(place_N.device)

    def whole(self, said_O: Tensor, own_O: Tensor, count: int) -> Tensor:
        """What each process says of its own places [O, ...], on all of them and of all ``count`` places [N, ...].

        All processes make the same loss of it, so that the gradient of each one's part is the part of the gradient.
        """
        said_N = said_O.new_zeros(count, *said_O.shape[1:]).index_copy(0, own_O, said_O)
        return _across(said_N, self.add, torch.clone)

    def to_heads(self, query_R: Tensor, key_R: Tensor, value_R: Tensor, total: int) -> tuple[Tensor, Tensor, Tensor]:
        """Query [R, heads, D], key and value [R, key heads, D] -> the same of all ``total`` tokens and of this
        process's heads [T, heads / size, D].

        Key heads that the processes do not divide are repeated first, as often as it takes. Raises ValueError for
        heads that they do not divide.
        """
        heads, key_heads = query_R.shape[1], key_R.shape[1]
        if heads % self.size:
            raise ValueError(f"{self.size} processes cannot share {heads} heads: set another sequence_parallel_size")
        copies = self.size // gcd(self.size, key_heads)
        if copies > 1:
            key_R, value_R = (x.repeat_interleave(copies, 1) for x in (key_R, value_R))
        there, back = partial(self._to_heads, total=total), partial(self._to_tokens, total=total)
        return _across(query_R, there, back), _across(key_R, there, back), _across(value_R, there, back)

    def to_tokens(self, out_T: Tensor) -> Tensor:
        """What attention says, [T, heads / size, D] -> of this process's tokens and all heads, [R, heads, D]."""
        total = out_T.shape[0]
        return _across(out_T, partial(self._to_tokens, total=total), partial(self._to_heads, total=total))

    def _counts(self, total: int) -> tuple[list[int], list[int]]:
        """How many tokens each process has, and what this one has, once for each."""
        ends = self._ends(total)
        counts = [stop - start for start, stop in pairwise(ends)]
        return counts, [counts[self.place]] * self.size

    def _to_heads(self, x_R: Tensor, *, total: int) -> Tensor:
        each, mine = self._counts(total)
        parts = x_R.unflatten(1, (self.size, x_R.shape[1] // self.size))
        return self.exchange(parts.transpose(0, 1).flatten(0, 1), mine, each)

    def _to_tokens(self, x_T: Tensor, *, total: int) -> Tensor:
        each, mine = self._counts(total)
        parts = self.exchange(x_T, each, mine).unflatten(0, (self.size, mine[0]))
        return parts.transpose(0, 1).flatten(1, 2)


class _Across(torch.autograd.Function):
    """A linear map over processes. back: its transpose."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, there: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.back = back
        return there(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return ctx.back(grad), None, None


def _across(x: Tensor, there: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor]) -> Tensor:
    out: Tensor = _Across.apply(x, there, back)
    return out
