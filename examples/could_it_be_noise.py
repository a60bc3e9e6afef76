"""Could falling curves be noise? How surely a few pairs show which way a preference run goes.

    python examples/could_it_be_noise.py --out runs/noise                        # the demo, 35% of labels swapped
    python examples/could_it_be_noise.py --out runs/noise-hh --model M --data TRAIN --eval-data EVAL

Runs of 50 updates whose every held-out pair is recorded every 5 steps. What all of them show together is taken for the
truth; drawing few of them, again and again, shows what a small evaluation would have shown instead, and drawing a fresh
pair or two for each update what training curves look like. docs/why-rewards-fall.md has what came out.

Writes ``noise.json`` and ``noise.md``.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.resources import as_file, files
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from falling_causes import NOISY
from rich.console import Console
from rich.progress import track
from why_rewards_fall import FLAT

from prefiere import recipe
from prefiere.api.training import train
from prefiere.console import hush, progress
from prefiere.data import formats
from prefiere.data.audit import split_by_prompt
from prefiere.demo import corpus
from prefiere.stats import clustered_mean
from prefiere.train.engine import Engine, Measured

SIZES = (8, 16, 32, 64, 128, 500)
BATCHES = (1, 2, 4, 16)
EVERY = 5
NAMES = ("chosen", "rejected", "margins", "accuracies")
KEYS = ("margins", "accuracies", "chosen", "all", "pattern")
"""Which curves fall, each for itself and together."""
Recorded = dict[str, np.ndarray]
"""Each of `NAMES`: [times, pairs], every held-out pair at steps 0, 5, 10, ..."""


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run, draw, write; returns what ``noise.json`` holds."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", required=True, type=Path)
    p.add_argument("--model", help="with --data and --eval-data; else the demo's")
    p.add_argument("--data", help="training pairs")
    p.add_argument("--eval-data", help="held-out pairs, at least 500")
    p.add_argument("--seeds", type=int, default=5)
    p.add_argument("--steps", type=int, default=50)
    p.add_argument("--draws", type=int, default=2000, help="small evaluations drawn from each run")
    p.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings of prefiere dpo")
    a = p.parse_args(arguments)
    hush()
    a.out.mkdir(parents=True, exist_ok=True)
    with as_file(files("prefiere.demo").joinpath("assets/base")) as base:
        given = {"model": a.model, "data": a.data, "eval_data": a.eval_data} if a.model else demo_data(a.out, base)
        jobs = [(batch, seed) for batch in BATCHES for seed in range(a.seeds)]
        runs: dict[int, list[Recorded]] = {batch: [] for batch in BATCHES}
        for batch, seed in track(jobs, "training", console=progress()):
            runs[batch].append(recorded(a.out / f"batch-{batch}-{seed}", given, batch, seed, a.steps, a.set))
    rng = np.random.default_rng(0)
    found = {
        "steps": a.steps,
        "pairs": runs[16][0]["margins"].shape[1],
        "seeds": a.seeds,
        "truth": {str(b): truth(r) for b, r in runs.items()},
        "held_out": {
            str(n): held_out(runs[16], n, rng, a.draws) for n in SIZES if n <= runs[16][0]["margins"].shape[1]
        },
        "training": {str(b): training(r, b, rng, a.steps, a.draws) for b, r in runs.items()},
        "flat": {str(b): training(r, b, rng, a.steps, a.draws, flat=True) for b, r in runs.items()},
    }
    found["one"] = [
        {"margin": float(r["margins"][-1].mean()), **training([r], 1, rng, a.steps, a.draws)} for r in runs[1]
    ]
    (a.out / "noise.json").write_text(json.dumps(found, indent=1) + "\n")
    (a.out / "noise.md").write_text(tables(found) + "\n")
    print(tables(found))
    return found


# -- runs -------------------------------------------------------------------------------------------------------------


def demo_data(out: Path, base: Path) -> dict[str, str]:
    """The demo's pairs, half to train on and half held out, 35% of both with their labels swapped."""
    pairs = corpus.preferences()
    rng = np.random.default_rng(0)
    paths = {"data": out / "train.jsonl", "eval_data": out / "eval.jsonl"}
    for (key, path), at in zip(paths.items(), split_by_prompt(pairs, 0.5, 0), strict=True):
        change = NOISY["train" if key == "data" else "held_out"]
        formats.write(change([pairs[i] for i in at], rng), path)
    return {"model": str(base), **{k: str(v) for k, v in paths.items()}}


@contextmanager
def every_pair(seen: list[Mapping[str, np.ndarray]]) -> Iterator[None]:
    """Keep what each validation measured of each pair: a run's log has means only."""
    measure = Engine.measure

    def keep(self: Engine, store: Any, objective: Any, members: np.ndarray | None = None, **more: Any) -> Measured:
        found = measure(self, store, objective, members, **more)
        if members is None:
            seen.append(found.values)
        return found

    with patch.object(Engine, "measure", keep):
        yield


def recorded(
    folder: Path, given: Mapping[str, Any], batch: int, seed: int, steps: int, more: Sequence[str]
) -> Recorded:
    """One run, every pair of every validation; read again where it is there."""
    path = folder.with_suffix(".npz")
    if not path.is_file():
        settings = {"max_steps": steps, "batch_size": batch, "seed": seed, "eval_steps": EVERY, "sample_steps": 0}
        seen: list[Mapping[str, np.ndarray]] = []
        with every_pair(seen):
            train(
                recipe.load("dpo", None, {**given, **settings, "out": str(folder)}, more),
                fresh=True,
                console=Console(file=StringIO()),
            )
        shutil.rmtree(folder)
        values = {n: np.stack([v[f"rewards/{n}"] for v in seen]) for n in NAMES}
        values["accuracies"][0] = 0.5  # before training all margins are rounding
        np.savez(path, **values)
    return dict(np.load(path))


