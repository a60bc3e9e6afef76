"""What a check looks at: one run's folder, read once, and the words a finding is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

from prefiere.doctor.series import Change, Level, Series
from prefiere.doctor.words import evidence_line
from prefiere.methods import METHODS, Family
from prefiere.metrics import column, measured_again
from prefiere.run import Run, Stop
from prefiere.settings import NEEDS_REFERENCE

Severity = Literal["good", "info", "warning", "bad"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing the run shows. ``key`` names the check, ``title`` is a sentence, ``meaning`` explains it to somebody
    new to the field, ``evidence`` holds the numbers with their intervals, ``remedy`` what to set next time."""

    key: str
    title: str
    severity: Severity
    meaning: str
    evidence: tuple[str, ...] = ()
    remedy: tuple[str, ...] = ()


@dataclass(frozen=True)
class Seen:
    """A change, and which metric shows it."""

    key: str
    change: Change

    @property
    def held_out(self) -> bool:
        return measured_again(self.key)


@dataclass
class Case:
    """One run as the checks see it."""

    run: Run
    recipe: dict[str, Any] = field(init=False)
    status: dict[str, Any] = field(init=False)
    rows: list[dict[str, Any]] = field(init=False)
    calibration: dict[str, Any] = field(init=False)
    stop: Stop | None = field(init=False)

    def __post_init__(self) -> None:
        self.recipe, self.status, self.rows = self.run.recipe, self.run.status, self.run.thinned_metrics()
        self.calibration, self.stop = self.run.calibration, self.run.stop
        self.series = cache(self._series)

    def _series(self, key: str) -> Series:
        series = Series.of(self.rows, key)
        if key.endswith("rewards/margins") and not series.measured:  # unpaired: the difference of two groups' means
            chosen, rejected = (Series.of(self.rows, key.replace("margins", k)) for k in ("chosen", "rejected"))
            return chosen.minus(rejected) if len(chosen) else series
        return series

    def seen(self, name: str) -> Seen | None:
        """How a metric changed: on held-out data or prompts where it was measured twice, else in training."""
        for key in (column(name).measured, column(name).training):
            if (change := self.change(key)) is not None:
                return Seen(key, change)
        return None

    def change(self, key: str) -> Change | None:
        return self.series(key).change

    def end(self, key: str) -> Level | None:
        """Where a metric ended, if it has rows enough that no single one decides."""
        series = self.series(key)
        return series.end if len(series) >= 5 else None

    def evidence(self, *keys: str) -> tuple[str, ...]:
        """One line for each of these metrics that was measured twice."""
        return tuple(evidence_line(k, c, *self.where) for k in keys if (c := self.change(k)) is not None)

    def account(self, *names: str) -> Mapping[str, Any]:
        """A part of data.json; empty where there is none of that shape."""
        found: Any = self.run.data
        for name in names:
            found = found.get(name) if isinstance(found, Mapping) else None
        return found if isinstance(found, Mapping) else {}

    @property
    def family(self) -> Family:
        method = METHODS.get(str(self.recipe.get("method")))
        return method.family if method else "preference"

    @property
    def where(self) -> tuple[str, str]:
        """What decides which row of the table of metrics a column has: the loss type, and the family."""
        return str(self.recipe.get("loss_type", "")), self.family

    @property
    def sft(self) -> bool:
        return self.family == "imitation"

    @property
    def has_reference(self) -> bool:
        return self.family == "preference" and str(self.recipe.get("loss_type", "sigmoid")) in NEEDS_REFERENCE

    @property
    def steps(self) -> int:
        return int(self.status.get("step") or max((r.get("step", 0) for r in self.rows), default=0))

    @property
    def tokens_per_answer(self) -> float | None:
        """Length of an answer before training, where answers were sampled."""
        length = self.series("samples/length")
        return max(1.0, length.start.mean) if len(length) else None

    @property
    def learning_rate(self) -> float | None:
        """The peak that was in effect."""
        rates = self.series("learning_rate").values
        return float(rates.max()) if len(rates) else None

    def scaled_learning_rate(self, factor: float) -> str:
        """A setting to try: ``learning_rate=2e-05``."""
        rate = self.learning_rate
        return f"learning_rate={rate * factor:.0e}" if rate else f"a learning_rate {factor:g} times as large"

    def gentler(self) -> tuple[str, ...]:
        """What keeps a model closer to where it started, most telling first."""
        rate = self.scaled_learning_rate(0.3)
        if self.family == "policy":
            return (self.tighter("which ties the model more strongly to where it started"), rate)
        if not self.has_reference:
            return (rate, "fewer updates: a smaller num_train_epochs, or max_steps")
        return (
            "rpo_alpha=1, which adds a pull towards the chosen answers themselves",
            self.larger("beta", 3, "which ties the model more strongly to where it started"),
            rate,
        )

    def tighter(self, why: str, factor: float = 3) -> str:
        """A higher price of the KL, wherever this run charges it: in the reward, or as a loss."""
        as_loss = not self.recipe.get("kl_coef") and self.recipe.get("kl_loss_coef")
        return self.larger("kl_loss_coef" if as_loss else "kl_coef", factor, why)

    def fewer_passes(self) -> tuple[str, ...]:
        """Fewer passes over each rollout, where there is more than one."""
        passes = self.recipe.get("num_ppo_epochs")
        if not isinstance(passes, int):
            return ("fewer num_ppo_epochs",)
        return (f"num_ppo_epochs={passes // 2}",) if passes > 1 else ()

    def larger(self, name: str, factor: float, why: str) -> str:
        """A setting to raise: ``beta=0.3, which ...``."""
        value = self.recipe.get(name)
        if isinstance(value, int | float) and value > 0:
            return f"{name}={factor * value:g}, {why}"
        return f"a larger {name}, {why}"
