"""What a process sets on its processor before it computes: memory is kept, fp32 products go to the faster library."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
from pathlib import Path

import torch
from torch import nn

from prefiere.asked.language import in_words
from prefiere.cache import entry
from prefiere.kernels.linear import use_onednn
from prefiere.kernels.matmul import measure_onednn
from prefiere.plan.choices import Choice

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
WORTH = 1.2
"""oneDNN is taken from so many times MKL's speed on."""
KERNELS = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
KEPT_KERNELS = "64"


def keep_freed_memory(device: torch.device) -> bool:
    """Let glibc reuse freed buffers instead of handing them back; returns whether it does.

    A buffer of more than 32 MB is otherwise mapped afresh for every use, and the first touch of its pages takes several
    times as long as the work on them. Peak memory grows by what lies between buffers, some per cent.
    """
    if device.type != "cpu" or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, 2**31 - 1))


def keep_few_kernels(device: torch.device) -> None:
    """Let oneDNN keep 64 compiled kernels instead of 1,024; to be called before its first product.

    It compiles one for each shape, and packed rows hardly ever have the same length twice: layers use them again, later
    rows do not. Up to 500 MB are saved, and no time is lost. A number that the user has set stays.
    """
    if device.type == "cpu":
        os.environ.setdefault(KERNELS, KEPT_KERNELS)


def processor_name() -> str:
    """What the processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, None) or platform.processor() or platform.machine()


def onednn_gain() -> float:
    """How many times faster oneDNN is at an fp32 product here; 0 where it is not there.

    Measured once for each processor (by its name and the instructions that PyTorch uses on it) and version of PyTorch,
    and kept: every run here chooses alike. Raises ValueError where the cache cannot be written.
    """
    instructions = torch.backends.cpu.get_cpu_capability()
    key = {"processor": processor_name(), "instructions": instructions, "torch": str(torch.__version__)}
    with entry("fp32-products", key) as kept:
        if not kept.whole:
            with kept.making() as (_, about):
                about["gain"] = measure_onednn()
        return float(kept.about["gain"])


def choose_products(device: torch.device, dtype: torch.dtype) -> Choice:
    """The library of fp32 matrix products on a CPU: "onednn" or "default"."""
    name = "fp32_products"
    if device.type != "cpu" or dtype != torch.float32:
        held = str(dtype).removeprefix("torch.")
        return Choice(name, "default", in_words("why.other_products", dtype=held, device=device.type))
    gain = onednn_gain()
    if gain >= WORTH:
        return Choice(name, "onednn", in_words("why.onednn", gain=f"{gain:.1f}"))
    return Choice(name, "default", in_words("why.onednn_no_faster" if gain else "why.no_onednn"))


def apply_products(model: nn.Module, choice: str) -> None:
    """Carry out `choose_products` for a model whose layers are routed."""
    use_onednn(model, choice == "onednn")


def leave_imports_alone() -> None:
    """Keep the garbage collector from going through all that is there now, a quarter of a second each time.

    For a command, once it has imported what it needs: what is garbage by then is never collected.
    """
    gc.freeze()
