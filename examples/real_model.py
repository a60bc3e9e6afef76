"""What does alignment do to a real model, on people's own preferences and two processor cores?

    python examples/real_model.py --model SmolLM2-135M-Instruct --data hh-harmless-test.jsonl.gz --out runs/real

The conversations are cut into two halves. On each half a reward model (all weights, and LoRA) and a DPO run learn, and
the pairs of the other half say how often each is right. Then two policies that learnt from the second half, by DPO and
by PPO against its reward model, answer prompts of the first half before and after. The judge is the reward model of the
first half, which saw nothing that they learnt from. docs/real-model.md has what came out.

The same command continues where it was stopped.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import hh_harmless as hh
import numpy as np

from prefiere.console import hush
from prefiere.data import formats
from prefiere.data.audit import folds_by_prompt, text_length
from prefiere.data.schema import PreferencePair
from prefiere.doctor.diagnose import diagnose
from prefiere.evaluate.compare import Compared, ask_both
from prefiere.evaluate.pairs import implicit_rewards, logps
from prefiere.files import write_text
from prefiere.run import Run
from prefiere.sample.sampling import Sampling

LENGTH = 512
LEARN: dict[str, tuple[str, dict[str, Any]]] = {
    "reward": ("reward", {"lora": False}),
    "reward-lora": ("reward", {"lora": True}),
    "dpo": ("dpo", {"lora": True}),
}
"""What learns from a half, by its folder: the method, and what differs from its defaults."""
WAYS = {
    "characters": "the shorter answer",
    "before": "log-prob before",
    "before_per_token": "log-prob before, per token",
    "reward": "reward model, all weights",
    "reward-lora": "reward model, LoRA",
    "dpo": "DPO's reward, LoRA",
}


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Learn, measure, answer; print the tables, write ``results.json`` and ``answers.json``; returns the former."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", required=True, help="a chat model of some hundred million parameters")
    p.add_argument("--data", required=True, help="preference pairs, in any layout")
    p.add_argument("--out", required=True, type=Path)
    p.add_argument("--pairs", type=int, help="use so many pairs at most, drawn by conversation; without: all")
    p.add_argument("--prompts", type=int, default=200, help="prompts to answer before and after")
    p.add_argument("--new-tokens", type=int, default=48, help="of an answer")
    p.add_argument("--steps", type=int, default=24, help="updates of PPO")
    p.add_argument("--batch", type=int, default=16, help="pairs or prompts of an update")
    p.add_argument("--seed", type=int, default=0)
    a = p.parse_args(arguments)
    hush()
    hh.same_as_before(a)
    rows = learn(a)
    found = hh.results(rows, WAYS)
    print(hh.table(found, WAYS), flush=True)
    compared = answer(a)
    found["answers"] = {name: judged(c) for name, c in compared.items()}
    found["runs"] = {
        f"{f.parent.parent.name}/{f.parent.name}": diagnose(Run(f.parent)).headline for f in runs_of(a.out)
    }
    shown = {name: [asdict(pair) for pair in c.pairings] for name, c in compared.items()}
    (a.out / "answers.json").write_text(json.dumps(shown, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (a.out / "results.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    for name, c in compared.items():
        print(f"\n{name}: {c}")
    for name, headline in found["runs"].items():
        print(f"{name}: {headline}")
    return found


def runs_of(out: Path) -> list[Path]:
    """The recipes of all runs below a folder."""
    return sorted(out.glob("half-*/*/recipe.yaml"))


# -- which answer people chose ----------------------------------------------------------------------------------------


def learn(a: argparse.Namespace) -> list[dict[str, Any]]:
    """Train on each half; what every way of choosing says of the pairs of the other."""
    pairs = list(formats.read(a.data, kind="pairs"))
    keys = hh.conversations(pairs)
    half = folds_by_prompt(keys, 2, a.seed)
    kept = drawn(keys, a.pairs, a.seed)
    rows = []
    for k in (0, 1):
        held = [pairs[i] for i in kept if half[i] == k]
        clusters = [int(keys[i]) for i in kept if half[i] == k]
        train = [pairs[i] for i in kept if half[i] != k]
        scores = learn_half(a.out / f"half-{k}", train, held, a)
        for i, pair in enumerate(held):
            row = {name: float(margins[i]) for name, margins in scores.items()}
            shorter = text_length(pair.rejected) - text_length(pair.chosen)
            rows.append({"conversation": clusters[i], "characters": shorter, **row})
    return rows


def drawn(keys: np.ndarray, count: int | None, seed: int) -> list[int]:
    """Places of about ``count`` pairs, ascending: whole conversations, drawn by a seed."""
    names, sizes = np.unique(keys, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(names))
    within = np.cumsum(sizes[order]) <= (count or len(keys))
    return np.flatnonzero(np.isin(keys, names[order][within])).tolist()


def learn_half(
    folder: Path, train: Sequence[PreferencePair], held: Sequence[PreferencePair], a: argparse.Namespace
) -> dict[str, Sequence[float]]:
    """Train on some pairs; [n] margins of each held-out pair, by way of choosing."""
    folder.mkdir(parents=True, exist_ok=True)
    data, unseen = folder / "train.jsonl", folder / "eval.jsonl"
    if not unseen.is_file():
        formats.write(train, data)
        formats.write(held, unseen)
    found = measured(folder / "before.json", lambda: before(a.model, unseen))
    sources = found.pop("sources")
    for name, (method, settings) in LEARN.items():
        run = hh.train(method, Path(a.model), data, folder / name, settings | shared(method, a), [])
        scores = measured(folder / f"{name}.json", lambda run=run, method=method: after(run, method, unseen))
        if scores["sources"] != sources:
            raise SystemExit(f"{run} and {a.model} do not score the same pairs of {unseen}")
        found[name] = scores["margins"]
    if len(sources) != len(held):
        raise SystemExit(f"{unseen} has {len(held)} pairs, of which {len(sources)} can be read")
    return found


def before(model: str, unseen: Path) -> dict[str, Any]:
    """Margins of the model as it was, in all and per token."""
    said = logps(model, unseen, max_length=LENGTH)
    per_token = np.diff(-said.scores / said.tokens, axis=1)[:, 0]
    return {"sources": said.sources, "before": said.margins.tolist(), "before_per_token": per_token.tolist()}


def after(run: Path, method: str, unseen: Path) -> dict[str, Any]:
    """Margins of what learnt."""
    scores = hh.scored(run, unseen, LENGTH) if method == "reward" else implicit_rewards(run, unseen)
    return {"sources": scores.sources, "margins": scores.margins.tolist()}


def measured(path: Path, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What was measured once, kept beside the runs: on two cores it takes minutes."""
    if not path.is_file():
        write_text(path, json.dumps(measure()) + "\n")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def shared(method: str, a: argparse.Namespace) -> dict[str, Any]:
    """Settings of a method's runs, which validate and sample at the start and the end only."""
    often = {"eval_size": 2 * a.batch, "eval_steps": 1000}
    if method != "reward":
        often |= {"sample_steps": 1000, "sample_prompts": 16, "max_new_tokens": a.new_tokens}
    return often | {"max_length": LENGTH, "batch_size": a.batch, "seed": a.seed}


