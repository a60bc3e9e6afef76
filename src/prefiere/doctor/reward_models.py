"""What can be read off a reward model: whether its scores order answers as people do, and for which reason.

A reward model is not the end but the measure that a policy will be pushed against: a fault here becomes a habit there.
Each check is one function, as in curves.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prefiere.asked.language import Worded
from prefiere.doctor.case import Case, Finding
from prefiere.doctor.remedies import Remedy
from prefiere.doctor.rules import labels
from prefiere.doctor.series import Change, Level
from prefiere.doctor.standstill import FEW_HELD_OUT, gained, pairs_needed, unseen_ones
from prefiere.doctor.words import interval, line, number, with_interval
from prefiere.stats import float_of, wilson

ACCURACY = "rewards/accuracies"


def level(triple: Any, n: Any = 0) -> Level | None:
    """``[mean, low, high]`` of calibration.json; None where it is missing or holds no number."""
    if not isinstance(triple, Sequence) or isinstance(triple, str) or len(triple) != 3 or not _number(triple[0]):
        return None
    mean, low, high = (float(v) if _number(v) else math.nan for v in triple)
    return Level(mean, low, high, n if isinstance(n, int) else 0)


def bins(case: Case, *path: str) -> list[Mapping[str, Any]]:
    """The bins at a place of calibration.json that have bounds."""
    found: Any = case.calibration
    for key in path:
        found = found.get(key) if isinstance(found, Mapping) else None
    listed = found if isinstance(found, list) else []
    return [b for b in listed if isinstance(b, Mapping) and _number(b.get("low")) and _number(b.get("high"))]


def accuracy(case: Case) -> Level | None:
    """Held-out accuracy: of calibration.json, else of the curve's end."""
    measured = level(case.calibration.get("accuracy"), case.calibration.get("n"))
    if measured is None and len(series := case.series(f"eval_{ACCURACY}")):
        measured = series.end
    return measured


def baseline(case: Case) -> tuple[str, Level] | None:
    """``longer`` or ``shorter``, and how often always choosing that answer is right."""
    length = case.calibration.get("length")
    if not isinstance(length, Mapping) or (right := level(length.get("baseline"))) is None:
        return None
    return "shorter" if length.get("rule") == "shorter" else "longer", right


def scores_learnt(case: Case) -> Finding | None:
    """Held-out accuracy is above chance beyond its interval."""
    right = accuracy(case)
    trained = case.change(ACCURACY)
    if right is None:
        if trained is None or not trained.after.above(0.5):
            return None
        key, share = ACCURACY, f"{with_interval(trained.after, ACCURACY)} of the time on its training comparisons"
    elif right.above(0.5):
        key, on = f"eval_{ACCURACY}", unseen_ones(case, "comparisons")
        share = f"{with_interval(right, ACCURACY)} of the time on {on}"
    else:
        return None
    return gained(
        case,
        "The reward model learnt the preferences",
        f"it scores the preferred answer higher {share}",
        key,
        "Choosing at random is right half the time. Two people who judge the same pair agree about three times in "
        "four, so on people's judgements nothing gets near 100%.",
        (*_evidence(case, ACCURACY, "rewards/margins", "loss"), *_length(case)),
    )


def chance(case: Case) -> Finding | None:
    """Held-out accuracy is not above one half, or is below it."""
    right = accuracy(case)
    if right is None or not right.known or right.low > 0.5:
        return None
    if right.below(0.5):
        return Finding(
            "inverted",
            "It scores the rejected answer higher: wrong more often than right.",
            "bad",
            "No reward model gets there by chance. The labels of training and held-out data contradict each other, or "
            "chosen and rejected are swapped in one of them.",
            _evidence(case, ACCURACY, "rewards/margins"),
            (Remedy("`prefiere data`: check that `chosen` is the better answer in both files"),),
        )
    half = right.mean - right.low
    needed = ""
    if right.n and right.mean > 0.5:
        needed = f" If its {number(right.mean, ACCURACY)} is the truth, it takes about "
        needed += f"{pairs_needed(right.n, half, right.mean - 0.5):,} held-out pairs instead of {right.n:,} to tell."
    trained = case.end(ACCURACY)
    by_heart = trained is not None and trained.mean > right.high
    return Finding(
        "chance",
        "It cannot be told from a coin flip: it scores the preferred answer higher "
        f"{with_interval(right, ACCURACY)} of the time.",
        "warning",
        ("It knows its training pairs, and that does not carry over to others. " if by_heart else "")
        + "A policy that is trained on such a reward learns noise."
        + needed,
        _evidence(case, ACCURACY, "rewards/margins", "loss"),
        (
            *((Remedy("fewer num_train_epochs, or early_stopping_patience=3"),) if by_heart else _bolder(case)),
            Remedy("a model that has read text like this first (`prefiere sft` on the preferred answers)"),
            Remedy("more pairs, and a larger eval_size"),
        ),
    )


