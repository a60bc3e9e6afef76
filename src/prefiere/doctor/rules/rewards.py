"""What is wrong with the reward that a policy is paid: its sign, its noise, its reach, and what it costs to move.

Read off single sampled answers (samples.jsonl), which carry the reward and, where there is one, the judge's score.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from prefiere.doctor.case import Case, Finding
from prefiere.doctor.remedies import Remedy, set_to
from prefiere.doctor.words import line, number
from prefiere.stats import float_of

SCORE = Remedy("`prefiere score` on the reward model, or the reward function on ten answers that you judge yourself")


CHANGED, LEVELS = 8, 5
"""Prompts whose answer changed, and different rewards among them, from which on the prompt alone may be scored."""
DRAWN = 999
"""Orders of the rewards that are drawn, to see what chance does."""
UPDATES, DIFFER = 5, 0.05
"""Updates, below which nothing is said; nats of entropy per token, from which on the answers to a prompt differ."""
MOSTLY, FEWEST, FEW = 0.8, 20, 8
"""Share of the answers that earn the same, from which on it is said, of so many or more; answers of an update that are
few."""


def _first_scored(case: Case) -> np.ndarray | None:
    """Reward and judge's score [answers, 2] of the first sampling; None below six answers, or where either does not
    differ."""
    rows = case.answers
    first = min((r["step"] for r in rows if isinstance(r.get("step"), int | float)), default=None)
    both = [(float_of(r.get("reward")), float_of(r.get("score"))) for r in rows if r.get("step") == first]
    pairs = np.asarray([p for p in both if None not in p], float)
    return pairs if len(pairs) >= 6 and (np.ptp(pairs, axis=0) > 0).all() else None


def opposed(case: Case) -> Finding | None:
    """At the start the reward falls where the judge's score rises: a correlation below -0.35, which fewer than one in a
    hundred orders of the same rewards reach (a permutation test: one answer of six that differs says nothing)."""
    if (pairs := _first_scored(case)) is None or not (r := float(np.corrcoef(pairs.T)[0, 1])) < -0.35:
        return None
    rng, (reward, score) = np.random.default_rng(0), (pairs - pairs.mean(0)).T
    drawn = np.array([reward @ rng.permutation(score) for _ in range(DRAWN)])
    if (1 + (drawn <= reward @ score + 1e-12).sum()) / (1 + DRAWN) >= 0.01:
        return None
    return Finding(
        "reward_upside_down",
        "The reward is upside down: it pays most for the answers that the judge likes least.",
        "bad",
        "Before training, of the model's own answers, those with the higher reward have the lower score. A sign is "
        "wrong, or the reward model was trained on swapped labels. What is trained on it gets worse.",
        (line("correlation", n=f"{len(pairs)}", r=number(r)),),
        (Remedy("turn the sign of the reward round, or look which answer its data calls the preferred one"), SCORE),
        cause=True,
        sure="likely",
        values={"r": f"{r:.2f}"},
    )


def noisy(case: Case) -> Finding | None:
    """The same answers, scored twice, the second time in reverse, get other rewards: a correlation below one half."""
    again = case.series("start/reward_retest")
    if not len(again) or not again.values[0] < 0.5:
        return None
    return Finding(
        "reward_noisy",
        "The reward is mostly chance: the same answers, scored twice, get different rewards.",
        "bad",
        "Nothing can be learnt from a number that says something else every time. A higher rate would only follow its "
        "chance. The second time they were in another order: a reward that goes to the wrong answer of a batch, or "
        "depends on what stands beside it, looks the same.",
        (line("agreement", r=number(float(again.values[0]))),),
        (
            Remedy("a reward that depends on prompt and answer alone: no draws, no sampling at a temperature"),
            Remedy("see that a reward function returns its rewards in the order of the answers that it gets"),
            SCORE,
        ),
        cause=True,
        values={"r": f"{again.values[0]:.2f}"},
    )


def constant(case: Case) -> Finding | None:
    """All answers of an update earn the same, and so do those that are sampled to look at; of an update of `FEW` or
    fewer, which may do so by chance, those of the other updates as well."""
    spread, mean = case.series("reward_std"), case.series("reward")
    if len(spread) < 3 or float(np.median(spread.values)) >= 1e-6:
        return None
    if len(mean) and np.median(mean.n) <= FEW and np.ptp(mean.values) >= 1e-6:
        return None
    sampled = [r for row in case.answers if (r := float_of(row.get("reward"))) is not None]
    if len(sampled) >= FEWEST and np.ptp(sampled) >= 1e-6:  # it tells these apart: the rollouts are what is all alike
        return None
    return Finding(
        "reward_constant",
        "Every answer earns the same reward, so there is nothing to learn from.",
        "bad",
        "Learning compares answers: what earned more is made likelier. Here none did.",
        (line("reward_spread", spread=number(float(np.median(spread.values)))),),
        (Remedy("a reward that tells answers apart: `prefiere score` on a few of them"),),
        cause=True,
    )


def of_prompt(case: Case) -> Finding | None:
    """Prompts earn different rewards and the answers to each the same: within every rollout, of answers that differ; or
    along the run, of `CHANGED` prompts or more whose answer changed."""
    within, count = _same_within(case), _same_along(case)
    if not within and not count:
        return None
    return Finding(
        "reward_of_prompt",
        "The reward depends on the prompt alone: whatever is answered to it earns the same.",
        "bad",
        "Learning compares answers to a prompt: what earned more is made likelier. Here prompts differ in what they "
        "earn, and answers do not.",
        (line("same_reward", n=f"{count}") if count else line("same_within", n=f"{within}"),),
        (Remedy("a reward that tells the answers to one prompt apart: `prefiere score` on several answers to it"),),
        cause=True,
        sure="likely",
    )


def _same_within(case: Case) -> int:
    """How many updates there are, if in none of them the answers to a prompt differ in what they earn, and prompts do;
    0 of few, where rewards take few values (right or wrong), and where the answers themselves hardly differ."""
    alike, spread, entropy = (case.series(k).values for k in ("frac_reward_zero_std", "reward_std", "entropy"))
    levels = {value for row in case.answers if (value := _earned(row)) is not None}
    if min(len(alike), len(spread), len(entropy)) < UPDATES or len(levels) < LEVELS:
        return 0
    differ = float(np.median(spread)) >= 1e-6 and float(np.median(entropy)) >= DIFFER
    return len(alike) if differ and float(alike.min()) == 1 else 0


def _earned(row: Mapping[str, Any]) -> float | None:
    """The reward of a sampled answer; None where there is none."""
    value = float_of(row.get("reward"))
    return None if value is None else round(value, 6)


def _same_along(case: Case) -> int:
    """How many prompts changed their answer and none its reward; 0 where these are few, or earn a few values only."""
    earned: dict[str, set[float]] = {}
    said: dict[str, set[str]] = {}
    for row in case.answers:
        if (value := _earned(row)) is not None:
            earned.setdefault(str(row.get("prompt")), set()).add(value)
            said.setdefault(str(row.get("prompt")), set()).add(str(row.get("completion")))
    changed = [asked for asked, answers in said.items() if len(answers) > 1]
    levels = {value for asked in changed for value in earned[asked]}
    constant = all(len(earned[asked]) == 1 for asked in changed)
    return len(changed) if constant and len(changed) >= CHANGED and len(levels) >= LEVELS else 0


def of_batch(case: Case) -> Finding | None:
    """The mean of the rewards is the same in every update, to a thousandth of their spread: they are counted from the
    mean of their batch."""
    mean, spread = case.series("reward"), case.series("reward_std")
    if len(mean) < 5 or len(mean) != len(spread) or not float(np.median(spread.values)) > 1e-6:
        return None
    if np.ptp(mean.values) >= 1e-3 * float(np.median(spread.values)):
        return None
    return Finding(
        "reward_of_batch",
        "The reward is counted from the mean of its own batch, so that it cannot show whether answers got better.",
        "warning",
        "In every update the mean reward is the same, and answers differ as before. A level that is taken off in the "
        "reward function hides every change; which answer of a batch is the better one is still learnt.",
        (line("same_mean", level=number(float(mean.values[-1])), n=f"{len(mean)}"),),
        (Remedy("a reward on a scale of its own, not in units of its batch: prefiere scales rewards by itself"),),
        cause=True,
        sure="likely",
    )


def mostly_same(case: Case) -> Finding | None:
    """Before training four in five answers earn exactly the same, and the reward did not rise."""
    earned = [v for r in case.answers if r.get("step") == 0 and (v := _earned(r)) is not None]
    reward = case.seen("samples/reward")
    if len(earned) < FEWEST or (reward is not None and reward.change.rises()):
        return None
    value, count = Counter(earned).most_common(1)[0]
    if not MOSTLY * len(earned) <= count < len(earned) or value == max(earned):  # most answers are as they should be
        return None
    share = f"{100 * count / len(earned):.0f}%"
    return Finding(
        "reward_mostly_same",
        f"{share} of the answers earn exactly the same reward, {value:g}, so there is little to learn from.",
        "warning",
        "Learning compares answers: what earned more is made likelier. Either a value stands in where the reward "
        "fails (a score that is not found in a text), or nearly no answer does what it pays for.",
        (line("same_reward_of_all", share=share, n=f"{len(earned)}", value=f"{value:g}"),),
        (
            Remedy("the reward function on ten answers of this run (samples.jsonl): does it find what it looks for?"),
            Remedy("a reward that tells more answers apart, or prompts and a start from which some earn it"),
        ),
        cause=True,
        sure="likely",
        values={"share": share, "value": f"{value:g}"},
    )


def outliers(case: Case) -> Finding | None:
    """In one update of twenty or more, a few answers set the spread of its rewards: it is five times the range that
    nine answers in ten usually have (a third of it for normal rewards, twice it where one of thirty-two is right)."""
    share, spread = case.series("reward_outliers"), case.series("reward_std")
    low, high = case.series("reward_p05"), case.series("reward_p95")
    if len(share) < 3 or not len(share) == len(spread) == len(low) == len(high):
        return None
    ranges = high.values - low.values
    inner = max(float(np.median(ranges)), float(np.median(ranges[: len(ranges) // 2 + 1])))  # it shrinks with success
    wild = (spread.values > 5 * inner) & (share.values > 0)
    if not inner > 0 or wild.mean() < 0.05:
        return None
    told, whole = number(float(wild.mean()), "samples/eos_rate"), float(np.median(spread.values[wild]))
    return Finding(
        "reward_outliers",
        "A few answers earn a reward out of all proportion, and drown what the others say.",
        "warning",
        "An update follows the differences of its rewards. Where one answer lies far outside, it follows that one, and "
        "the unit in which rewards are measured is set by it.",
        (
            line("outlying_updates", share=told),
            line("outlying_spread", spread=number(whole), inner=number(inner)),
        ),
        (
            Remedy("limit the reward where it is made: for instance to between −3 and 3"),
            set_to("reward_clip", 3.0, "in units of the first rollout's spread"),
            SCORE,
        ),
        cause=True,
        sure="likely",
        values={"share": told},
    )


def price(case: Case) -> Finding | None:
    """The run is flat, its updates do move the policy, and moving costs more than the reward can pay: kl_coef is above
    three times the reward's own spread (1, where rewards are scaled)."""
    coefficient, step = case.recipe.get("kl_coef"), case.series("policy/approxkl_avg")
    reward = case.seen("samples/reward")
    if not isinstance(coefficient, int | float) or coefficient <= 0 or reward is None or reward.change.rises():
        return None
    spread = case.series("reward_std").values
    unit = 1.0 if case.recipe.get("scale_rewards", True) or not len(spread) else float(np.median(spread))
    if not len(step) or float(np.median(step.values)) < 1e-6 or not 0.1 * coefficient > 0.3 * unit:
        return None
    return Finding(
        "price_too_high",
        f"Moving costs more than the reward pays (kl_coef={coefficient:g}).",
        "warning",
        "Each step away from the model before is charged, and the price is so high that staying put earns more. The "
        "learning rate is not the cause: the updates do move the policy, and the price pulls it back.",
        case.evidence("samples/reward", "objective/kl", "samples/kl"),
        (set_to("kl_coef", 0.05, f"where this run had {coefficient:g}", 1),),
        cause=True,
        about="kl_coef",
        values={"value": f"{coefficient:g}"},
    )
