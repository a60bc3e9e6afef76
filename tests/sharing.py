"""Threads that share the tokens of a row as processes do, so that tests need not start any."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from prefiere.kernels.split import Split


class Room:
    """Threads that hand each other rows as processes do."""

    def __init__(self, size: int):
        self.size, self._given = size, [[torch.empty(0)] for _ in range(size)]
        self._here = threading.Barrier(size, timeout=30)

    def member(self, place: int) -> Split:
        def all_of(mine: list[Tensor]) -> list[list[Tensor]]:
            self._given[place] = mine
            self._here.wait()
            found = list(self._given)
            self._here.wait()
            return found

        def exchange(rows: Tensor, give: list[int], take: list[int]) -> Tensor:
            parts = [given[place] for given in all_of(list(rows.split(give)))]
            assert [len(part) for part in parts] == take
            return torch.cat(parts)

        def add(value: Tensor) -> Tensor:
            return torch.stack([given[0] for given in all_of([value])]).sum(0)

        return Split(place, self.size, exchange, add)


def by_all(size: int, work: Callable[[Split], Any]) -> list[Any]:
    """What ``size`` threads make of it, each with its place."""
    room = Room(size)
    with ThreadPoolExecutor(size) as pool:
        return [done.result() for done in [pool.submit(work, room.member(n)) for n in range(size)]]
