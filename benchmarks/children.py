"""Contenders in processes of their own, which say what they find line by line: what fails ends nobody else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Found:
    """The lines of JSON that a child printed, and why it ended early in words; None where it ended well."""

    lines: list[dict[str, Any]]
    failed: str | None = None


def run(module: str, *arguments: str, seconds: float, env: dict[str, str] | None = None, processes: int = 1) -> Found:
    """``python -m benchmarks.MODULE ARGUMENTS``, at most so many seconds; what it prints before it fails counts.

    processes: so many of it, under torchrun where it is more than one.
    """
    several = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), "-m"]
    launcher = several if processes > 1 else []
    command = [sys.executable, "-m", *launcher, f"benchmarks.{module}", *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=seconds, env={**os.environ, **(env or {})}
        )
        out, err, failed = done.stdout, done.stderr, done.returncode != 0
    except subprocess.TimeoutExpired as e:
        out, err = (x.decode(errors="replace") if isinstance(x, bytes) else x or "" for x in (e.stdout, e.stderr))
        failed, err = True, f"{err}\nit took more than {seconds:.0f} s"
    print(err, file=sys.stderr, flush=True)
    lines = [json.loads(x) for x in out.splitlines() if x.startswith("{") and x.endswith("}")]
    said = [x.strip() for x in err.splitlines() if x.strip()]
    return Found(lines, (said[-1] if said else "it said nothing")[:200].replace("|", "/") if failed else None)


def say(**found: Any) -> None:
    """In a child: one line for the parent, in one piece, as several processes may write to it."""
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()