def mostly_length(case: Case) -> Finding | None:
    """No better than the rule of length; or wrong more often than right where that rule is wrong. As information where
    the pairs cannot tell (`_undecided`)."""
    right, length = accuracy(case), case.calibration.get("length")
    if right is None or not isinstance(length, Mapping) or not right.above(0.5) or labels.swapped(case):
        return None  # at chance it measures nothing; among swapped labels neither it nor the rule can be right
    rule = "shorter" if length.get("rule") == "shorter" else "longer"
    always, against = baseline(case), _against(case, rule)
    blind = against is not None and against.below(0.5)
    no_better = always is not None and right.known and _touch(right, always[1])
    if not (blind or no_better) or right.below(0.5):
        return None
    seen = (*_evidence(case, ACCURACY), *_length(case))
    if against is not None:
        seen = (*seen, line(f"right_if_not_{rule}", share=interval(against, ACCURACY)))
    if not blind and always is not None and _undecided(right, always[1]):
        return _length_or_quality(rule, seen)
    title = "It measures length more than quality."
    if no_better and always is not None:
        title = f"Choosing the {rule} answer would do as well."
        if right.mean > always[1].mean:
            title = f"It is not shown to do better than choosing the {rule} answer."
    if blind and no_better:
        title = f"It measures length: choosing the {rule} answer would do as well."
    return Finding(
        "mostly_length",
        title,
        "bad" if blind and no_better else "warning",
        f"In this data the preferred answer is often the {rule} one, and the model has learnt "
        + ("little else. " if blind else "nothing that is shown to go beyond it. ")
        + f"A policy that is trained on it will write ever {rule} answers, whatever they say.",
        seen,
        (SIMILAR, *_MORE_THAN_LENGTH),
    )


SIMILAR = Remedy("pairs of answers of similar length")
_MORE_THAN_LENGTH = (
    Remedy("`prefiere data`: see how often the chosen answer is the longer one"),
    Remedy("a larger model to start from, or one that has read text like this first"),
)


def _undecided(right: Level, rule: Level) -> bool:
    """Whether a model that is as good as the rule of length cannot be told from it: the rule is wrong too rarely, or
    so few pairs were measured that the model may well be better by a tenth of them."""
    few = right.n > 0 and (1 - rule.mean) * right.n < FEW_HELD_OUT
    return (few and not right.below(rule.mean)) or Change(rule, right).may_rise(0.1)


def _length_or_quality(rule: str, seen: tuple[Worded, ...]) -> Finding:
    return Finding(
        "mostly_length",
        f"Whether it measures quality or length cannot be told: choosing the {rule} answer may be right as often.",
        "info",
        f"To know what it looks at takes more held-out pairs in which the {rule} answer is not the preferred one.",
        seen,
        (SIMILAR, Remedy("a larger eval_size, so that a smaller change can be seen")),
        said_as="length_or_quality",
    )


def saturated(case: Case) -> Finding | None:
    """Margins above 5 (a certainty of 99.3%) while more than one held-out pair in twenty is wrong."""
    margin, right = case.seen("rewards/margins"), accuracy(case)
    if margin is None or right is None or not right.below(0.95) or not margin.change.after.above(5.0):
        return None
    return Finding(
        "saturated",
        "Its scores are far too sure of themselves: the margins saturate.",
        "warning",
        "At a margin of 5 the model claims to be right 99 times in 100. It is not, so the distance between two scores "
        "says nothing, and a policy is paid ever more for what is no better.",
        _evidence(case, "rewards/margins", ACCURACY, "loss"),
        (
            Remedy("fewer num_train_epochs: one pass is usual for a reward model"),
            *((case.usual(odd),) if (odd := case.odd(1)) else (case.rate_times(0.3),)),
            Remedy("label_smoothing=0.05, which keeps margins finite"),
        ),
    )


