"""Processes that compute each micro-batch together, each on some of its tokens (`kernels.split`).

Work is dealt to teams as it otherwise is to processes. What a team finds is known to all in it, and counts once.
"""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor

from prefiere.processes.join import patience


class Team:
    """The team of one process. size: processes of a team; place: this one's. count: teams of the run; number: this
    one. speaks: whether this process says what its team has found."""

    def __init__(self, rank: int, processes: int, size: int = 1):
        """Every process makes its own at the same time. Raises ValueError for a size that does not divide them."""
        if processes % size:
            raise ValueError(f"{processes} processes cannot be teams of {size}")
        self.size, self.count = size, processes // size
        self.number, self.place = divmod(rank, size)
        self.speaks = self.place == 0
        self._group = dist.new_subgroups(size, timeout=patience())[0] if size > 1 else None

    def exchange(self, rows: Tensor, give: list[int], take: list[int]) -> Tensor:
        """Rows in the order of the processes that they go to -> those that each has for this one. give, take: how many
        to and from each."""
        taken = rows.new_empty(sum(take), *rows.shape[1:])
        dist.all_to_all_single(taken, rows.contiguous(), take, give, group=self._group)
        return taken

    def add(self, value: Tensor) -> Tensor:
        """The sum of a tensor over the team."""
        total = value.clone()
        dist.all_reduce(total, group=self._group)
        return total
