"""What a launcher asks for that a run here does not do: refused, with the command that does it. No torch.

`accelerate launch` speaks through environment variables. A run that reads none of them would train, and do so on one
process, or with every weight on every card.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence

from prefiere.processes.errors import LauncherError

ENGINES = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "parallelism_config",
}
"""Variables by which accelerate switches on an engine, and what the engine is called."""

DTYPES = {"bf16": "dtype=bfloat16", "fp16": "dtype=float16"}
"""accelerate's mixed precisions, and the setting that asks for the same."""


def on_cpu(asked: Mapping[str, str]) -> bool:
    """Whether `accelerate launch --cpu` started this process. asked: the environment."""
    return _yes(asked.get("ACCELERATE_USE_CPU"))


def refuse_unread(asked: Mapping[str, str], words: Sequence[str] | None = None) -> None:
    """Raise LauncherError, with the command to give instead, for what a launcher asks for and a run does not read.

    asked: the environment. words: those of the command, by default this process's.
    """
    given = shlex.join(sys.argv[1:] if words is None else words)
    size = asked.get("WORLD_SIZE")
    command = f"torchrun --nproc_per_node {asked.get('LOCAL_WORLD_SIZE') or size or 'N'} -m prefiere {given}".rstrip()
    for variable, engine in ENGINES.items():
        if _yes(asked.get(variable)):
            raise LauncherError(f"accelerate launch: its {engine} is not read here. Instead: {command}")
    if on_cpu(asked) and size is None and "MASTER_ADDR" in asked:
        raise LauncherError(
            f"accelerate launch --cpu starts one process, whatever --num_processes says. For N processes: {command}"
        )
    precision = asked.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision not in ("", "no"):
        setting = DTYPES.get(precision, "dtype")
        raise LauncherError(f"accelerate launch: mixed_precision={precision} is not read here: set {setting}")
    if asked.get("ACCELERATE_DYNAMO_BACKEND", "NO").upper() not in ("", "NO"):
        raise LauncherError("accelerate launch: its dynamo_backend is not read here: set torch_compile=true")


def _yes(value: str | None) -> bool:
    return (value or "").lower() in ("1", "true", "yes", "on", "y", "t")