def miscalibrated(case: Case) -> Finding | None:
    """Predicted and observed shares differ by 5 points, beyond the bins' intervals, for a fifth of the pairs."""
    off = total = lean = 0.0
    lines = []
    for b in bins(case, "reliability"):
        values = [b.get(k) for k in ("predicted", "observed", "observed_low", "observed_high", "n")]
        if not all(_number(v) for v in values):
            continue
        predicted, observed, low, high, n = (float(v) for v in values if v is not None)
        total += n
        if abs(predicted - observed) < 0.05 or low <= predicted <= high:
            continue
        off += n
        lean += n * (predicted - observed) * (1 if predicted > 0.5 else -1)
        lines.append(
            line(
                "sure_and_right", sure=number(predicted, ACCURACY), right=interval(Level(observed, low, high), ACCURACY)
            )
        )
    if not total or off < 0.2 * total:
        return None
    over, ece = lean > 0, case.calibration.get("ece", math.nan)
    return Finding(
        "miscalibrated",
        f"It is {'surer than it should be' if over else 'less sure than it could be'}.",
        "info" if not over else "warning",
        "A difference of scores stands for a probability, and here the two do not agree. The order of answers is not "
        "touched by that, but the size of the reward is, and with it how kl_coef weighs against it.",
        (*lines[:4], *([line("calibration_error", error=number(ece))] if _number(ece) else [])),
        (Remedy("fewer num_train_epochs", push=-1), Remedy("label_smoothing=0.05"))
        if over
        else (Remedy("more num_train_epochs", push=1), *_bolder(case)),
    )


def off_centre(case: Case) -> Finding | None:
    """All scores lie further from zero than their own spread, and nothing was saved that would take it off."""
    centre, spread = case.seen("rewards/mean"), case.seen("rewards/std")
    if centre is None or spread is None or case.calibration.get("normalisation"):
        return None
    after, width = centre.change.after, spread.change.after.mean
    if not (after.above(width) or after.below(-width)):
        return None
    return Finding(
        "off_centre",
        "Its scores are not centred: all of them lie on one side of zero.",
        "info",
        "Only differences of scores are learnt, so where they lie is chance. It matters to a policy: a penalty of −1 "
        "for an answer without an end is nothing beside scores of 20.",
        _evidence(case, "rewards/mean", "rewards/std"),
        (Remedy("center_rewards_coefficient=0.01, which draws the scores towards zero"),),
    )


def _bolder(case: Case) -> tuple[Remedy, ...]:
    """The setting that holds the run back, where one does."""
    return (case.usual(odd),) if (odd := case.odd(-1)) is not None else ()


def _evidence(case: Case, *names: str) -> tuple[Worded, ...]:
    return case.evidence(*(k for name in names for k in (f"eval_{name}", name)))


def _length(case: Case) -> Iterator[Worded]:
    """The baseline of length, as a line of evidence."""
    if (rule := baseline(case)) is not None:
        yield line(f"always_{rule[0]}", share=interval(rule[1], ACCURACY))


def _against(case: Case, rule: str) -> Level | None:
    """Accuracy over pairs whose preferred answer is not the one that the rule of length would choose.

    Differences are of chosen less rejected; without negative ones they are distances, which do not tell.
    """
    wins = n = 0.0
    for b in bins(case, "length", "by_difference"):
        right = level(b.get("accuracy"))
        if right is None or not _number(b.get("n")):
            continue
        if b["low"] < 0 >= b["high"] if rule == "longer" else b["low"] >= 0 < b["high"]:
            wins, n = wins + right.mean * b["n"], n + b["n"]
    signed = any(b["low"] < 0 for b in bins(case, "length", "by_difference"))
    return Level(wins / n, *wilson(wins, n), int(n)) if n and signed else None


def _touch(right: Level, rule: Level) -> bool:
    """Whether the two cannot be told apart, or the model is below the rule altogether."""
    return right.low <= rule.mean and (not rule.known or right.mean <= rule.high)


def _number(value: Any) -> bool:
    return float_of(value) is not None
