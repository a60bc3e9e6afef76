"""The processes of a run: with `processes`, which opens their group, the one place that asks torch.distributed.

A run is one process, or several that torchrun started and that compute the same updates together. `console` alone asks
the environment whether it may speak, because a command must be able to say so without torch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from torch import Tensor

from prefiere.processes.errors import PeerError
from prefiere.processes.join import TIMEOUT, heartbeat, open_group, patience
from prefiere.processes.launchers import on_cpu, refuse_unread
from prefiere.processes.team import Team

T = TypeVar("T")


class World:
    """This process among those of the run, and the trackers that its rows go to besides the run folder.

    Every method is called by all processes, in the same order. In a run of one process they cost nothing.
    """

    def __init__(self, accelerator: Accelerator):
        self._accelerator = accelerator
        self.rank: int = accelerator.process_index
        self.size: int = accelerator.num_processes
        self.device: torch.device = accelerator.device
        self.nodes: int = max(1, self.size // int(os.environ.get("LOCAL_WORLD_SIZE", self.size)))
        self.team = Team(self.rank, self.size)
        self._heart = heartbeat(self.rank, self.size)

    @classmethod
    def open(cls, *, report_to: Sequence[str] = (), out: str | Path | None = None, cpu: bool = False) -> Self:
        """Join the processes that torchrun started, or stand alone.

        report_to: trackers that get every row; out: the folder for what they write. cpu: compute there even where there
        is a GPU. Raises ValueError for a tracker that is not installed, and for what a launcher asks and nobody reads.
        """
        installed = {str(getattr(t, "value", t)) for t in get_available_trackers()}
        for tracker in report_to:
            if tracker not in installed:
                raise ValueError(f"report_to: {tracker} is not installed: pip install {tracker}")
        refuse_unread(os.environ)
        cpu = cpu or on_cpu(os.environ) or not torch.cuda.is_available()
        open_group(cuda=not cpu)  # accelerate's own would be lost after a restart
        return cls(Accelerator(cpu=cpu, log_with=list(report_to) or None, project_dir=out))

    def form_teams(self, size: int) -> None:
        """From now on so many processes, those of neighbouring ranks, compute each micro-batch together."""
        self.team = Team(self.rank, self.size, size)

    @property
    def main(self) -> bool:
        """Whether this is the first process, which owns the run folder."""
        return self.rank == 0

    def sum(self, value: Tensor) -> Tensor:
        """The sum of a tensor over all processes, in its shape and dtype."""
        if self.size == 1:
            return value
        total = value.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    def sum_of_teams(self, found: np.ndarray) -> np.ndarray:
        """The sum over all teams of what each has found, in its shape and dtype."""
        return self.sum(torch.from_numpy(found if self.team.speaks else np.zeros_like(found))).numpy()

    def gather(self, items: list[T]) -> list[T]:
        """The items of all processes in one list, in the order of their ranks. Items are pickled."""
        if self.size == 1:
            return items
        parts: list[list[T]] = [[] for _ in range(self.size)]
        dist.all_gather_object(parts, items)
        return [item for part in parts for item in part]

    def broadcast(self, value: T) -> T:
        """What the first process holds here. It is pickled."""
        if self.size == 1:
            return value
        self._meet()
        held = [value]
        dist.broadcast_object_list(held)
        return held[0]

    def barrier(self) -> None:
        """Wait until every process is here, however long one that lives has to do before."""
        if self.size > 1:
            self._meet()
            dist.barrier()

    def _meet(self) -> None:
        if self._heart is not None:
            self._heart.meet()

    def hurry(self) -> None:
        """Find out soon who is missing: this process is asked to end, which a launcher does where another one has."""
        if self._heart is not None:
            self._heart.hurry()

    def on_loss(self, then: Callable[[ValueError], None]) -> None:
        """What this process does before it ends where another one is gone or stuck. It is called in a thread."""
        if self._heart is not None:
            self._heart.on_loss = then

    def failed(self, error: BaseException) -> BaseException:
        """Why this process fails: another one that is gone, where that is behind the error, else the error itself.

        Libraries raise RuntimeError for a connection that broke; the launcher, which asks all processes to end where
        one has, may interrupt this one over it. The others are told, and this process is on its own.
        """
        heart, self._heart = self._heart, None
        if heart is None:
            return error
        first = error.__context__ if isinstance(error, KeyboardInterrupt) else error
        why = (heart.cause() or _too_late(first) if isinstance(first, RuntimeError) else None) or error
        heart.stop(why)
        return why

    def leave(self) -> None:
        """This process goes on alone."""
        if self._heart is not None:
            self._heart.stop()
            self._heart = None

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


def _too_late(error: RuntimeError) -> PeerError | None:
    """What to do about the error of a library that waited for processes, all of which live."""
    if not any(said in str(error).lower() for said in ("timed out", "timeout")):
        return None
    seconds = patience().total_seconds()
    return PeerError(
        f"another process lives, and had more than {seconds:g} seconds to do before it came to what all do together: "
        f"set {TIMEOUT} to more seconds; the same torchrun command again continues the run"
    )


def leave_group() -> None:
    """Close the group of processes that torchrun started, if it did: the last thing that a command does.

    Its threads otherwise outlive the interpreter, and one that then lets go of a tensor aborts a process that had done
    its work; torchrun kills the others with it.
    """
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
