"""What makes the curves of a preference run fall? One cause at a time, on the model and the pairs of the demo.

    python examples/why_rewards_fall.py --out runs/why

Every cause is a run of 50 updates with LoRA that differs from a sane one in one thing, repeated with several seeds
(data order, split, initialisation). Measured are the changes of the held-out curves from start to end, the slopes of
the training curves, and answers sampled before and after, judged by the demo's rule: curves alone do not show whether a
model became better. docs/why-rewards-fall.md has what came out.

Writes ``rows.csv`` (a row for each cause and seed), ``results.json`` (the same, with means and intervals over seeds),
``table.md`` and ``curves.png``. What has been run is not run again.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
from collections.abc import Mapping, Sequence
from importlib.resources import as_file, files
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from falling_causes import CAUSES, SANE, swapped
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from prefiere import recipe
from prefiere.api import training
from prefiere.console import hush, progress
from prefiere.data import formats
from prefiere.data.audit import split_by_prompt
from prefiere.data.schema import PreferencePair
from prefiere.demo import corpus, judge
from prefiere.doctor.diagnose import diagnose
from prefiere.evaluate.sampled import AnswerEvaluator
from prefiere.models.load import load_model, load_tokenizer
from prefiere.models.source import find_model
from prefiere.models.trunk import Trunk
from prefiere.run import Run
from prefiere.sample.local import LocalRollouts
from prefiere.sample.sampling import Sampling, Vocabulary
from prefiere.stats import Moments
from prefiere.tokens.encoder import Encoder
from prefiere.tokens.tokenizer import eos_ids_of

HELD_OUT = 100
CURVES = ("chosen", "rejected", "margins", "accuracies")
FLAT = 0.35
"""A curve is flat where it moves by less than this share of what the chosen reward moves; doctor.py's own measure."""


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run every cause with every seed; returns what ``results.json`` holds."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", required=True, type=Path)
    p.add_argument("--seeds", type=int, default=5)
    p.add_argument("--causes", nargs="*", choices=sorted(CAUSES), default=list(CAUSES), metavar="CAUSE")
    p.add_argument("--pairs", action="store_true", help="only write the pairs that recipes/study-*.yaml take")
    p.add_argument("--steps", type=int, default=SANE["max_steps"], help="updates of each run")
    a = p.parse_args(arguments)
    if a.pairs:
        return write_pairs(a.out)
    hush()
    bars = (TextColumn("{task.description:24}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("left"), TimeRemainingColumn())  # fmt: skip
    rows = []
    with as_file(files("prefiere.demo").joinpath("assets/base")) as base, Progress(*bars, console=progress()) as shown:
        before = judged(base, base)
        task = shown.add_task("", total=len(a.causes) * a.seeds)
        for seed in range(a.seeds):  # all causes with one seed first, so that the estimate settles early
            for name in a.causes:
                shown.update(task, description=name)
                rows.append(once(a.out, base, name, seed, a.steps))
                shown.advance(task)
    rows.sort(key=lambda r: (a.causes.index(r["cause"]), r["seed"]))
    found = {"settings": SANE | {"max_steps": a.steps}, "before": before, "causes": summary(rows), "rows": rows}
    write(a.out, found)
    print(table(found))
    return found


# -- one run ----------------------------------------------------------------------------------------------------------


def split(seed: int) -> tuple[list[PreferencePair], list[PreferencePair]]:
    """The demo's pairs to train on and those held out, no prompt on both sides."""
    pairs = corpus.preferences()
    train_at, held_at = split_by_prompt(pairs, HELD_OUT, seed)
    return [pairs[i] for i in train_at], [pairs[i] for i in held_at]


def write_pairs(out: Path) -> dict[str, Any]:
    """``train.jsonl``, ``swapped.jsonl`` (the same with their labels swapped) and ``eval.jsonl``."""
    train, held = split(0)
    for name, pairs in {"train": train, "swapped": swapped(1.0)(train, np.random.default_rng(0)), "eval": held}.items():
        formats.write(pairs, out / f"{name}.jsonl")
        print(out / f"{name}.jsonl")
    return {}


def once(out: Path, base: Path, name: str, seed: int, steps: int) -> dict[str, Any]:
    """Run a cause with a seed, or read what it gave before."""
    folder = out / f"{name}-{seed}"
    known = folder / "row.json"
    if known.is_file() and json.loads(known.read_text())["steps"] == steps:
        row: dict[str, Any] = json.loads(known.read_text())
        return row | {"doctor": opinion(Run(folder / "run"))}
    cause = CAUSES[name]
    model = base
    if cause.model is not None:
        model = folder / "start"
        shutil.copytree(base, model, dirs_exist_ok=True)
        cause.model(model)
    train, held = split(seed)
    rng = np.random.default_rng(seed)
    formats.write(cause.train(train, rng), folder / "train.jsonl")
    formats.write(cause.held_out(held, rng), folder / "eval.jsonl")
    given = {"model": str(model), "data": str(folder / "train.jsonl"), "eval_data": str(folder / "eval.jsonl")}
    given |= {"out": str(folder / "run"), "seed": seed} | SANE | {"max_steps": steps} | cause.settings
    with cause.around():
        run = training.train(recipe.load("dpo", None, given), fresh=True, console=Console(file=StringIO()))
    after = judged(run.folder, base)
    shutil.rmtree(run.checkpoints)
    row = {"cause": name, "seed": seed, "steps": steps, **measured(run), **after}
    known.write_text(json.dumps(row))
    return row


def judged(model: Path, base: Path) -> dict[str, float]:
    """Two answers at temperature 1 to each question that no pair contained, asked as the base model is used: the share
    in the preferred style, and the share that is right about the thing asked."""
    policy, tokenizer, prompts = (
        load_model(find_model(model)),
        load_tokenizer(find_model(base)),
        corpus.held_out_prompts(),
    )
    eos_ids = eos_ids_of(load_model(find_model(base)), tokenizer)
    encoder = Encoder(tokenizer, eos_ids=eos_ids)
    trunk = Trunk(policy, packed=False)
    rollouts, sampling = LocalRollouts(trunk.lm, Vocabulary(tuple(eos_ids))), Sampling(samples=2, max_new_tokens=32)
    ask = AnswerEvaluator(encoder.encode_prompts(prompts), prompts, encoder.decode, rollouts, sampling)
    rows = ask(trunk, None).rows
    asked, answers = [r["prompt"] for r in rows], [r["completion"] for r in rows]
    return {
        "preferred": float(np.mean(judge.encyclopedic(asked, answers))),
        "right": float(np.mean(judge.on_topic(asked, answers))),
    }


def measured(run: Run) -> dict[str, Any]:
    """Held-out changes from start to end, fitted changes of the training curves, whether either has the study's
    pattern, what the doctor says, and the held-out curves themselves."""
    rows = run.metrics
    evals = [r for r in rows if "eval_rewards/margins" in r]
    train = [r for r in rows if "rewards/margins" in r and r["step"]]
    steps = np.asarray([r["step"] for r in train])
    found: dict[str, Any] = {"doctor": opinion(run)}
    held, fitted = {}, {}
    for name in CURVES:
        held[name] = evals[-1][f"eval_rewards/{name}"] - evals[0][f"eval_rewards/{name}"]
        fitted[name] = float(np.polyfit(steps, [r[f"rewards/{name}"] for r in train], 1)[0] * np.ptp(steps))
    found |= held | {f"train_{k}": v for k, v in fitted.items()}
    found |= {
        "accuracy": evals[-1]["eval_rewards/accuracies"],
        "pattern": pattern(held),
        "train_pattern": pattern(fitted),
    }
    found["curves"] = {name: [[r["step"], r[f"eval_rewards/{name}"]] for r in evals] for name in CURVES}
    return found


def opinion(run: Run) -> list[str]:
    """What the report's doctor finds, the gravest first."""
    return [f.key for f in diagnose(run).findings]


def pattern(change: Mapping[str, float]) -> bool:
    """The study's: chosen, margin and accuracy fall, rejected stays flat (within `FLAT` of what chosen moves)."""
    falls = all(change[k] < 0 for k in ("chosen", "margins", "accuracies"))
    return falls and abs(change["rejected"]) <= FLAT * abs(change["chosen"])


# -- all runs ---------------------------------------------------------------------------------------------------------

SHARES = ("accuracies", "preferred", "right")


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """For each cause the mean over seeds with its 95% t interval, and how many seeds show the pattern."""
    found: dict[str, Any] = {}
    for name in dict.fromkeys(r["cause"] for r in rows):
        mine = [r for r in rows if r["cause"] == name]
        means = {}
        for key in (*CURVES, "preferred", "right"):
            m = Moments.of([r[key] for r in mine])
            low, high = m.interval() if len(mine) > 1 else (m.mean, m.mean)
            if key in ("preferred", "right"):
                low, high = max(0.0, low), min(1.0, high)
            means[key] = {"mean": m.mean, "low": low, "high": high}
        keys = [k for r in mine for k in r["doctor"]]
        found[name] = {
            "what": CAUSES[name].what,
            "seeds": len(mine),
            **means,
            "pattern": sum(r["pattern"] for r in mine),
            "train_pattern": sum(r["train_pattern"] for r in mine),
            "doctor": {k: keys.count(k) for k in dict.fromkeys(keys)},
        }
    return found


def table(found: Mapping[str, Any]) -> str:
    """The results in Markdown."""

    def cell(e: Mapping[str, float], key: str) -> str:
        by, sign, form = (
            (100, "" if key in ("preferred", "right") else "+", ".0f") if key in SHARES else (1, "+", ".2f")
        )
        mean, low, high = (f"{by * e[k]:{sign}{form}}" for k in ("mean", "low", "high"))
        return f"{mean} ({low} to {high})"

    before = found["before"]
    lines = [
        f"Before: {100 * before['preferred']:.0f}% in the preferred style, {100 * before['right']:.0f}% right",
        "",
        "| cause | chosen | rejected | margin | accuracy | style | right | pattern | training | doctor |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, c in found["causes"].items():
        cells = [cell(c[k], k) for k in (*CURVES, "preferred", "right")]
        counts = [f"{c[k]} of {c['seeds']}" for k in ("pattern", "train_pattern")]
        doctor = ", ".join(f"{k} {n}" for k, n in c["doctor"].items())
        lines.append(f"| `{name}`: {c['what']} | {' | '.join(cells + counts)} | {doctor} |")
    return "\n".join(lines)


def write(out: Path, found: Mapping[str, Any]) -> None:
    """``results.json``, ``rows.csv``, ``table.md``, ``curves.png``."""
    (out / "results.json").write_text(json.dumps(found, indent=1) + "\n")
    (out / "table.md").write_text(table(found) + "\n")
    with (out / "rows.csv").open("w", newline="") as f:
        columns = [k for k in found["rows"][0] if k != "curves"]
        writer = csv.DictWriter(f, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows({**r, "doctor": " ".join(r["doctor"])} for r in found["rows"])
    picture(found, out / "curves.png")


def picture(found: Mapping[str, Any], path: Path) -> None:
    """A row for each cause, a column for each curve; a line for each seed."""
    from matplotlib.figure import Figure

    causes = list(found["causes"])
    figure = Figure(figsize=(11, 1.5 * len(causes) + 0.6), layout="constrained")
    axes = figure.subplots(len(causes), len(CURVES), squeeze=False, sharex=True)
    for i, name in enumerate(causes):
        for j, curve in enumerate(CURVES):
            for r in (r for r in found["rows"] if r["cause"] == name):
                axes[i][j].plot(*zip(*r["curves"][curve], strict=True), color="C0", alpha=0.6, linewidth=1)
            axes[i][j].axhline(0.5 if curve == "accuracies" else 0, color="0.6", linewidth=0.6)
            axes[i][j].tick_params(labelsize=7)
        axes[i][3].set_ylim(-0.03, 1.03)
        axes[i][0].set_ylabel(name, fontsize=8)
    for j, curve in enumerate(CURVES):
        axes[0][j].set_title(f"held-out rewards/{curve}", fontsize=9)
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    main()
