"""What ``prefiere score`` does: scores of one or several reward models, and what they are worth on pairs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from prefiere.console import Display, table
from prefiere.evaluate import calibration
from prefiere.evaluate.calibration import AnswerScores
from prefiere.evaluate.pairs import PairScores
from prefiere.files import write_text
from prefiere.kernels.memory import within_memory
from prefiere.models.reward_model import RewardModel
from prefiere.models.source import ModelError
from prefiere.tokens.truncation import WHAT


def score(
    models: Sequence[str],
    data: str,
    *,
    out: Path | None,
    trust: bool,
    display: Display,
    console: Console,
    **reading: Any,
) -> dict[str, Any]:
    """Score a data set with each model and, where there are several, with their mean; show it, and write ``out``.

    Returns what was shown, for --json. Raises ValueError where models or data cannot be used.
    """
    if len(set(models)) < len(models):
        raise ModelError("a reward model is named twice: name each once")
    found: dict[str, PairScores | AnswerScores] = {}
    scales: dict[str, float] = {}
    for name in models:
        found[name], scales[name] = _one(name, data, trust, display, reading)
    pairs = {n: f for n, f in found.items() if isinstance(f, PairScores)}
    result = _pairs(pairs, scales, console) if pairs else _answers(found, console)  # type: ignore[arg-type]
    first = next(iter(found.values()))
    result["account"] = first.account
    if out is not None:
        rows = pair_rows(pairs) if pairs else answer_rows(found)  # type: ignore[arg-type]
        write_text(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        console.print(f"{len(rows):,} rows: {out}", markup=False)
    return {"data": data, **result, "out": out}


@within_memory("scoring", "set a smaller max_length, or take a smaller model")
def _one(
    name: str, data: str, trust: bool, display: Display, reading: dict[str, Any]
) -> tuple[PairScores | AnswerScores, float]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    on_bad, longest = reading.get("on_bad", "content"), reading.get("max_length")
    kwargs = reading.get("template_kwargs")
    model = RewardModel.load(
        name,
        device=device,
        dtype=dtype,
        trust=trust,
        on_bad=on_bad,
        max_length=longest,
        template_kwargs=kwargs,
        notice=display.say,
    )
    with display.phase(f"scoring with {name}"):
        scored = calibration.score_data(model, data, **reading)
    tokens = scored.account["tokens"]
    dropped = [f"{tokens[what]['count']:,} {words}" for what, words in WHAT.items() if tokens[what]["count"]]
    for line in [*dropped, *tokens["notes"]]:
        display.say(f"{name}: {line}")
    return scored, model.normalisation.std


# -- pairs ------------------------------------------------------------------------------------------------------------


def _pairs(found: dict[str, PairScores], scales: dict[str, float], console: Console) -> dict[str, Any]:
    aligned = dict(zip(found, calibration.aligned(list(found.values())), strict=True))
    for name, kept in aligned.items():
        found[name] = kept
    odds = {name: calibration.log_odds(p, scales[name]) for name, p in aligned.items()}
    if len(odds) > 1:
        odds["their mean"] = calibration.ensemble(list(odds.values()))
    described = {name: _spread(aligned.get(name)) | calibration.calibration(p) for name, p in odds.items()}
    rows = [
        (n, _share(d["accuracy"]), _figure(d["log_loss"]), f"{d['ece']:.3f}", _normal(d)) for n, d in described.items()
    ]
    some = next(iter(described.values()))
    console.print(table(f"{some['n']:,} pairs", ("", "right", "log loss", "ECE", "score: mean, std"), rows))
    length = some["length"]
    console.print(f"always choosing the {length['rule']} answer: {_share(length['baseline'])} right", markup=False)
    last = list(described)[-1]
    console.print(_by_length(described[last], last))
    console.print(_reliability(described[last], last))
    result: dict[str, Any] = {"models": described}
    if len(found) > 1:
        apart = calibration.model_disagreement([odds[n] for n in found])
        result["disagreement"] = apart
        console.print(f"the models choose different answers in {_share(apart['split'])} of the pairs", markup=False)
        console.print(
            f"their mean is right in {_share(apart['accuracy_agreed'])} where they agree, "
            f"in {_share(apart['accuracy_split'])} where they do not",
            markup=False,
        )
    return result


def _spread(p: PairScores | None) -> dict[str, Any]:
    return {} if p is None else {"mean": float(p.scores.mean()), "std": float(p.scores.std())}


def _normal(described: dict[str, Any]) -> str:
    return f"{described['mean']:.2f}, {described['std']:.2f}" if "mean" in described else ""


def _by_length(described: dict[str, Any], name: str) -> Any:
    rows = [
        (f"{b['low']:+d} to {b['high']:+d}", _share(b["accuracy"]), b["n"])
        for b in described["length"]["by_difference"]
    ]
    return table(f"{name}: by tokens of chosen less rejected", ("longer by", "right", "pairs"), rows)


def _reliability(described: dict[str, Any], name: str) -> Any:
    rows = [
        (
            f"{b['low']:.0%} to {b['high']:.0%}",
            f"{b['predicted']:.1%}",
            _share([b["observed"], b["observed_low"], b["observed_high"]]),
            b["n"],
        )
        for b in described["reliability"]
    ]
    return table(f"{name}: how sure, and how right", ("sure", "on average", "right", "pairs"), rows)


def _share(e: Sequence[float]) -> str:
    return f"{e[0]:.1%} [{e[1]:.1%}, {e[2]:.1%}]"


def _figure(e: Sequence[float]) -> str:
    return f"{e[0]:.3f} [{e[1]:.3f}, {e[2]:.3f}]"


def pair_rows(found: dict[str, PairScores]) -> list[dict[str, Any]]:
    """One row for each pair: its scores (of several models: their mean, how far apart they are, and each one's)."""
    scores = np.stack([p.scores for p in found.values()])
    some = next(iter(found.values()))
    rows = []
    for i, source in enumerate(some.sources):
        a, b = (float(x) for x in scores[:, i].mean(0))
        row: dict[str, Any] = {"source": source, "label": float(some.labels[i]), "chosen": a, "rejected": b}
        row |= {"margin": a - b, "tokens": [int(t) for t in some.tokens[i]]}
        if len(found) > 1:
            row["disagreement"] = float((scores[:, i, 0] - scores[:, i, 1]).std())
            row["models"] = {n: [float(x) for x in scores[m, i]] for m, n in enumerate(found)}
        rows.append(row)
    return rows


# -- single answers ---------------------------------------------------------------------------------------------------


def _answers(found: dict[str, AnswerScores], console: Console) -> dict[str, Any]:
    described = {name: a.summary() for name, a in found.items()}
    judged = "auc" in next(iter(described.values()))
    columns = ["", "mean", "std", *(("desirable", "undesirable", "AUC") if judged else ())]
    rows = []
    for name, d in described.items():
        more = [_figure(d["desirable"]), _figure(d["undesirable"]), f"{d['auc']:.3f}"] if judged else []
        rows.append([name, _figure(d["mean"]), f"{d['std']:.3f}", *more])
    console.print(table(f"{next(iter(described.values()))['n']:,} answers", columns, rows))
    return {"models": described}


def answer_rows(found: dict[str, AnswerScores]) -> list[dict[str, Any]]:
    """One row for each answer: its score (of several models: their mean, how far apart they are, and each one's)."""
    scores = np.stack([a.scores for a in found.values()])
    some = next(iter(found.values()))
    rows = []
    for i, source in enumerate(some.sources):
        row: dict[str, Any] = {"source": source, "score": float(scores[:, i].mean())}
        if some.desirable is not None:
            row["label"] = bool(some.desirable[i])
        if len(found) > 1:
            row["disagreement"] = float(scores[:, i].std())
            row["models"] = {n: float(scores[m, i]) for m, n in enumerate(found)}
        rows.append(row)
    return rows
