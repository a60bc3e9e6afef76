"""Two processes against one, shared weights against whole ones, a rollout server against the own sampler:
``python -m benchmarks.scale_out``. Each as a ratio, beside that of a perfect one.

What is measured are steps of whole runs, one thread to a process, fp32, without the first step of each run. In each
round two children run one after the other: one process alone, then two under torchrun, which all do the same updates.
Processor time is added over processes: unlike the clock it does not grow where something else uses the cores. How much
did, stands in the last line.

The server is that of the tests (`tests/serving.py`): Python's standard library around the same model, in a process of
its own. It draws as the own sampler does, and one prompt's answers at a time, so that a step here has one prompt: what
it costs is the way there and back, an adapter that is written and loaded in each step included. It says nothing of the
speed of vLLM.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks import children
from benchmarks.children import say
from benchmarks.common import HEADER, Bench, Row, line, quiet
from benchmarks.workload import SHAPES, texts, write_pairs

ROOT = Path(__file__).parents[1]
LAST = 10**6
COMMON: dict[str, Any] = {
    "dtype": "float32", "eval_size": 0, "sample_steps": 0, "guard": False, "on_bad": "drop", "template": "never",
    "learning_rate": 1e-5, "logging_steps": 1, "save_steps": LAST,
}  # fmt: skip
TRAINED: dict[str, Any] = {"lora": False, "max_length": 256, "tokens_per_microbatch": 1024}
SAMPLED: dict[str, Any] = {
    "lora": True, "lora_r": 8, "batch_size": 1, "num_generations": 16, "max_new_tokens": 64, "max_length": 160,
    "reward": "benchmarks.scale_out:vowels",
}  # fmt: skip
PAIRS = 16
"""Pairs of an update, but for the runs of twice as many."""

Runs = dict[str, tuple[str, dict[str, Any]]]


@dataclass(frozen=True)
class Steps:
    """A run's measured steps together: their number, seconds, processor seconds of all processes, tokens learnt from,
    and of the seconds those that it waited for answers."""

    count: int
    seconds: float
    processor: float
    tokens: int
    sampling: float = 0.0


def vowels(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """A reward: the share of vowels."""
    return [sum(c in "aeiou" for c in text) / max(1, len(text)) for text in completions]


# -- the runs ---------------------------------------------------------------------------------------------------------


def alone(model: Path, folder: Path, server: str) -> Runs:
    """The runs of one process."""
    sampled = {**SAMPLED, "model": str(model), "data": str(folder / "prompts.txt")}
    return {
        "own": ("grpo", sampled),
        "served": ("grpo", {**sampled, "rollouts": server}),
        "ahead": ("grpo", {**sampled, "rollouts": server, "max_staleness": 1}),
        "one": ("dpo", trained(model, folder)),
    }


def together(model: Path, folder: Path) -> Runs:
    """The runs of two processes."""
    return {
        "strong": ("dpo", trained(model, folder, shard="none")),
        "weak": ("dpo", trained(model, folder, shard="none", batch_size=2 * PAIRS)),
        "sharded": ("dpo", trained(model, folder, shard="full")),
    }


def trained(model: Path, folder: Path, **given: Any) -> dict[str, Any]:
    """Settings of a run that trains every weight on pairs."""
    return {**TRAINED, "batch_size": PAIRS, "model": str(model), "data": str(folder / "pairs.jsonl"), **given}


def _child(asked: Path) -> None:
    """Launch these runs one after the other, and say of each step how long it took this process."""
    from prefiere import recipe
    from prefiere.console import Display
    from prefiere.launch import launch
    from prefiere.train.loop import Loop
    from prefiere.world import leave_group

    real, steps = Loop._update, list[tuple[float, float, int]]()

    def update(loop: Any, advance: Any) -> Any:
        began = time.perf_counter(), time.process_time(), loop.state.tokens
        found = real(loop, advance)
        now = time.perf_counter(), time.process_time(), loop.state.tokens
        steps.append((now[0] - began[0], now[1] - began[1], now[2] - began[2]))
        return found

    Loop._update = update  # type: ignore[method-assign]
    for name, (method, options) in json.loads(asked.read_text()).items():
        steps.clear()
        done = launch(recipe.load(method, None, options), display=Display(quiet=True))
        rank = int(os.environ.get("RANK", "0"))
        sampling = [row["time/sampling"] for row in done.run.metrics if "time/sampling" in row]
        say(run=name, rank=rank, steps=[[round(x, 6) for x in s] for s in steps[1:]], sampling=sum(sampling[1:]))
    leave_group()


def _serve(model: Path) -> None:
    """A rollout server until the parent closes the pipe."""
    sys.path.insert(0, str(ROOT / "tests"))
    from serving import RolloutServer

    with RolloutServer(model) as server:
        print(server.url, flush=True)
        sys.stdin.read()


@contextmanager
def served(model: Path) -> Iterator[str]:
    """The address of a server of this model, in a process of its own meanwhile."""
    command = [sys.executable, "-m", "benchmarks.scale_out", "--serve", str(model)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        if not (url := process.stdout.readline().strip()):
            raise SystemExit("the rollout server did not start")
        yield url
        process.stdin.close()


def measured(folder: Path, runs: Runs, steps: int, processes: int) -> dict[str, Steps]:
    """Launch these runs in children, and add up what their processes say. Ends the benchmark where one fails."""
    where = Path(tempfile.mkdtemp(dir=folder))
    given = {
        name: (method, {**COMMON, **options, "max_steps": steps + 1, "out": str(where / name)})
        for name, (method, options) in runs.items()
    }
    (where / "asked.json").write_text(json.dumps(given))
    found = children.run("scale_out", "--child", str(where / "asked.json"), seconds=1800, processes=processes)
    if found.failed or len(found.lines) != processes * len(runs):
        raise SystemExit(f"a child failed: {found.failed}")
    return {name: added([x for x in found.lines if x["run"] == name]) for name in runs}


def added(said: Sequence[Mapping[str, Any]]) -> Steps:
    """What the processes of one run say: the clock of the first, and the processor time of all."""
    first = next(x for x in said if x["rank"] == 0)
    processor = sum(s[1] for x in said for s in x["steps"])
    clock, tokens = (sum(s[i] for s in first["steps"]) for i in (0, 2))
    return Steps(len(first["steps"]), clock, processor, int(tokens), float(first["sampling"]))


# -- the table --------------------------------------------------------------------------------------------------------


def rows_of(rounds: Sequence[Mapping[str, Steps]], model: str) -> Iterable[Row]:
    """Ratios of what was measured in each round."""
    for name, beside, perfect, title in (
        ("strong", "one", 2.0, f"two processes against one, the same {PAIRS} pairs an update"),
        ("weak", "one", 2.0, f"two processes against one, {2 * PAIRS} pairs an update against {PAIRS}"),
        ("sharded", "strong", 1.0, "two processes, shard=full against shard=none"),
    ):
        ours, peer = ([1e3 * r[n].seconds / r[n].tokens for r in rounds] for n in (name, beside))
        work = [(r[name].processor / r[name].tokens) / (r[beside].processor / r[beside].tokens) for r in rounds]
        note = f"a perfect one: {perfect:g}; processor time of all processes {statistics.median(work):.2f} times"
        yield Row.faster(f"1,000 tokens of DPO, full, {model}: {title}", ours, peer, goal=None, note=note)
    work = f"a step of GRPO, LoRA, {model}"
    own, server, ahead = ([r[n].seconds / r[n].count for r in rounds] for n in ("own", "served", "ahead"))
    share = statistics.median(r["served"].sampling / r["served"].seconds for r in rounds)
    note = f"a perfect one: 1; {share:.0%} of its time it waits for the server"
    yield Row.faster(f"{work}: a server, in turn, against the own sampler", server, own, goal=None, note=note)
    best = statistics.median(
        r["served"].seconds / max(r["served"].sampling, r["served"].seconds - r["served"].sampling) for r in rounds
    )
    note = f"a perfect one: {best:.2f}, where the shorter of sampling and learning vanishes"
    yield Row.faster(f"{work}: a server, one step off against in turn", ahead, server, goal=None, note=note)


def busy() -> float:
    """Seconds that the cores of this machine have been busy."""
    t = psutil.cpu_times()
    return float(sum(t) - t.idle - getattr(t, "iowait", 0.0) - getattr(t, "guest", 0.0) - getattr(t, "guest_nice", 0.0))


def own_time() -> float:
    """Processor seconds of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def main() -> None:
    """The parent: children in each round; prints the table."""
    p = argparse.ArgumentParser(prog="python -m benchmarks.scale_out", description=__doc__)
    p.add_argument("--shape", default="tiny", choices=SHAPES, help="the model; the tiny one takes about 3 minutes")
    p.add_argument("--repeats", type=int, default=3)
    p.add_argument("--steps", type=int, default=8, help="measured steps of each run")
    p.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    p.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    a = p.parse_args()
    quiet()
    if a.child or a.serve:
        (_child if a.child else _serve)(a.child or a.serve)
        return
    os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    began, used, mine = time.perf_counter(), busy(), own_time()
    with tempfile.TemporaryDirectory(prefix="prefiere-scale-out-") as scratch:
        folder = Path(scratch)
        os.environ["PREFIERE_CACHE"] = f"{scratch}/cache"
        bench = Bench(folder, quick=True)
        model = bench.folder(a.shape)
        write_pairs(folder / "pairs.jsonl", bench.pairs)
        prompts = ["".join(texts(pair.prompt)) for pair in bench.pairs]
        (folder / "prompts.txt").write_text("\n".join(t[:200] for t in prompts) + "\n", encoding="utf-8")
        with served(model) as url:
            rounds = [
                measured(folder, alone(model, folder, url), a.steps, 1)
                | measured(folder, together(model, folder), a.steps, 2)
                for _ in range(a.repeats)
            ]
    print("\n".join([HEADER, *(line(row) for row in rows_of(rounds, SHAPES[a.shape].title))]))
    seconds = time.perf_counter() - began
    others = max(0.0, busy() - used - (own_time() - mine)) / seconds
    print(f"\n{a.repeats} rounds, {a.steps} steps each, {seconds:.0f} s. Something else used {others:.2f} of "
          f"{psutil.cpu_count()} cores meanwhile")  # fmt: skip


if __name__ == "__main__":
    main()
