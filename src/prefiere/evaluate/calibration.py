"""How right a reward model is, how well it knows how right it is, how much of that is length, and whether several
agree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from prefiere.asked.words.account import encoded
from prefiere.data import formats
from prefiere.data.schema import Demonstration, Judgement
from prefiere.evaluate.pairs import PairScores, Reading, paired
from prefiere.models.reward_model import RewardModel
from prefiere.run import called
from prefiere.stats import Estimate, clustered_mean
from prefiere.tokens.groups import GroupStore
from prefiere.tokens.truncation import EncodeReport

BINS, FEWEST = 10, 20
"""At most so many bins of equally many pairs, with so many in each at least (as far as there are)."""


def calibration(pairs: PairScores) -> dict[str, Any]:
    """What ``calibration.json`` holds, from scores whose differences are log-odds.

    accuracy, log_loss: mean, low, high, clustered by prompt. reliability: pairs in bins of how sure the model is that
    the answer it prefers is the preferred one (``predicted``, from 0.5 to 1), and how often it is (``observed``).
    ece: the mean distance of the two, weighted by pairs (Naeini et al. 2015). length: see `of_length`.
    """
    sure = 1 / (1 + np.exp(-np.abs(pairs.margins)))
    right = pairs.right()
    bins: list[dict[str, Any]] = []
    for members in _bins(sure):
        seen = clustered_mean(right[members], pairs.prompts[members], share=True)
        bins.append(
            {
                "low": float(sure[members].min()),
                "high": float(sure[members].max()),
                "predicted": float(sure[members].mean()),
                "observed": seen.mean,
                "observed_low": seen.low,
                "observed_high": seen.high,
                "n": len(members),
            }
        )
    return {
        "n": len(sure),
        "accuracy": as_list(pairs.accuracy()),
        "log_loss": as_list(clustered_mean(log_loss(pairs), pairs.prompts, share=False)),
        "ece": sum(b["n"] * abs(b["predicted"] - b["observed"]) for b in bins) / max(1, len(sure)),
        "reliability": bins,
        "length": of_length(pairs),
    }


def log_loss(pairs: PairScores) -> np.ndarray:
    """float64 [n]: -p log sigmoid(m) - (1 - p) log sigmoid(-m) in nats, m the difference of scores, p the label."""
    m, p = pairs.margins, pairs.labels
    loss: np.ndarray = p * np.logaddexp(0, -m) + (1 - p) * np.logaddexp(0, m)
    return loss


def of_length(pairs: PairScores) -> dict[str, Any]:
    """How far one comes by length alone, and how right the model is by how much longer the chosen answer is.

    baseline: always choosing the longer answer, or the shorter one, whichever is right more often on these pairs
    (``rule``). by_difference: accuracy in bins of tokens of chosen less rejected, ``low`` to ``high``.
    """
    difference = pairs.tokens[:, 0] - pairs.tokens[:, 1]
    longer = 0.5 + 0.5 * np.sign(difference)
    longer = pairs.labels * longer + (1 - pairs.labels) * (1 - longer)
    rule = "longer" if longer.mean() >= 0.5 else "shorter"
    bins = []
    for side in (-1, 0, 1):  # no bin holds differences of both signs
        own = np.flatnonzero(np.sign(difference) == side)
        for members in _bins(difference[own].astype(float), BINS // 3):
            chosen = own[members]
            seen = clustered_mean(pairs.right()[chosen], pairs.prompts[chosen], share=True)
            span = {"low": int(difference[chosen].min()), "high": int(difference[chosen].max())}
            bins.append({**span, "accuracy": as_list(seen), "n": len(chosen)})
    hit = longer if rule == "longer" else 1 - longer
    return {"baseline": as_list(clustered_mean(hit, pairs.prompts, share=True)), "rule": rule, "by_difference": bins}


def as_list(e: Estimate) -> list[float]:
    """Mean, low, high: for JSON."""
    return [e.mean, e.low, e.high]


def _bins(values: np.ndarray, most: int = BINS) -> Sequence[np.ndarray]:
    """Indices of the values in bins of about equal size, in order; equal values share a bin."""
    if not len(values):
        return []
    order = np.argsort(values, kind="stable")
    starts = [p[0] for p in np.array_split(np.arange(len(values)), max(1, min(most, len(values) // FEWEST)))]
    firsts = sorted({int(np.searchsorted(values[order], values[order[s]])) for s in starts})
    return np.split(order, firsts[1:])


# -- scoring a data set -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AnswerScores:
    """A score for each answer of unpaired data. scores: float64 [n]. desirable: bool [n], where the data says so.
    sources: where each was read (``file:line``). account: what was read, dropped and truncated."""

    scores: np.ndarray
    desirable: np.ndarray | None
    sources: list[str]
    account: dict[str, Any]

    def summary(self) -> dict[str, Any]:
        """Mean and spread, and for judged answers both means and how often a desirable one scores higher (AUC)."""
        found: dict[str, Any] = {"n": len(self.scores), "mean": _mean(self.scores), "std": float(self.scores.std())}
        if self.desirable is not None:
            good, bad = self.scores[self.desirable], self.scores[~self.desirable]
            higher = 0.5 + 0.5 * np.sign(good[:, None] - bad[None])
            found |= {"desirable": _mean(good), "undesirable": _mean(bad)}
            found["auc"] = float(higher.mean()) if higher.size else None
        return found


def _mean(x: np.ndarray) -> list[float]:
    return as_list(clustered_mean(x, np.arange(len(x)), share=False))


def score_data(
    model: RewardModel, data: str | Path, progress: Callable[[int], None] = lambda n: None, **reading: Unpack[Reading]
) -> PairScores | AnswerScores:
    """Score every answer of a data set: pairs where its layout holds any, else single answers.

    Raises ValueError where there is nothing to score.
    """
    options: Any = {"split": reading.get("data_split"), "columns": reading.get("columns")}
    options["on_bad"] = reading.get("on_bad", "content")
    holds = formats.read(data, kind="prompts", **options).layout.layout.holds
    if holds == "prompts":
        raise ValueError(f"{called(data)} holds prompts without answers: there is nothing to score")
    if holds in ("judgements", "demonstrations"):
        return _score_answers(model, formats.Records(data, holds, **options), progress)
    records = formats.read(data, kind="pairs", pairs_per_prompt=reading.get("pairs_per_prompt", "all"), **options)
    report = EncodeReport()
    store = GroupStore.build(model.encoder.encode(records, report), 2)
    if not len(store):
        raise ValueError(
            f"{called(data)} holds no pair to score ({records.counts}; {'; '.join(encoded(report.to_dict()))})"
        )
    account = {"data": called(data), "read": records.describe(), "tokens": report.to_dict()}
    return paired(store, model.score_groups(store, progress), account)


def _score_answers(model: RewardModel, records: Any, progress: Callable[[int], None]) -> AnswerScores:
    kept: list[Demonstration | Judgement] = list(records)
    if not kept:
        raise ValueError(f"there is no answer to score ({records.counts})")
    scores = model.score([r.prompt for r in kept], [r.completion for r in kept])
    progress(len(kept))
    judged = [r.desirable for r in kept if isinstance(r, Judgement)]
    account = {"read": records.describe(), "tokens": model.report.to_dict()}
    return AnswerScores(scores, np.asarray(judged) if judged else None, [r.source for r in kept], account)


def log_odds(pairs: PairScores, std: float) -> PairScores:
    """Normalised scores in the scale in which their differences are log-odds (``Normalisation.std``)."""
    return replace(pairs, scores=pairs.scores * std)


# -- several models ---------------------------------------------------------------------------------------------------


def aligned(several: Sequence[PairScores]) -> list[PairScores]:
    """The same pairs of each, in the first one's order: what one model's truncation dropped, none keeps."""
    named = [{key: i for i, key in enumerate(_numbered(p.sources))} for p in several]
    kept = [key for key in named[0] if all(key in names for names in named)]
    return [_select(p, [names[key] for key in kept]) for p, names in zip(several, named, strict=True)]


def _numbered(sources: Sequence[str]) -> list[tuple[str, int]]:
    seen: Counter[str] = Counter()
    out = []
    for source in sources:
        out.append((source, seen[source]))
        seen[source] += 1
    return out


def _select(p: PairScores, at: Sequence[int]) -> PairScores:
    i = np.asarray(at, np.int64)
    sources = [p.sources[j] for j in at]
    return PairScores(p.scores[i], p.tokens[i], p.labels[i], p.prompts[i], sources, p.account)


def ensemble(several: Sequence[PairScores]) -> PairScores:
    """The mean score of several models on aligned pairs."""
    return replace(several[0], scores=np.mean([p.scores for p in several], 0))


def model_disagreement(several: Sequence[PairScores]) -> dict[str, Any]:
    """How far apart models are on aligned pairs: the standard deviation of their margins, the share of pairs
    on which they choose different answers, and the accuracy of their mean on those and on the others."""
    margins = np.stack([p.margins for p in several])
    split = (np.sign(margins) != np.sign(margins[0])).any(0)
    mean = ensemble(several)

    def right(where: np.ndarray) -> list[float]:
        return as_list(clustered_mean(mean.right()[where], mean.prompts[where], share=True))

    return {
        "std": float(margins.std(0).mean()),
        "split": as_list(clustered_mean(split.astype(float), mean.prompts, share=True)),
        "accuracy_split": right(split),
        "accuracy_agreed": right(~split),
    }
