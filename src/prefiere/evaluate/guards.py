"""When a run has to stop: its sampled answers have fallen apart, or its reward is being exploited."""

from __future__ import annotations

from collections.abc import Mapping

from prefiere.run import Stop

MAX_LOST_LOGP = 1.0
"""Nats per token that answers may lose under the reference. Sampling the reference itself loses 0; a policy that a
good run has turned stays within a few tenths; word salad costs several."""


MAX_LOST_ENDINGS = 0.4
"""Share of answers that may stop ending."""


MAX_REPETITION = 0.3
"""Rise of the share of repeated trigrams."""


MIN_ANSWERS = 8
"""Fewer answers than this say nothing."""


def exploited(before: Mapping[str, float], now: Mapping[str, float]) -> Stop | None:
    """A stop where the reward rose and the judge's score fell, each beyond both intervals.

    Takes columns as `Answers.columns` gives them.
    """
    keys = [f"samples/{n}{edge}" for n in ("reward", "score") for edge in ("", "_low", "_high", "_n")]
    if not all(k in before and k in now for k in keys) or now["samples/score_n"] < MIN_ANSWERS:
        return None
    rose = now["samples/reward_low"] > before["samples/reward_high"]
    fell = now["samples/score_high"] < before["samples/score_low"]
    if not (rose and fell):
        return None
    said = {name: f"({before[f'samples/{name}']:.2f} -> {now[f'samples/{name}']:.2f})" for name in ("reward", "score")}
    return Stop(
        "exploited",
        f"guard: the reward rises {said['reward']} while the judge's score falls {said['score']}: the policy is "
        "exploiting the reward",
    )


def degenerate(before: Mapping[str, float], now: Mapping[str, float]) -> Stop | None:
    """A stop where the answers are broken, compared with those from before the run.

    Takes columns as `Answers.columns` gives them. A signal counts when its mean has moved by more than its bound and
    the two 95% intervals do not touch.
    """
    checks = [
        (
            "ref_logp",
            -1,
            MAX_LOST_LOGP,
            "sampled answers have become {0:.1f} nats per token less likely under the reference"
            " ({1:.2f} -> {2:.2f}): the model is leaving the language it knew",
        ),
        ("eos_rate", -1, MAX_LOST_ENDINGS, "{0:.0%} fewer sampled answers reach an end ({1:.0%} -> {2:.0%})"),
        ("repetition", +1, MAX_REPETITION, "sampled answers repeat themselves ({1:.0%} -> {2:.0%} of trigrams)"),
    ]
    for name, sign, bound, words in checks:
        key = f"samples/{name}"
        edge, far = ("_low", "_high") if sign < 0 else ("_high", "_low")
        measured = {key, key + edge} <= before.keys() and {key, key + far} <= now.keys()
        if not measured or now[f"{key}_n"] < MIN_ANSWERS:
            continue  # too little to know
        moved = sign * (now[key] - before[key])
        apart = sign * (now[key + far] - before[key + edge]) > 0
        if moved > bound and apart:
            return Stop("degenerate", f"guard: {words.format(abs(moved), before[key], now[key])}")
    return None
