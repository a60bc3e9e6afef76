"""Which settings of a run lie far from what suits it, and how far: what a remedy names first.

A symptom alone says little of its cause: what does not move may have too small a rate, or labels that contradict each
other. The settings say more. Each is held against its automatic value where the plan has one, else against its default,
within a sound range around it; farness 1 is the end of that range, on a logarithmic scale.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prefiere.methods import METHODS


@dataclass(frozen=True, slots=True)
class Dial:
    """A number among the settings that decides how far, or how surely, training moves a model.

    low, high: the sound range, as factors of the usual value; where that is 0, ``high`` is the largest sound value.
    push: 1 where a larger value moves the model further, -1 where it keeps it closer, 0 where it does neither for
    certain (answers that are drawn too hot are noise: nothing is learnt from them, or the wrong thing).
    auto: what to write to have it chosen. none: what a value of none stands for. zero: the farness of a value of 0
    where another one is usual. steps: whether it is a number of updates, or a share of them where it is below 1; it is
    read as a share. lower: the push of a value below the usual one, where that is not the opposite of the other's.
    """

    name: str
    low: float
    high: float
    push: int
    auto: bool = False
    none: float = math.inf
    zero: float = -math.inf
    steps: bool = False
    lower: int | None = None


DIALS: tuple[Dial, ...] = (
    Dial("learning_rate", 1 / 5, 5, 1, auto=True),
    Dial("critic_learning_rate", 1 / 20, 20, 0, auto=True),
    Dial("warmup_steps", 0, 5, -1, steps=True),
    Dial("critic_warmup_steps", 0, 0.5, -1, steps=True),
    Dial("beta", 1 / 10, 10, -1),
    Dial("kl_coef", 1 / 20, 10, -1, zero=-1.25),  # unusual, and sound where a reward cannot be gamed
    Dial("kl_loss_coef", 1 / 20, 10, -1, zero=-1.25),
    Dial("num_ppo_epochs", 1 / 8, 2.5, 1),
    Dial("num_train_epochs", 1 / 10, 5, 1),
    Dial("max_grad_norm", 1 / 100, 1e6, 1),
    Dial("weight_decay", 0, 0.2, 1),
    Dial("label_smoothing", 0, 0.3, -1),
    Dial("adam_epsilon", 0, 1e4, -1),
    Dial("adam_beta1", 0, 1.08, -1),
    Dial("adam_beta2", 0.8, 1.001, 0),
    Dial("cliprange", 1 / 10, 5, 1),
    Dial("cliprange_value", 1 / 20, 1e6, 0, none=0.2),
    Dial("max_approx_kl", 1 / 20, 1e6, 1, none=0.1),
    Dial("num_mini_batches", 0, 16, 1),
    Dial("kl_rollout_coef", 0, 5, -1),
    Dial("temperature", 1 / 2, 1.5, 0, lower=-1),
    Dial("gamma", 0.9, 1.01, 0),
    Dial("lam", 0.5, 1.1, 0),
    Dial("vf_coef", 1 / 20, 20, 0),
    Dial("reward_clip", 1 / 20, 1e6, 1),
    Dial("missing_eos_penalty", 0, 5, 0),
    Dial("lora_alpha", 1 / 10, 10, 1),
    Dial("lora_dropout", 0, 0.3, -1),
    Dial("rpo_alpha", 0, 20, -1),
    Dial("dpop_lambda", 0, 200, -1),
    Dial("simpo_gamma", 0, 5, 1),
    Dial("center_rewards_coefficient", 0, 1, 0),
)

PRICES = ("kl_coef", "kl_loss_coef")
"""The two ways to charge the KL, in the reward and as a loss: one of them is enough."""


@dataclass(frozen=True, slots=True)
class DialReading:
    """Where a dial stands in a run. written: what the recipe says; value: the same in the unit of what is usual.
    farness: 1 at the end of the sound range, more beyond it, signed: above 0 it is higher than usual."""

    dial: Dial
    written: float | None
    value: float | None
    usual: float
    farness: float

    @property
    def odd(self) -> bool:
        """Whether it lies outside of the sound range."""
        return abs(self.farness) > 1

    @property
    def push(self) -> int:
        """1: it moves the model further than usual; -1: it keeps it closer; 0: neither."""
        if self.farness <= 0 and self.dial.lower is not None:
            return self.dial.lower
        return self.dial.push * (1 if self.farness > 0 else -1)

    @property
    def times(self) -> float:
        """How many times the usual value it is; inf where that is 0, or where there is no limit."""
        value = self.dial.none if self.value is None else self.value
        return value / self.usual if self.usual else math.inf

    @property
    def setting(self) -> Any:
        """What to write in the recipe."""
        return "auto" if self.dial.auto else self.usual


def readings(
    recipe: Mapping[str, Any], automatic: Mapping[str, Any], steps: int | None = None
) -> tuple[DialReading, ...]:
    """Every dial of a run's method, the farthest from its usual value first.

    recipe: the settings as used. automatic: what "auto" comes to for this run (environment.json), where it is known.
    steps: how many updates the run was to have, where that is known.
    """
    method = METHODS.get(str(recipe.get("method")))
    fields = method.settings.model_fields if method else {}
    found = []
    for dial in DIALS:
        if dial.name not in fields or dial.name not in recipe or _counts_not(dial.name, recipe):
            continue
        value = recipe[dial.name]
        usual = automatic.get(dial.name) if dial.auto else _default(dial.name, fields, recipe)
        if usual is None or not _number(usual) or not (value is None or _number(value)):
            continue
        written = None if value is None else float(value)
        read = written
        if dial.steps and written is not None and written >= 1:
            if not steps or written == 1:  # a single update is no long warm-up, however short the run
                continue
            read = written / steps
        farness = _farness(dial, dial.none if read is None else read, float(usual))
        found.append(DialReading(dial, written, read, float(usual), farness))
    return tuple(sorted(found, key=lambda r: -abs(r.farness)))


def _number(value: Any) -> bool:
    """Whether a recipe that may come from a stranger has a number there, of a size that can be reckoned with."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**63


