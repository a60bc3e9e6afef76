"""What is said of data, from an account of it that may come from a stranger."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest

from prefiere.data.audit import Auditor
from prefiere.data.quality.faults import Faults
from prefiere.data.schema import PreferencePair
from prefiere.doctor.rules.data import findings_of

Place = tuple[str, ...]


def account() -> dict[str, Any]:
    """Of 80 pairs that one word gives away, one of which contradicts another."""
    auditor, faults = Auditor(), Faults()

    def pair(n: int, chosen: str, rejected: str) -> PreferencePair:
        return PreferencePair(prompt=f"question {n}", chosen=f"{chosen} {n}", rejected=f"{rejected} {n}", source="p:1")

    for each in [*(pair(n, "yes", "no") for n in range(80)), pair(0, "no", "yes")]:
        auditor.add(each)
        faults.add(each)
    turned = {"share": 0.2, "low": 0.15, "high": 0.25, "n": 81, "between": 2, "count": 16, "sources": ["p:1"]}
    found = faults.to_dict()
    found["words"]["reversed"] = turned
    places = {"count": 32, "sources": ["p:2"], "sure": True}
    found["elsewhere"] = {"strays": 40, "n": 81, "share": 0.8, "by_chance": 0.2, "apart": 1, "in_step": 20} | places
    return {"audit": auditor.found().to_dict() | {"faults": found}}


def numbers(of: dict[str, Any], above: Place = ()) -> Iterator[Place]:
    for name, value in of.items():
        if isinstance(value, dict):
            yield from numbers(value, (*above, name))
        elif isinstance(value, int | float):
            yield (*above, name)


@pytest.mark.parametrize(
    "strange", [float("inf"), float("nan"), -1, pytest.param(10**400, id="huge"), "many", [7], None, True]
)
def test_no_number_of_an_account_breaks_what_is_said(strange: object) -> None:
    sound = account()
    assert {"words_tell", "words_reversed", "answers_astray"} <= {f.key for f in findings_of(sound)}
    places = list(numbers(sound))
    assert ("audit", "faults", "words", "n") in places
    for *above, name in places:
        changed = inside = copy.deepcopy(sound)
        for part in above:
            inside = inside[part]
        inside[name] = strange
        for finding in findings_of(changed):
            assert "-" not in "".join(w for w in finding.title.split() if w.strip("-%,.").isdigit())
            assert "inf" not in finding.title
            assert "nan" not in finding.title
