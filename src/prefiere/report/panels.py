"""Which curves are shown for which family of methods, and what each is compared with.

What a curve is called, its unit and its meaning stand in the table of metrics.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from prefiere.doctor.case import Case, Family
from prefiere.metrics import Column, column


@dataclass(frozen=True, slots=True)
class Panel:
    """One figure: the metric, and a value to compare with, with its name (a key of the words). ``varies``: shown only
    where the metric changes."""

    column: Column
    reference: float | None = None
    reference_name: str = ""
    varies: bool = False

    @property
    def key(self) -> str:
        """The metric's name."""
        return self.column.name

    @property
    def scores(self) -> bool:
        """Of reward models alone: their numbers carry the names of preference optimisation and mean something else."""
        return "reward" in self.column.where

    def of(self, case: Case) -> bool:
        """Whether the run belongs on this figure."""
        return self.scores == (case.family == "reward")


def _panels(family: Family, *shown: tuple[str, float | None, str]) -> tuple[Panel, ...]:
    return tuple(Panel(column(key, family), value, name) for key, value, name in shown)


PREFERENCE_PANELS = _panels(
    "preference",
    ("loss", None, ""),
    ("rewards/margins", 0.0, "mark.as_before"),
    ("rewards/accuracies", 0.5, "mark.coin"),
    ("rewards/chosen", 0.0, "mark.as_before"),
    ("rewards/rejected", 0.0, "mark.as_before"),
    ("samples/kl", 0.0, "mark.not_moved"),
)
NO_REFERENCE_PANELS = _panels(
    "preference",
    ("loss", None, ""),
    ("rewards/margins", 0.0, "mark.no_difference"),
    ("rewards/accuracies", 0.5, "mark.coin"),
    ("rewards/chosen", None, ""),
    ("rewards/rejected", None, ""),
    ("samples/kl", 0.0, "mark.not_moved"),
)
"""Of the losses that compare with no model from before."""
IMITATION_PANELS = _panels(
    "imitation", ("loss", None, ""), ("samples/kl", 0.0, "mark.not_moved"), ("mean_token_accuracy", None, "")
)
REWARD_PANELS = _panels(
    "reward",
    ("loss", math.log(2), "mark.coin"),
    ("rewards/margins", 0.0, "mark.no_difference"),
    ("rewards/accuracies", 0.5, "mark.coin"),
    ("rewards/chosen", None, ""),
    ("rewards/rejected", None, ""),
)
POLICY_PANELS = (
    *_panels(
        "policy",
        ("samples/reward", None, ""),
        ("samples/kl", 0.0, "mark.not_moved"),
        ("entropy", 0.0, "mark.no_choice"),
        ("policy/clipfrac_avg", None, ""),
        ("policy/approxkl_avg", None, ""),
        ("loss/value_avg", None, ""),
        ("val/explained_variance", 0.0, "mark.nothing"),
        ("length_reward_correlation", 0.0, "mark.unrelated"),
    ),
    Panel(column("kl_coef"), varies=True),
)
ANSWERS_PANELS = tuple(
    Panel(column(f"samples/{name}"))
    for name in ("score", "reward_disagreement", "eos_rate", "length", "repetition", "ref_logp")
)
_PANELS: dict[Family, tuple[Panel, ...]] = {
    "preference": PREFERENCE_PANELS,
    "imitation": IMITATION_PANELS,
    "reward": REWARD_PANELS,
    "policy": POLICY_PANELS,
}


def panels_of(cases: Sequence[Case]) -> Iterable[Panel]:
    """The panels of every family among the runs, each metric once, in the words of the first run that has it."""
    by_key: dict[tuple[str, bool], Panel] = {}
    for case in cases:
        alone = case.family == "preference" and not case.has_reference
        for panel in NO_REFERENCE_PANELS if alone else _PANELS[case.family]:
            told = replace(panel, column=column(panel.key, *case.where))
            by_key.setdefault((told.key, told.scores), _coin_flip(told, cases) if told.key == "loss" else told)
    return by_key.values()


def _coin_flip(loss: Panel, cases: Sequence[Case]) -> Panel:
    """The loss panel, with ln 2 as its reference where that is what every run on it began at."""
    pairs = [c for c in cases if c.family in ("preference", "imitation")]
    plain = [
        c.has_reference and c.recipe.get("loss_type", "sigmoid") == "sigmoid" and not c.recipe.get("rpo_alpha")
        for c in pairs
    ]
    return replace(loss, reference=math.log(2), reference_name="mark.coin") if pairs and all(plain) else loss