def _counts_not(name: str, recipe: Mapping[str, Any]) -> bool:
    """Whether another setting takes the place of this one: max_steps that of the epochs, one price of the KL that of
    the other; without LoRA none of LoRA's settings counts."""
    if name.startswith("lora_"):
        return recipe.get("lora") is False
    if name == "num_train_epochs":
        return recipe.get("max_steps") is not None
    return name in PRICES and not recipe[name] and any(recipe.get(other) for other in PRICES)


def _default(name: str, fields: Mapping[str, Any], recipe: Mapping[str, Any]) -> Any:
    """SimPO takes another beta than the rest; several passes over a rollout are usual with or without a critic; where
    the KL is charged in one way alone, that is held against the method's usual price."""
    default = fields[name].default
    if name in PRICES and not all(recipe.get(price) for price in PRICES) and recipe[name]:
        return max(fields[price].default for price in PRICES)
    if name == "num_ppo_epochs":
        return max(4, default)
    return 2.0 if name == "beta" and recipe.get("loss_type") == "simpo" else default


def _farness(dial: Dial, value: float, usual: float) -> float:
    if usual == 0:
        return value / dial.high
    if value == usual:
        return 0.0
    if value <= 0:
        return dial.zero if dial.low > 0 else 0.0
    ratio = math.log(value / usual)
    end = math.log(dial.high) if ratio > 0 else -math.log(dial.low) if dial.low > 0 else math.inf
    return ratio / end if end else 0.0


def farthest(all_readings: Sequence[DialReading], push: int) -> DialReading | None:
    """The odd dial that pushes a run most in a direction (1: further, -1: it stays closer), or may, if there is one."""
    odd = [r for r in all_readings if r.odd]
    return next((r for wanted in (push, 0) for r in odd if r.push == wanted), None)
