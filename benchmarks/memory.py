"""Peak resident memory of a window of DPO updates, each contender in a process of its own."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path

from benchmarks.common import Bench, Row, quiet
from benchmarks.contenders import Ours, Trl, installed
from benchmarks.workload import SHAPES, window

CASES = [("10m", False, 3), ("10m", True, 3), ("60m", False, 2), ("60m", True, 2), ("qwen", True, 1)]
ROUNDS = 3
"""A peak varies by a few per cent between runs."""
PEERS = {"TRL, no checkpointing": ("trl", 0.4), "TRL, its checkpointing": ("trl-checkpointing", 0.6)}


def rows(bench: Bench) -> Iterable[Row]:
    """Peaks of prefiere, of TRL without and with its gradient checkpointing."""
    for shape, lora, steps in [("tiny", False, 1)] if bench.quick else CASES:
        if shape not in bench.shapes:
            continue
        bench.folder(shape)
        bench.store(SHAPES[shape].words)

        def peak(who: str, shape: str = shape, lora: bool = lora, steps: int = steps) -> float:
            arguments = (who, shape, str(int(lora)), str(steps), str(bench.out))
            return float(bench.child("memory", *arguments))

        times = range(1 if bench.quick else min(ROUNDS, bench.repeats))
        ours = [peak("prefiere") for _ in times]
        for peer, (who, goal) in PEERS.items():
            work = f"peak memory, {SHAPES[shape].title}, bf16, {'LoRA' if lora else 'full'}; {peer}"
            if installed():
                theirs = [peak(who) for _ in times]
                note = f"{8 * steps} pairs, the whole process, libraries included; {len(times)} rounds"
                yield Row.smaller(work, ours, theirs, goal=goal, unit="MB", note=note)
            else:
                yield Row.missing(work, goal, "TRL is not installed")


def peak_mb() -> float:
    """Peak resident memory of this process in MB (Linux: of this program alone, not of what started it)."""
    status = Path("/proc/self/status")
    if status.is_file():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1e3
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def _child(who: str, shape: str, lora: str, steps: str, out: str) -> float:
    quiet()
    bench = Bench(Path(out))
    store = bench.store(SHAPES[shape].words)
    batches = window(store, int(steps), grouped=False)
    if who == "prefiere":
        Ours(bench.folder(shape), store, batches, lora=bool(int(lora))).epoch(int(steps))
    else:
        checkpointing = who.endswith("checkpointing")
        contender = Trl(
            bench.folder(shape), store, batches, lora=bool(int(lora)), checkpointing=checkpointing, scratch=bench.out
        )
        contender.train(int(steps))
    return peak_mb()


if __name__ == "__main__":
    print(json.dumps(_child(*sys.argv[1:])))