# -- what the models say ----------------------------------------------------------------------------------------------


def answer(a: argparse.Namespace) -> dict[str, Compared]:
    """PPO against the second half's reward model; DPO's and PPO's answers before and after, by the first half's."""
    home, judge = a.out / "half-0", str(a.out / "half-1" / "reward")
    given = {"reward": str(home / "reward-lora"), "lora": True, "max_steps": a.steps, "on_bad": "drop"}  # long prompts
    ppo = hh.train("ppo", Path(a.model), home / "train.jsonl", home / "ppo", given | shared("ppo", a), [])
    sampling = Sampling(max_new_tokens=a.new_tokens, seed=a.seed)
    return {
        name: ask_both(a.model, run, sampling=sampling, prompts=home / "eval.jsonl", judge=judge, limit=a.prompts)
        for name, run in (("dpo", home / "dpo"), ("ppo", ppo))
    }


def judged(c: Compared) -> dict[str, Any]:
    """Scores before and after and what was gained, for JSON."""
    assert c.score_before is not None
    assert c.score_after is not None
    assert c.gain is not None
    means = {"before": c.score_before, "after": c.score_after, "gain": c.gain}
    counts = {"won": c.wins, "lost": c.losses, "tied": c.ties, "p_value": c.p_value}
    return {name: hh.plain(e) for name, e in means.items()} | counts | {"signals": c.signals}


if __name__ == "__main__":
    main()
