"""What a check looks at: one run's folder, read once, and the words a finding is made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any, Literal

from prefiere.asked.kinds import NEEDS_REFERENCE
from prefiere.asked.language import Worded
from prefiere.doctor.dials import DialReading, farthest, readings
from prefiere.doctor.remedies import Remedy, advised, set_to, worded
from prefiere.doctor.series import Change, Level, Series
from prefiere.doctor.words import evidence_line
from prefiere.methods import METHODS, Family
from prefiere.metrics import column, measured_again
from prefiere.run import Run, Stop

Severity = Literal["good", "info", "warning", "bad"]
Surety = Literal["sure", "likely", "possible"]
"""How sure a finding is: sure where it counts or compares what was measured; likely where a statistic speaks that no
healthy run showed; possible where other causes show the same."""


MOVED, OF_RATE = 0.002, 5.0
"""Change of the weights over their length, from which on a model has been trained at all: so much, or so many times the
learning rate where that is less. Twenty updates of models of 1.4 and 135 million parameters came to 14 to 34 times
their rates of 3.8e-4 and 1.6e-5, whatever there was to learn."""


class FirstLines(tuple[str, ...]):
    """The first of the lines that a finding means; ``of``: how many it means."""

    of: int

    def __new__(cls, lines: Iterable[str], of: int = 0) -> FirstLines:
        made = super().__new__(cls, lines)
        made.of = max(of, len(made))
        return made


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing the run shows. ``key`` names the check, ``title`` is a sentence, ``meaning`` explains it to somebody
    new to the field, ``seen`` holds the numbers with their intervals, in every language (``evidence``: in English),
    ``remedy`` what to try next time, and ``remedies`` the same with the settings that it changes. cause: whether it
    names why a run went wrong, not only that it did. about: the setting, word or file that it is about. lines: the
    lines of the data that it means, or the first of them. values: what its words in other languages are filled in with
    (`plain`). said_as: the row of the plain words that says it, where that is not ``key``."""

    key: str
    title: str
    severity: Severity
    meaning: str
    seen: tuple[Worded | str, ...] = ()
    advice: tuple[Remedy, ...] = ()
    cause: bool = False
    sure: Surety = "sure"
    about: str = ""
    lines: tuple[str, ...] = ()
    values: Mapping[str, str | Worded] = field(default_factory=dict)
    said_as: str = ""

    @property
    def evidence(self) -> tuple[str, ...]:
        """What was seen, in English."""
        return tuple(map(str, self.seen))

    @property
    def lines_of(self) -> int:
        """How many lines it means, of which ``lines`` are the first."""
        return self.lines.of if isinstance(self.lines, FirstLines) else len(self.lines)

    @property
    def remedies(self) -> tuple[Remedy, ...]:
        """What to try, with what it changes in the recipe."""
        return self.advice

    @property
    def remedy(self) -> tuple[str, ...]:
        """What to try, in sentences."""
        return tuple(map(str, self.advice))


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
    environment: dict[str, Any] = field(init=False)
    stop: Stop | None = field(init=False)

    def __post_init__(self) -> None:
        self.recipe, self.status, self.rows = self.run.recipe, self.run.status, self.run.thinned_metrics()
        self.calibration, self.stop = self.run.calibration, self.run.stop
        self.series = cache(self._series)
        self.environment = self.run.environment
        plan = self.environment.get("plan")
        automatic = plan.get("automatic") if isinstance(plan, Mapping) else None
        total = self.status.get("total_steps")
        whole = isinstance(plan, Mapping) and "adapter" in plan and plan["adapter"] is None
        self.dials: tuple[DialReading, ...] = readings(
            self.recipe | ({"lora": False} if whole else {}),
            automatic if isinstance(automatic, Mapping) else {},
            total if isinstance(total, int) and not isinstance(total, bool) else None,
        )

    def _series(self, key: str) -> Series:
        series = Series.of(self.rows, key)
        if key.endswith("rewards/margins") and not series.measured:  # unpaired: the difference of two groups' means
            chosen, rejected = (Series.of(self.rows, key.replace("margins", k)) for k in ("chosen", "rejected"))
            between = chosen.minus(rejected)
            return between if len(between) else series
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

    def evidence(self, *keys: str) -> tuple[Worded, ...]:
        """One line for each of these metrics that was measured twice."""
        return tuple(evidence_line(k, c, *self.where) for k in keys if (c := self.change(k)) is not None)

    def account(self, *names: str) -> Mapping[str, Any]:
        """A part of data.json; empty where there is none of that shape."""
        found: Any = self.run.data
        for name in names:
            found = found.get(name) if isinstance(found, Mapping) else None
        return found if isinstance(found, Mapping) else {}

    @cached_property
    def pairs(self) -> list[dict[str, Any]]:
        """What single examples showed (pairs.jsonl)."""
        return self.run.pairs

    @cached_property
    def answers(self) -> list[dict[str, Any]]:
        """Sampled answers of the first step and of the last."""
        return self.run.samples_at_ends()

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

    @property
    def moved(self) -> bool | None:
        """Whether training moved the weights; None where nothing tells."""
        moved = self.series("weights/moved").values
        rate = self.learning_rate
        least = MOVED if rate is None else min(MOVED, OF_RATE * rate)
        return bool(moved[-1] > least) if len(moved) else None

    def rate_times(self, factor: float) -> Remedy:
        """A learning rate to try: the automatic one, where the one that was used lies off it in the other direction,
        by half or more; else so many times the one that was used: ``learning_rate=2e-05``."""
        rate, push = self.learning_rate, 1 if factor > 1 else -1
        dial = next((d for d in self.dials if d.dial.name == "learning_rate"), None)
        if dial is not None and (dial.times >= 1.5 if push < 0 else dial.times <= 1 / 1.5):
            return self.usual(dial)
        if rate is None:
            return advised("rate_times", push, factor=f"{factor:g}")
        return set_to("learning_rate", float(f"{rate * factor:.0e}"), push=push)

    def odd(self, push: int) -> DialReading | None:
        """The setting that is farthest from its usual value and moves the run further (1), or less far (-1)."""
        return farthest(self.dials, push)

    def usual(self, reading: DialReading) -> Remedy:
        """The usual value of a setting that is far from it."""
        why = f"where this run had {_shown(reading.written)}"
        if reading.dial.auto:
            why = f"which comes to {reading.usual:g} here; this run had {_shown(reading.written)}"
        return set_to(reading.dial.name, reading.setting, why, -reading.push)

    def gentler(self) -> tuple[Remedy, ...]:
        """What keeps a model closer to where it started: the setting that is farthest from its usual value, where one
        pushes too hard; else each of the usual means, most telling first: a rate above the automatic one before all."""
        if (odd := self.odd(1)) is not None:
            return (self.usual(odd),)
        rate = self.rate_times(0.3)
        means: tuple[Remedy, ...]
        if self.family == "policy":
            means = (self.tighter("which ties the model more strongly to where it started"), rate)
        elif not self.has_reference:
            means = (rate, Remedy("fewer updates: a smaller num_train_epochs, or max_steps", push=-1))
        else:
            means = (
                set_to("rpo_alpha", 1.0, "which adds a pull towards the preferred answers themselves", -1),
                self.larger("beta", 3, "which ties the model more strongly to where it started"),
                rate,
            )
        return tuple(sorted(means, key=lambda r: r.value != "auto"))

    def bolder(self, factor: float) -> tuple[Remedy, ...]:
        """What lets a model move: the setting that is farthest from its usual value, where one holds it back."""
        return (self.usual(odd),) if (odd := self.odd(-1)) is not None else (self.rate_times(factor),)

    def tighter(self, why: str, factor: float = 3) -> Remedy:
        """A higher price of the KL, wherever this run charges it: in the reward, or as a loss."""
        as_loss = not self.recipe.get("kl_coef") and self.recipe.get("kl_loss_coef")
        return self.larger("kl_loss_coef" if as_loss else "kl_coef", factor, why)

    def fewer_passes(self) -> tuple[Remedy, ...]:
        """Fewer passes over each rollout, where there is more than one."""
        passes = self.recipe.get("num_ppo_epochs")
        if not isinstance(passes, int):
            return (Remedy("fewer num_ppo_epochs", push=-1),)
        return (set_to("num_ppo_epochs", passes // 2, push=-1),) if passes > 1 else ()

    def larger(self, name: str, factor: float, why: str) -> Remedy:
        """A setting to raise: ``beta=0.3, which ...``."""
        value = self.recipe.get(name)
        if isinstance(value, int | float) and value > 0:
            return set_to(name, float(f"{factor * value:.2g}"), why, -1)
        if name == "kl_coef" and self.family == "policy":
            return set_to(name, 0.05, why, -1)
        return advised("larger", -1, name=name, why=worded(why))


def _shown(value: float | None) -> str:
    return "none" if value is None else f"{value:g}"
