"""The processes of a run: the one file that asks accelerate or torch.distributed about them.

A run is one process, or several that torchrun started and that compute the same updates together. `console` alone asks
the environment whether it may speak, because a command must be able to say so without torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.tracking import get_available_trackers
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

T = TypeVar("T")

PATIENCE = timedelta(hours=12)
"""How long a process waits for the others: the first one may compute the reference of all the data meanwhile."""


class World:
    """This process among those of the run, and the trackers that its rows go to besides the run folder.

    Every method is called by all processes, in the same order. In a run of one process they cost nothing.
    """

    def __init__(self, accelerator: Accelerator):
        self._accelerator = accelerator
        self.rank: int = accelerator.process_index
        self.size: int = accelerator.num_processes
        self.device: torch.device = accelerator.device

    @classmethod
    def open(cls, *, report_to: Sequence[str] = (), out: str | Path | None = None, cpu: bool = False) -> Self:
        """Join the processes that torchrun started, or stand alone.

        report_to: trackers that get every row; out: the folder for what they write. cpu: compute there even where there
        is a GPU. Raises ValueError for a tracker that is not installed.
        """
        installed = {str(getattr(t, "value", t)) for t in get_available_trackers()}
        for tracker in report_to:
            if tracker not in installed:
                raise ValueError(f"report_to: {tracker} is not installed: pip install {tracker}")
        accelerator = Accelerator(
            cpu=cpu or not torch.cuda.is_available(),
            log_with=list(report_to) or None,
            project_dir=out,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
        )
        return cls(accelerator)

    @property
    def main(self) -> bool:
        """Whether this is the first process, which owns the run folder."""
        return self.rank == 0

    def sum(self, value: Tensor) -> Tensor:
        """The sum of a tensor over all processes, in its shape and dtype."""
        if self.size == 1:
            return value
        total: Tensor = self._accelerator.reduce(value, "sum")
        return total

    def gather(self, items: list[T]) -> list[T]:
        """The items of all processes in one list, in the order of their ranks. Items are pickled."""
        if self.size == 1:
            return items
        gathered: list[T] = gather_object(items)
        return gathered

    def broadcast(self, value: T) -> T:
        """What the first process holds here. It is pickled."""
        if self.size == 1:
            return value
        held: T = broadcast_object_list([value])[0]
        return held

    def barrier(self) -> None:
        """Wait until every process is here."""
        self._accelerator.wait_for_everyone()

    def start_trackers(
        self, project: str, settings: Mapping[str, Any] | None, options: Mapping[str, Mapping[str, Any]]
    ) -> None:
        """Open every tracker, each with its options; settings are written down there where they are given."""
        given = {name: dict(of_one) for name, of_one in options.items()}
        self._accelerator.init_trackers(project, config=dict(settings) if settings else None, init_kwargs=given)

    @property
    def trackers(self) -> list[Any]:
        """accelerate's trackers that are open, each with a ``name``; they write in the first process alone."""
        return list(self._accelerator.trackers)

    def finish_trackers(self) -> None:
        """Let every tracker write what it still holds."""
        # accelerate's own end_training closes the group of processes as well
        for tracker in self._accelerator.trackers:
            tracker.finish()


def leave_group() -> None:
    """Close the group of processes that torchrun started, if it did: the last thing that a command does.

    Its threads otherwise outlive the interpreter, and one that then lets go of a tensor aborts a process that had done
    its work; torchrun kills the others with it.
    """
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
