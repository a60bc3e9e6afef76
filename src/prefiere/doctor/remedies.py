"""What to set next time: a sentence, and the setting that `prefiere doctor --apply` writes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Remedy:
    """Something to try. text: the sentence. setting, value: what it changes in the recipe, where it does that.
    push: 1 where the model then moves further, -1 where it stays closer; remedies of both kinds contradict each
    other."""

    text: str
    setting: str = ""
    value: Any = None
    push: int = 0

    def __str__(self) -> str:
        return self.text


def set_to(name: str, value: Any, why: str = "", push: int = 0) -> Remedy:
    """``beta=0.3, which ties the model more strongly to where it started``."""
    shown = f"{value:g}" if isinstance(value, float) else {True: "true", False: "false"}.get(value, str(value))
    if isinstance(value, float) and 0 < abs(value) < 1e-3:
        shown = f"{value:.0e}"
    return Remedy(f"{name}={shown}" + (f", {why}" if why else ""), name, value, push)


def agreeing(remedies: Iterable[Remedy], push: int) -> tuple[Remedy, ...]:
    """Those that do not push against ``push``."""
    return tuple(r for r in remedies if r.push * push >= 0)