# -- what is seen -----------------------------------------------------------------------------------------------------


def truth(runs: Sequence[Recorded]) -> dict[str, list[float]]:
    """The mean over all pairs and seeds: at the start, a fifth into the run, at the end."""
    fifth = len(runs[0]["margins"]) // 5
    return {n: [float(np.mean([r[n][t].mean() for r in runs])) for t in (0, fifth, -1)] for n in NAMES}


def held_out(runs: Sequence[Recorded], n: int, rng: np.random.Generator, draws: int) -> dict[str, float]:
    """Of evaluations on n pairs: half-widths of the 95% intervals at the end, how often the accuracy ends below one
    half, and how often each curve falls, from the evaluation after a fifth of the run to the last one.

    The same n pairs are measured both times, as in training.
    """
    widths: dict[str, list[float]] = {"margins": [], "accuracies": []}
    falls: dict[str, list[bool]] = {k: [] for k in ("below_half", *KEYS)}
    for run in runs:
        fifth, total = len(run["margins"]) // 5, run["margins"].shape[1]
        for draw in range(draws // len(runs)):
            at = rng.choice(total, n, replace=False)
            change = {k: float(run[k][-1, at].mean() - run[k][fifth, at].mean()) for k in NAMES}
            seen(falls, change)
            falls["below_half"].append(bool(run["accuracies"][-1, at].mean() < 0.5))
            if draw < 200:
                for k, kept in widths.items():
                    e = clustered_mean(run[k][-1, at], at, share=k == "accuracies")
                    kept.append((e.high - e.low) / 2)
    return {f"half_{k}": float(np.mean(v)) for k, v in widths.items()} | {
        k: float(np.mean(v)) for k, v in falls.items()
    }


def training(
    runs: Sequence[Recorded], batch: int, rng: np.random.Generator, steps: int, draws: int, *, flat: bool = False
) -> dict[str, float]:
    """Of training curves with ``batch`` fresh pairs at each step: how often a fitted line falls.

    A pair's rewards at a step lie on the line between the validations around it. flat: the same pairs, all taken from
    the middle of the run, so that in truth nothing changes.
    """
    falls: dict[str, list[bool]] = {k: [] for k in KEYS}
    x = np.arange(steps) + 0.5
    line = (x - x.mean()) / ((x - x.mean()) ** 2).sum()
    for run in runs:
        times, total = run["margins"].shape
        where = np.full(steps, (times - 1) / 2) if flat else np.arange(steps) / EVERY
        low = np.minimum(where.astype(int), times - 2)
        part = (where - low)[:, None]
        for _ in range(draws // len(runs)):
            at = rng.permuted(np.arange(total))[: steps * batch].reshape(steps, -1) if steps * batch <= total else (
                rng.integers(0, total, (steps, batch))
            )  # fmt: skip
            points = {k: (1 - part) * run[k][low[:, None], at] + part * run[k][low[:, None] + 1, at] for k in NAMES[:3]}
            margins = points["margins"]
            points["accuracies"] = np.where(np.abs(margins) < 1e-6, 0.5, margins > 0)
            seen(falls, {k: float(line @ points[k].mean(1)) for k in NAMES})
    return {k: float(np.mean(v)) for k, v in falls.items()}


def seen(falls: dict[str, list[bool]], change: Mapping[str, float]) -> None:
    """Add what one small evaluation shows. ``pattern``: all three fall, and rejected moves by less than `FLAT` of what
    chosen does."""
    for k in ("margins", "accuracies", "chosen"):
        falls[k].append(change[k] < 0)
    both = change["chosen"] < 0 and change["margins"] < 0 and change["accuracies"] < 0
    falls["all"].append(both)
    falls["pattern"].append(both and abs(change["rejected"]) <= FLAT * abs(change["chosen"]))


# -- shown ------------------------------------------------------------------------------------------------------------


def tables(found: Mapping[str, Any]) -> str:
    """Truth, held-out and training curves in Markdown."""

    def share(x: float) -> str:
        return f"{100 * x:.0f}%"

    lines = [
        f"{found['pairs']} held-out pairs, {found['seeds']} seeds, {found['steps']} updates",
        "",
        "| pairs per update | chosen | rejected | margin | accuracy |",
        "| --- | --- | --- | --- | --- |",
    ]
    for b, t in found["truth"].items():
        cells = (", ".join(f"{100 * v:.1f}%" if n == "accuracies" else f"{v:+.3f}" for v in t[n]) for n in NAMES)
        lines.append(f"| {b} | {' | '.join(cells)} |")
    head = "margin falls | accuracy falls | chosen falls | all three | the pattern"
    lines += ["", f"| held-out pairs | margin ± | accuracy ± | ends below 50% | {head} |", "| --- " * 9 + "|"]
    for n, h in found["held_out"].items():
        cells = [f"{h['half_margins']:.3f}", f"{100 * h['half_accuracies']:.0f} points"]
        lines.append(f"| {n} | {' | '.join(cells + [share(h[k]) for k in ('below_half', *KEYS)])} |")
    lines += ["", f"| pairs per point | truth | {head} |", "| --- " * 7 + "|"]
    for b in found["training"]:
        for what, key in (("as above", "training"), ("flat", "flat")):
            lines.append(f"| {b} | {what} | {' | '.join(share(found[key][b][k]) for k in KEYS)} |")
    each = ", ".join(f"{r['margin']:+.3f}: {share(r['pattern'])}" for r in found["one"])
    lines += ["", f"1 pair per point, each run by itself (its margin at the end, in truth: the pattern): {each}."]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
