"""Can a small model that has read nothing but a few thousand dialogues learn which answers people found harmless?

    python examples/hh_harmless.py --data hh-harmless-test.jsonl.gz --out runs/hh

For each of k folds by conversation: a tokenizer and a Llama of random weights, `prefiere sft` and then `prefiere dpo`
(or, with ``--method reward``, `prefiere reward`) on the other folds, and the reward margins of the held-out pairs. All
folds together give accuracies with intervals clustered by conversation, beside baselines that read no word.
docs/hh-harmless.md has what came out.

The same command continues where it was stopped. No number is chosen on held-out pairs: settings were chosen with
``--inner``, which splits the first fold's training pairs again and leaves its held-out pairs alone.
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from prefiere import recipe
from prefiere.api import training
from prefiere.console import hush, progress
from prefiere.data import formats
from prefiere.data.audit import folds_by_prompt, prompt_key, text_length
from prefiere.data.schema import Demonstration, PreferencePair
from prefiere.demo.build import CHAT_TEMPLATE, make_tokenizer
from prefiere.evaluate.calibration import score_data
from prefiere.evaluate.pairs import PairScores, implicit_rewards, logps
from prefiere.models.reward_model import RewardModel
from prefiere.stats import Estimate, clustered_mean
from prefiere.tokens.template import messages

SFT: dict[str, Any] = {
    "completion_only_loss": False,
    "learning_rate": 4e-3,
    "batch_size": 16,
    "num_train_epochs": 2,
    "max_length": 512,
    "eval_size": 0,
    "sample_steps": 0,
}
"""From random weights: a higher learning rate and smaller batches than suit a model that can speak already."""
DPO: dict[str, Any] = {"num_train_epochs": 2, "learning_rate": 2e-4, "max_length": 512}
REWARD: dict[str, Any] = DPO


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run every fold, print the table, write ``scores.jsonl`` and ``results.json``; returns the latter."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", required=True, help="preference pairs, in any layout")
    p.add_argument("--out", required=True, type=Path)
    p.add_argument("--folds", type=int, default=5)
    p.add_argument("--seed", type=int, default=0, help="of folds, weights and training")
    p.add_argument("--inner", action="store_true", help="one split of the first fold's training pairs, to choose by")
    p.add_argument("--hidden", type=int, default=128)
    p.add_argument("--layers", type=int, default=3)
    p.add_argument("--vocabulary", type=int, default=2048)
    p.add_argument("--sft", nargs="*", default=[], metavar="KEY=VALUE", help="settings of prefiere sft")
    p.add_argument("--method", choices=["dpo", "reward"], default="dpo", help="what learns from the pairs")
    p.add_argument("--dpo", nargs="*", default=[], metavar="KEY=VALUE", help="settings of prefiere dpo")
    p.add_argument("--reward", nargs="*", default=[], metavar="KEY=VALUE", help="settings of prefiere reward")
    a = p.parse_args(arguments)
    hush()
    same_as_before(a)
    pairs = list(formats.read(a.data, kind="pairs"))
    keys = conversations(pairs)
    fold = folds_by_prompt(keys, a.folds, a.seed)
    if a.inner:
        kept = np.flatnonzero(fold != 0)
        pairs, keys = [pairs[i] for i in kept], keys[kept]
        fold = folds_by_prompt(keys, a.folds, a.seed + 1)
    rows: list[dict[str, Any]] = []
    for k in range(1 if a.inner else a.folds):
        held = np.flatnonzero(fold == k)
        scored = run_fold(a.out / f"fold-{k}", pairs, held, a)
        rows += [{"fold": k, "conversation": int(keys[held[i]]), **row} for i, row in scored]
    (a.out / "scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = results(rows)
    (a.out / "results.json").write_text(json.dumps(found, indent=2) + "\n")
    print(table(found))
    return found


def same_as_before(a: argparse.Namespace) -> None:
    """Raises SystemExit where the folder holds what other arguments gave."""
    a.out.mkdir(parents=True, exist_ok=True)
    path, text = a.out / "arguments.json", json.dumps(vars(a), default=str, indent=2) + "\n"
    if path.is_file() and path.read_text() != text:
        raise SystemExit(f"{a.out} holds results of other arguments ({path}). Choose another --out.")
    path.write_text(text)


# -- data and model ---------------------------------------------------------------------------------------------------


def conversations(pairs: Iterable[PreferencePair]) -> np.ndarray:
    """int64 [n]: which conversation a pair belongs to, by how it opens.

    Prompts of one conversation extend each other, so that different prompts are not yet different conversations.
    """
    return np.asarray([prompt_key(p.prompt if isinstance(p.prompt, str) else p.prompt[:1]) for p in pairs], np.int64)


def write_fold(folder: Path, pairs: Sequence[PreferencePair], held: np.ndarray) -> list[str]:
    """``train.jsonl`` and ``eval.jsonl`` (pairs), ``dialogues.jsonl`` (to read before); returns the texts read."""
    inside = set(held.tolist())
    train = [p for i, p in enumerate(pairs) if i not in inside]
    formats.write(train, folder / "train.jsonl")
    formats.write([pairs[i] for i in held], folder / "eval.jsonl")
    dialogues = [Demonstration(prompt=p.prompt, completion=c) for p in train for c in (p.chosen, p.rejected)]
    formats.write(dialogues, folder / "dialogues.jsonl")
    said = [m for p in train for text in (p.prompt, p.chosen, p.rejected) for m in messages(text, "user")]
    return list(dict.fromkeys(m.content for m in said))


def from_scratch(folder: Path, texts: Iterable[str], *, hidden: int, layers: int, vocabulary: int, seed: int) -> None:
    """A tokenizer fitted to these texts and a Llama of random weights, as a transformers folder."""
    tokenizer = make_tokenizer().train_new_from_iterator(texts, vocabulary, show_progress=False)
    tokenizer.chat_template = CHAT_TEMPLATE
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=max(1, hidden // 64),
        num_key_value_heads=max(1, hidden // 64),
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


# -- one fold ---------------------------------------------------------------------------------------------------------


def run_fold(
    folder: Path, pairs: Sequence[PreferencePair], held: np.ndarray, a: argparse.Namespace
) -> list[tuple[int, dict[str, Any]]]:
    """Train on all but the held-out pairs; for each of these its place in ``held`` and its scores."""
    folder.mkdir(parents=True, exist_ok=True)
    start = folder / "scratch"
    if not (start / "tokenizer_config.json").is_file():
        texts = write_fold(folder, pairs, held)
        from_scratch(start, texts, hidden=a.hidden, layers=a.layers, vocabulary=a.vocabulary, seed=a.seed)
    base = train("sft", start, folder / "dialogues.jsonl", folder / "sft", SFT | {"seed": a.seed}, a.sft)
    given, more = (DPO, a.dpo) if a.method == "dpo" else (REWARD, a.reward)
    given = given | {"seed": a.seed, "eval_data": str(folder / "eval.jsonl")}
    tuned = train(a.method, base, folder / "train.jsonl", folder / a.method, given, more)
    length = recipe.load(a.method, tuned / "recipe.yaml").max_length
    read = logps(base, folder / "eval.jsonl", max_length=length)
    learnt = (
        implicit_rewards(tuned, folder / "eval.jsonl")
        if a.method == "dpo"
        else scored(tuned, folder / "eval.jsonl", length)
    )
    assert read.sources == learnt.sources
    place = [int(source.rpartition(":")[2]) - 1 for source in learnt.sources]
    return [(i, scores_of(pairs[held[i]], read, learnt, at, a.method)) for at, i in enumerate(place)]


def scored(run: Path, data: Path, max_length: int) -> PairScores:
    """What a reward model says of pairs."""
    found = score_data(RewardModel.load(run, max_length=max_length), data)
    assert isinstance(found, PairScores)
    return found


def train(method: str, model: Path, data: Path, out: Path, given: Mapping[str, Any], more: Sequence[str]) -> Path:
    """Run ``prefiere sft``, ``dpo`` or ``reward``, and say which command that is; returns the run's folder."""
    overrides = [*(f"{k}={json.dumps(v) if isinstance(v, bool) else v}" for k, v in given.items()), *more]
    flags = {"model": str(model), "data": str(data), "out": str(out)}
    print("$", shlex.join(["prefiere", method, *(f"--{k}={v}" for k, v in flags.items()), *overrides]), flush=True)
    run = training.train(recipe.load(method, None, flags, overrides), console=progress())
    if run.status["state"] != "finished":
        raise SystemExit(f"{out} stopped at step {run.status['step']}: {run.status['reason']}")
    return out


