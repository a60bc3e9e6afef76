"""What a run is decided for: a GPU or a processor with so much memory, of this machine or of a card by its name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import psutil
import torch


@dataclass(frozen=True, slots=True)
class Device:
    """kind: "cuda", "cpu" or another of torch's. memory: bytes that are free. bf16: products in bfloat16 are fast.
    threads: of a process, on a processor. processes: of the run, each with such a device. nodes: that they are on, as
    many on each."""

    kind: str
    memory: int
    bf16: bool
    threads: int = 1
    processes: int = 1
    nodes: int = 1

    def sharing(self, shard: str) -> int:
        """How many processes share one copy of the weights: all of them (full), those of a node (hybrid), or one."""
        return {"none": 1, "full": self.processes, "hybrid": self.processes // self.nodes}[shard]

    @classmethod
    def of(cls, device: torch.device, *, processes: int = 1, nodes: int = 1) -> Self:
        """A device of this machine, as it is now."""
        count = {"processes": processes, "nodes": nodes}
        if device.type == "cuda":
            free = int(torch.cuda.mem_get_info(device)[0])
            bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
            return cls("cuda", free, bf16, torch.get_num_threads(), **count)
        bf16 = device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
        return cls(device.type, int(psutil.virtual_memory().available), bf16, torch.get_num_threads(), **count)

    @classmethod
    def least(cls, devices: Sequence[Self]) -> Self:
        """What all of these devices are at least, one of each process: the run is decided for it, once and for all.

        Decided for each, two processes would disagree on it wherever less is free on one of them.
        """
        least = {name: min(getattr(d, name) for d in devices) for name in ("memory", "bf16", "threads")}
        return replace(devices[0], **least)
