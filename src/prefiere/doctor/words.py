"""What the metrics are called and how their numbers are written, the same in figures, findings and tables."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from prefiere.doctor.series import Change, Level

NAMES = {
    "loss": "loss",
    "mean_token_accuracy": "next tokens guessed right",
    "rewards/chosen": "reward of the chosen answers",
    "rewards/rejected": "reward of the rejected answers",
    "rewards/margins": "margin",
    "rewards/accuracies": "accuracy",
    "logps/chosen": "log-probability of the chosen answers",
    "logps/rejected": "log-probability of the rejected answers",
    "samples/eos_rate": "answers that end by themselves",
    "samples/length": "length of the answers",
    "samples/repetition": "text that repeats itself",
    "samples/ref_logp": "naturalness of the answers to the model from before",
    "samples/kl": "KL to the start",
    "samples/score": "judge's score",
    "samples/reward": "reward on held-out prompts",
    "samples/reward_disagreement": "disagreement of the reward models",
    "rewards/mean": "score of all answers",
    "rewards/std": "spread of the scores",
    "grad_norm": "gradient norm",
    "reward": "reward of the rollouts",
    "reward_std": "spread of the reward within an update",
    "objective/kl": "KL to the start, rollouts",
    "completions/mean_length": "length of the rollouts",
    "completions/eos_rate": "rollouts that end by themselves",
    "entropy": "entropy",
    "policy/clipfrac_avg": "tokens whose update was clipped",
    "policy/approxkl_avg": "KL of an update (old to new policy)",
    "policy/early_stops": "updates cut short",
    "val/ratio": "probability ratio, new to old",
    "loss/value_avg": "critic's loss",
    "val/explained_variance": "share of the returns' variance that the critic explains",
    "returns/std": "spread of the returns",
    "kl_coef": "KL coefficient",
    "length_reward_correlation": "correlation of length and reward",
    "sampler_drift": "log-probabilities of the sampler, off by",
}
UNITS = {
    "loss": "nats",
    "logps/chosen": "nats per answer",
    "logps/rejected": "nats per answer",
    "samples/length": "tokens",
    "samples/ref_logp": "nats per token",
    "samples/kl": "nats per answer",
    "objective/kl": "nats per answer",
    "completions/mean_length": "tokens",
    "entropy": "nats per token",
    "policy/approxkl_avg": "nats per token",
    "sampler_drift": "nats per token",
}
ROLLOUTS = {
    "samples/reward": "reward",
    "samples/kl": "objective/kl",
    "samples/length": "completions/mean_length",
    "samples/eos_rate": "completions/eos_rate",
    "samples/reward_disagreement": "reward_disagreement",
}
"""What is measured on the same held-out prompts again and again, and its twin from each update's own rollouts."""
_SHARES = ("accuracies", "accuracy", "eos_rate", "repetition", "clipfrac_avg")
_GIVEN = ("loss", "mean_token_accuracy")

# Invisible or reordering characters: C0 but tab and newline, DEL and C1, bidirectional controls, surrogates.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")


def visible(text: str) -> str:
    """Text in which no character hides, reorders its neighbours or breaks the encoding: such ones show as ⟨U+202E⟩."""
    return _UNSAFE.sub(lambda m: f"⟨U+{ord(m[0]):04X}⟩", text.replace("\r\n", "\n"))


def bare(key: str) -> str:
    """The metric without its ``eval_``."""
    return key.removeprefix("eval_")


def is_share(key: str) -> bool:
    """Whether the metric is a share, shown in per cent."""
    return key.endswith(_SHARES)


def number(value: float, key: str = "") -> str:
    """A metric's value as people read it: three figures, or per cent for a share."""
    if not math.isfinite(value):
        return "?"
    if is_share(key):
        return f"{100 * value:.0f}%"
    if abs(value) < 1e-6:  # rounding of a zero
        return "0.00"
    if abs(value) < 0.001:
        return f"{value:.1e}".replace("-", "−")
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 0.1 else 3
    return f"{value:,.{digits}f}".replace("-", "−")


def with_interval(level: Level, key: str = "") -> str:
    """``0.41 (0.36 to 0.46)``: a mean and its 95% interval."""
    if not level.known or level.low == level.high:
        return number(level.mean, key)
    low, high = (max(0.0, level.low), min(1.0, level.high)) if is_share(key) else (level.low, level.high)
    return f"{number(level.mean, key)} ({number(low, key)} to {number(high, key)})"


def before_and_after(key: str, change: Change) -> str:
    """One line of evidence: ``margin on held-out pairs: 0.00 → 0.41 (0.36 to 0.46), 200 measured``."""
    name = bare(key)
    given = name in _GIVEN or name.startswith(("rewards/", "logps/"))  # measured on given answers, of either split
    where = "" if not given else " on held-out data" if key != name else " on training data"
    unit = f" {UNITS[name]}" if name in UNITS else ""
    count = f", {change.after.n:,} measured" if change.after.n else ""
    return (
        f"{NAMES.get(name, name)}{where}: {number(change.before.mean, key)} → "
        f"{with_interval(change.after, key)}{unit}{count}"
    )


def account(data: Any) -> Any:
    """data.json for reading: what happened to no example is left out, places and lengths become words."""
    if isinstance(data, Mapping):
        if set(data) == {"count", "sources"}:
            places = list(data["sources"] or [])
            return f"{data['count']:,}" + (f" (first: {', '.join(map(str, places[:3]))})" if places else "")
        kept = {k: v for k, v in data.items() if not (isinstance(v, Mapping) and v.get("count", 1) == 0)}
        return {k: _lengths(v) if k.endswith("_lengths") else account(v) for k, v in kept.items() if v not in ([], {})}
    if isinstance(data, list) and not any(isinstance(v, Mapping | list) for v in data):
        more = f" … and {len(data) - 10:,} more" if len(data) > 10 else ""
        return ", ".join(map(str, data[:10])) + more
    return [account(v) for v in data] if isinstance(data, list) else data


def _lengths(quantiles: Any) -> Any:
    """Lengths in tokens at 0, 50, 90, 99 and 100 per cent, as a sentence."""
    if not (isinstance(quantiles, list) and len(quantiles) == 5):
        return account(quantiles)
    least, half, most, nearly, longest = quantiles
    return f"{least} to {longest} tokens; half up to {half}, 90% up to {most}, 99% up to {nearly}"


def duration(seconds: Any) -> str:
    """``1 h 5 min``, ``3 min 20 s``, ``8 s``."""
    if not isinstance(seconds, int | float):
        return ""
    minutes, s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {s} s" if minutes else f"{s} s"
