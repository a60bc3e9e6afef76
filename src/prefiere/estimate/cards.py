"""Devices: how much memory they have, how fast they compute and copy."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import psutil
import torch

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Card:
    """A device: memory, peak of 16-bit matrix products (FLOP/s), memory bandwidth (bytes/s), whether it has bfloat16.
    The figures are its maker's. ``reserved``: what driver and libraries take off the memory."""

    name: str
    memory: int
    peak: float
    bandwidth: float
    bf16: bool
    reserved: int = GIB // 2


CARDS = {
    "t4": Card("T4", 15 * GIB, 65e12, 320e9, False),  # of 16 GB, the driver shows 15 GiB
    "v100": Card("V100", 16 * GIB, 125e12, 900e9, False),
    "l4": Card("L4", int(22.5 * GIB), 121e12, 300e9, True),
    "a10g": Card("A10G", int(22.5 * GIB), 125e12, 600e9, True),
    "rtx4090": Card("RTX 4090", 24 * GIB, 165e12, 1008e9, True),
    "l40s": Card("L40S", int(44.5 * GIB), 362e12, 864e9, True),
    "a100": Card("A100 40GB", int(39.5 * GIB), 312e12, 1555e9, True),
    "a100-80": Card("A100 80GB", int(79.2 * GIB), 312e12, 2039e9, True),
    "h100": Card("H100", int(79.2 * GIB), 989e12, 3350e9, True),
    "h200": Card("H200", int(139.8 * GIB), 989e12, 4800e9, True),
}


SHARE_OF_PEAK = 0.4
"""Share of a card's peak that its products reach: a T4 is throttled at 70 W, packed rows are of uneven length."""


SHARE_OF_BANDWIDTH = 0.7


CALL = 15e-6
"""Seconds until a card has been given an operation by Python."""


@cache
def processor(dtype: torch.dtype) -> tuple[float, float, float]:
    """FLOP/s of a product, bytes/s of a copy, and seconds to start an operation, measured here for a moment."""

    def best(work: Callable[[], Any], times: int) -> float:
        found: list[float] = []
        while len(found) < times and sum(found) < 1:  # without bfloat16 instructions a single product takes seconds
            began = time.perf_counter()
            work()
            found.append(time.perf_counter() - began)
        return min(found)

    x, y = torch.ones(1024, 1024, dtype=dtype), torch.ones(2**24)
    small = torch.ones(8)
    z = torch.empty_like(y)
    product = best(lambda: x @ x, 6)
    return 2 * 1024**3 / product, 2 * y.nbytes / best(lambda: z.copy_(y), 4), 3 * best(lambda: small + 1, 50)


def card_of(name: str | None) -> Card | None:
    """A card by its name; None for the processor. Raises ValueError, naming those that are known."""
    if name is None or name == "cpu":
        return None
    if name.lower() not in CARDS:
        raise ValueError(f"--gpu {name}: there are {', '.join(CARDS)}, and cpu")
    return CARDS[name.lower()]


def here() -> tuple[Card | None, int]:
    """This machine's device and its free memory in bytes."""
    if not torch.cuda.is_available():
        return None, int(psutil.virtual_memory().available)
    free, total = torch.cuda.mem_get_info()
    shown = torch.cuda.get_device_name().lower()
    known = next((c for c in CARDS.values() if c.name.lower().split()[0] in shown), CARDS["l4"])
    return replace(known, name=torch.cuda.get_device_name(), memory=total), int(free)
