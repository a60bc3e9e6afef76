"""Where nothing was learnt: whether the labels have a pattern, so that the model missed it.

A model that ranks held-out pairs no better than a coin says little of their labels: it may be too small for them. Words
alone are the second witness (`data.quality.told`).
"""

from __future__ import annotations

from prefiere.asked.language import Worded
from prefiere.doctor.case import Case, Finding
from prefiere.doctor.remedies import Remedy
from prefiere.doctor.rules.labels import last_held_out, unseen
from prefiere.doctor.rules.lengths import SHARE
from prefiere.doctor.rules.told import words_tell
from prefiere.doctor.series import Change, Level
from prefiere.doctor.standstill import MORE
from prefiere.doctor.words import interval, line, number, with_interval
from prefiere.stats import FEWEST_MARGINS, wilson

CHECK = Remedy("`prefiere data ... --check`: look at 15 pairs without knowing which answer was preferred")
LARGER = Remedy("a larger model, or one that has read text like this first (`prefiere sft` on the preferred answers)")


def nothing_learnt(case: Case) -> Finding | None:
    """The model was trained (its weights moved, its rate is about the automatic one, updates were enough), and what it
    learnt holds of no other pair: held-out accuracy includes 50% on 40 pairs or more (or lies below it by luck, where
    margins do not fall; of fewer pairs with those that training had not learnt from yet), or all margins stay at 0.

    Where words alone tell the preferred answer, the labels do have a pattern, and where they do so more often than the
    model, beyond the noise of both, it is the model that missed it.
    """
    if not _at_chance(case):
        return None
    words, model = words_tell(case.account("train")), ranked_right(case)
    seen = (
        *case.evidence("eval_rewards/accuracies", "eval_rewards/margins", "rewards/accuracies"),
        line("weights_moved", share=number(float(case.series("weights/moved").values[-1]))),
    )
    if words is not None:
        seen = (line("words_alone", share=interval(words, SHARE), n=f"{words.n:,}"), *seen)
    if words is None or not words.above(0.5):
        return _no_pattern(case, words, seen)
    if model is not None and Change(model, words).rises():
        return _missed(words, model, seen)
    return _weak(words, seen)


def _at_chance(case: Case) -> bool:
    if case.family not in ("preference", "reward") or case.odd(-1) or case.odd(1) or not case.moved:
        return False
    right, margin = case.change("eval_rewards/accuracies"), case.change("eval_rewards/margins")
    if case.steps < 15 or right is None or right.after.low > 0.5:
        return False
    if right.after.n < 40:
        return _unseen_at_chance(case)
    if right.after.high < 0.5 and (margin is None or margin.falls()):  # held-out pairs contradict the others
        return False
    return not (right.after.high > 0.62 and margin is not None and margin.rises())  # it began to learn


def _unseen_at_chance(case: Case) -> bool:
    """Where few pairs are held out: with those that training met before it learnt from them, 100 or more, they are
    ranked as by a coin, and words alone tell nothing either."""
    model, words = ranked_right(case), words_tell(case.account("train"))
    if model is None or model.n < 100 or words is None or words.above(0.5):
        return False
    return model.low <= 0.5 and model.high <= 0.62


def ranked_right(case: Case) -> Level | None:
    """The share of pairs that the model ranks as their labels do: held-out ones, and those of training that it had not
    learnt from yet; None of fewer than `FEWEST_MARGINS`."""
    seen = last_held_out(case).joined(unseen(case))
    if len(seen) < FEWEST_MARGINS:
        return None
    right = 1 - seen.against
    return Level(right, *wilson(right * len(seen), len(seen)), len(seen))


def _no_pattern(case: Case, words: Level | None, seen: tuple[Worded, ...]) -> Finding:
    word = "scores" if case.family == "reward" else "favours"
    neither = "" if words is None else "Words alone do not tell them apart, either. "
    return Finding(
        "no_pattern",
        "The model found no pattern in the labels: they are random, contradict each other, or are too hard for it.",
        "warning",
        f"It was trained with a rate that suits it and its weights moved, yet on pairs it never saw it {word} the "
        f"preferred answer no more often than a coin does. {neither}A higher rate would only teach it the training "
        "pairs by heart. Either the labels are noise, or about half of them are swapped, or what people looked at "
        "cannot be seen in the text, or not by a model of this size from so many pairs. The curves are the same in "
        "each case.",
        seen,
        (CHECK, Remedy("where those are fine: a larger model, or more pairs")),
        cause=True,
        sure="possible",
    )


def _missed(words: Level, model: Level, seen: tuple[Worded, ...]) -> Finding:
    told = number(words.mean, SHARE)
    return Finding(
        "pattern_missed",
        f"The labels can be learnt, and this model did not learn them: words alone tell {told} of the preferred "
        "answers.",
        "warning",
        f"Of pairs that it had not learnt from, it ranked {with_interval(model, SHARE)} as their labels do. A sum over "
        f"single words, fitted to other pairs of this data, does {with_interval(words, SHARE)}. So the labels are not "
        "to blame: the model is too small for this data, has not read enough text like it, or had too few updates.",
        seen,
        (LARGER, MORE, Remedy("more pairs")),
        cause=True,
        sure="likely",
        values={"share": told},
    )


def _weak(words: Level, seen: tuple[Worded, ...]) -> Finding:
    told = number(words.mean, SHARE)
    return Finding(
        "weak_pattern",
        f"Nothing was learnt that held-out pairs show, though words alone tell {told} of the preferred answers.",
        "warning",
        f"A sum over single words, fitted to other pairs of this data, ranks {with_interval(words, SHARE)} as their "
        "labels do, so they are not all chance. Too few pairs were measured to say that the model does worse. Either "
        "it missed the pattern, or much of the labels is noise and there is little to learn.",
        seen,
        (Remedy("a larger eval_size, so that a smaller change can be seen"), CHECK, LARGER),
        sure="possible",
        values={"share": told},
    )
