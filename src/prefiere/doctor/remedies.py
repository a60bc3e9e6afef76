"""What to set next time: a sentence, and the setting that `prefiere doctor --apply` writes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from prefiere.asked.language import TONGUES, Tongue, Worded, other_words, saying, within
from prefiere.methods import METHODS

_ROOM = "prefiere.doctor.plain"


@dataclass(frozen=True, slots=True)
class Remedy:
    """Something to try. text: the sentence. setting, value: what it changes in the recipe, where it does that.
    push: 1 where the model then moves further, -1 where it stays closer; remedies of both kinds contradict each
    other."""

    text: str | Worded
    setting: str = ""
    value: Any = None
    push: int = 0

    def __str__(self) -> str:
        return str(self.text)

    def within(self, spoken: Tongue) -> str:
        """The sentence in a language; one that no table has stays in English."""
        return within(worded(self.text) if isinstance(self.text, str) else self.text, spoken)


def worded(text: str) -> Worded:
    """An English text of this room with its words in every language (plain/remedies_es.yaml)."""
    return Worded(tuple(other_words(_ROOM, "remedies", spoken).get(text, text) for spoken in TONGUES))


def advised(key: str, push: int = 0, /, **values: str | Worded) -> Remedy:
    """A sentence of doctor/plain whose braces are filled in, as something to try."""
    return Remedy(saying(_ROOM, f"remedy.{key}", **values), push=push)


def set_to(name: str, value: Any, why: str = "", push: int = 0) -> Remedy:
    """``beta=0.3, which ties the model more strongly to where it started``."""
    shown = f"{value:g}" if isinstance(value, float) else {True: "true", False: "false"}.get(value, str(value))
    if isinstance(value, float) and 0 < abs(value) < 1e-3:
        shown = f"{value:.0e}"
    return Remedy(f"{name}={shown}" + (f", {why}" if why else ""), name, value, push)


def agreeing(remedies: Iterable[Remedy], push: int) -> tuple[Remedy, ...]:
    """Those that do not push against ``push``."""
    return tuple(r for r in remedies if r.push * push >= 0)


def acceptable(remedies: Iterable[Remedy], recipe: Mapping[str, Any]) -> tuple[Remedy, ...]:
    """Those that a run's method, and its loss, take; all of them where the recipe is refused as it is, and nothing can
    be told."""
    method = METHODS.get(str(recipe.get("method")))

    def taken(values: Mapping[str, Any]) -> bool:
        try:
            return method is None or bool(method.settings.model_validate(values))
        except ValidationError:
            return False

    if not taken(recipe):
        return tuple(remedies)
    return tuple(r for r in remedies if not r.setting or taken({**recipe, r.setting: r.value}))
