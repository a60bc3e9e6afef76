"""What reward models say of a data set, and what that is worth: for `prefiere.score` and ``prefiere score``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prefiere.asked.language import in_words
from prefiere.asked.words.account import happened, notes_said
from prefiere.console import Display
from prefiere.evaluate import calibration
from prefiere.evaluate.calibration import AnswerScores
from prefiere.evaluate.pairs import PairScores
from prefiere.files import write_text
from prefiere.kernels.memory import within_memory
from prefiere.models.reward_model import RewardModel
from prefiere.models.source import ModelError
from prefiere.run import called


@dataclass(frozen=True)
class Scores:
    """Scores of a data set. models: of each model (and of several, ``their mean``), accuracy, log loss, calibration and
    length on pairs, or means and AUC of single answers. disagreement: of several models on pairs. account: what was
    read, dropped and truncated. rows: one for each pair or answer."""

    data: str
    models: dict[str, dict[str, Any]]
    disagreement: dict[str, Any] | None
    account: dict[str, Any]
    rows: list[dict[str, Any]]
    pairs: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain values, without the rows."""
        apart = {} if self.disagreement is None else {"disagreement": self.disagreement}
        return {"data": self.data, "models": self.models, **apart, "account": self.account}

    def to_frame(self) -> Any:
        """The rows as a pandas DataFrame."""
        import pandas as pd

        return pd.DataFrame(self.rows)

    def write(self, path: Path) -> None:
        """The rows as JSONL."""
        write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows))


def scores_of_data(models: Sequence[str], data: str, *, trust: bool, display: Display, **reading: Any) -> Scores:
    """Score a data set with each model and, where there are several, with their mean.

    Raises ValueError where models or data cannot be used.
    """
    if len(set(models)) < len(models):
        raise ModelError("a reward model is named twice: name each once")
    found: dict[str, PairScores | AnswerScores] = {}
    scales: dict[str, float] = {}
    for name in models:
        found[name], scales[name] = _one(name, data, trust, display, reading)
    account = next(iter(found.values())).account
    pairs = {n: f for n, f in found.items() if isinstance(f, PairScores)}
    if not pairs:
        answers = {n: f for n, f in found.items() if isinstance(f, AnswerScores)}
        told = {name: a.summary() for name, a in answers.items()}
        return Scores(called(data), told, None, account, answer_rows(answers), False)
    aligned = dict(zip(pairs, calibration.aligned(list(pairs.values())), strict=True))
    odds = {name: calibration.log_odds(p, scales[name]) for name, p in aligned.items()}
    apart = calibration.model_disagreement(list(odds.values())) if len(odds) > 1 else None
    if len(odds) > 1:
        odds["their mean"] = calibration.ensemble(list(odds.values()))
    told = {name: _spread(aligned.get(name)) | calibration.calibration(p) for name, p in odds.items()}
    return Scores(called(data), told, apart, account, pair_rows(aligned), True)


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
    with display.phase(in_words("progress.scoring", model=name)):
        scored = calibration.score_data(model, data, **reading)
    tokens = scored.account["tokens"]
    for line in [*(what for what, _ in happened(tokens)), *notes_said(tokens)]:
        display.say(f"{name}: {line}")
    return scored, model.normalisation.std


def _spread(p: PairScores | None) -> dict[str, Any]:
    return {} if p is None else {"mean": float(p.scores.mean()), "std": float(p.scores.std())}


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