def scores_of(pair: PreferencePair, read: PairScores, learnt: PairScores, at: int, method: str) -> dict[str, Any]:
    """What each way of choosing says about a pair: above 0, the chosen answer."""
    tokens = learnt.tokens[at]
    row = {
        "characters": text_length(pair.rejected) - text_length(pair.chosen),
        "sft": float(read.margins[at]),
        "sft_per_token": float(np.diff(-read.scores[at] / tokens)[0]),
        method: float(learnt.margins[at]),
        "source": pair.source,
    }
    return row | ({"dpo_per_token": float(np.diff(-learnt.scores[at] / tokens)[0])} if method == "dpo" else {})


# -- all folds --------------------------------------------------------------------------------------------------------

WAYS = {
    "characters": "the shorter answer",
    "sft": "log-prob before",
    "sft_per_token": "log-prob before, per token",
    "dpo": "DPO's reward",
    "dpo_per_token": "DPO's reward, per token",
    "reward": "the reward model's score",
}


def right(margins: np.ndarray) -> np.ndarray:
    """1 where the margin is above 0, 0.5 where it is 0."""
    return 0.5 * (1 + np.sign(margins))


def results(rows: Sequence[Mapping[str, Any]], ways: Iterable[str] = WAYS) -> dict[str, Any]:
    """Accuracy of each way of choosing, and how much of it is length; intervals are clustered by conversation.

    rows: what each way of choosing says of a pair. ``over_shorter`` is the paired difference to choosing the shorter
    answer. ``shorter`` and ``longer`` are the accuracies where people chose the shorter or the longer answer,
    ``balanced`` is the mean of both: 1/2 for whatever goes by length alone.
    """
    clusters = np.asarray([r["conversation"] for r in rows])
    shorter = np.asarray([r["characters"] for r in rows])
    baseline = right(shorter)
    sides = {"shorter": shorter > 0, "longer": shorter < 0}
    balance = sum((mask / mask.sum() for mask in sides.values()), np.zeros(len(rows)))
    found: dict[str, Any] = {"pairs": len(rows), "conversations": len(np.unique(clusters)), "ways": {}}
    for name in (n for n in ways if n in rows[0]):
        margins = np.asarray([r[name] for r in rows])
        hit = right(margins)
        found["ways"][name] = {
            "accuracy": plain(clustered_mean(hit, clusters, share=True)),
            "over_shorter": plain(clustered_mean(hit - baseline, clusters, share=False)),
            "balanced": plain(clustered_mean(hit, clusters, weights=balance, share=True)),
            **{side: plain(clustered_mean(hit[m], clusters[m], share=True)) for side, m in sides.items()},
            "correlation_with_length": float(np.corrcoef(margins, shorter)[0, 1]),
        }
    return found


def plain(e: Estimate) -> dict[str, float]:
    """An estimate for JSON."""
    return {"mean": e.mean, "low": e.low, "high": e.high, "n": e.n, "clusters": e.clusters}


def table(found: Mapping[str, Any], ways: Mapping[str, str] = WAYS) -> str:
    """The results in Markdown, each way of choosing by its name in words."""

    def cell(e: Mapping[str, float], sign: str = "") -> str:
        return f"{100 * e['mean']:{sign}.1f} ({100 * e['low']:{sign}.1f} to {100 * e['high']:{sign}.1f})"

    lines = [
        f"{found['pairs']:,} pairs of {found['conversations']:,} conversations; per cent right, 95% intervals",
        "",
        "| chosen by | accuracy | over the shorter | shorter chosen | longer chosen | mean of the two |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, w in found["ways"].items():
        gain = "" if name == "characters" else cell(w["over_shorter"], "+")
        parts = [ways[name], cell(w["accuracy"]), gain, cell(w["shorter"]), cell(w["longer"]), cell(w["balanced"])]
        lines.append(f"| {' | '.join(parts)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
