"""What a verdict means: words, numbers and scores that prefer one of two answers.

A number alone does not say whether sides are counted from 0 or from 1: the set of all numbers in the column does, with
the names of the two columns. Where neither does, the data is refused, with the names that say it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from prefiere.data.layouts.names import Sides, map_to_give, words_of
from prefiere.data.schema import Preference
from prefiere.data.values import BadRow, DataError

# Words in the names of columns that hold a verdict, the likeliest first.
_ABOUT = (
    ("preference", "strength"),
    ("overall", "preference"),
    ("preference",),
    ("better",),
    ("winner",),
    ("preferred",),
    ("choice",),
    ("verdict",),
    ("comparison",),
    ("vote",),
    ("selected",),
    ("best",),
    ("prefer",),
    ("chosen",),
    ("decision",),
    ("judgement",),
    ("judgment",),
    ("wins",),
    ("win",),
    ("safer",),
    ("labels",),
    ("label",),
)
_BESIDE = {"id", "idx", "index", "number", "label", "name", "column", "human", "response", "answer", "output", "model",
           "is", "the", "overall", "strength", "final", "gold", "expert", "crowd", "majority", "annotator", "user",
           "side", "a", "b", "first", "second", "left", "right", "0", "1", "2"}  # fmt: skip

_FIRST, _SECOND = {"a", "1", "left", "first", "one"}, {"b", "2", "right", "second", "two"}
_TIED = {"tie", "tied", "equal", "equally", "same", "draw", "both", "similar"}
_BAD = {"bothbad", "neither", "none"}
_NOISE = {"model", "response", "answer", "assistant", "option", "output", "completion", "candidate", "text", "summary",
          "conversation", "side", "the", "is", "better", "best", "wins", "win", "won", "winner", "preferred", "prefer",
          "much", "slightly", "somewhat", "clearly", "significantly", "good", "chosen", "id"}  # fmt: skip
_AGAINST = re.compile(r"\W*(?:model|response|answer|assistant)?[ _]?(\w+)\s*(>+|=+|<+)\s*\w+\W*", re.IGNORECASE)

KNOWN_WORDS = "a, b, tie or both_bad (also model_a, left, first, both bad, ...)"


def about_verdict(column: str) -> int | None:
    """How likely a column of this name holds a verdict: 0 the likeliest; None where its name says nothing of one."""
    words = words_of(column)
    for rank, about in enumerate(_ABOUT):
        if set(about) <= set(words) and set(words) - set(about) <= _BESIDE | {w for a in _ABOUT for w in a}:
            return rank
    return None


def side_word(value: Any, one: str = "a", two: str = "b") -> Preference | None:
    """Which answer a word or a short phrase prefers. ``one`` and ``two``: what the data calls the sides."""
    said = str(value)
    if len(said) > 80:
        return None
    if ordered := _AGAINST.fullmatch(said):
        if ordered[2][0] == "=":
            return "tie"
        first = side_word(ordered[1], one, two)
        return first if ordered[2][0] == ">" or first not in ("a", "b") else ("b" if first == "a" else "a")
    words = words_of(said)
    if set(words) & _BAD or {"both", "bad"} <= set(words):
        return "both_bad"
    if set(words) & _TIED:
        return "tie"
    left = [w for w in words if w not in _NOISE]
    if len(left) != 1:
        return None
    if left[0] in (one, two):
        return "a" if left[0] == one else "b"
    if one in ("0", "1") and left[0].isdigit():
        return None
    return "a" if left[0] in _FIRST else "b" if left[0] in _SECOND else None


def verdict(value: Any, where: str) -> Preference:
    """Which answer a word prefers. Raises BadRow at a word that is not known."""
    known = side_word(value)
    if known is None:
        detail = f"expected {KNOWN_WORDS}, found {str(value)[:40]!r}"
        raise BadRow(where, f"unknown verdict in {where}", detail)
    return known


def _number(value: Any) -> float | None:
    if isinstance(value, bool):
        return float(value)
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


@dataclass(frozen=True)
class Meaning:
    """What the values of a verdict column mean. numbers: what each number prefers, and how strongly if it says so."""

    column: str
    sides: Sides
    numbers: Mapping[float, tuple[Preference, float | None]] = field(default_factory=dict)

    def read(self, row: Mapping[str, Any]) -> tuple[Preference, float | None]:
        """The verdict of a row, and its strength. Raises BadRow where nothing is said, or something unknown."""
        value = row.get(self.column)
        if value is None or value == "":
            raise BadRow(self.column, "unanswered", "nobody gave a verdict", content=True)
        number = _number(value)
        if number is not None and number in self.numbers:
            return self.numbers[number]
        if number is not None and self.sides.one == "1" and 1 <= number <= 2:  # AlpacaEval: 1 plus a probability
            return ("tie" if number == 1.5 else "a" if number < 1.5 else "b"), None
        known = side_word(value, self.sides.one, self.sides.two) if number is None else None
        if known is None:
            known = _named(value, row, self.sides)
        if known is None:
            detail = f"expected {KNOWN_WORDS}, found {str(value)[:40]!r}"
            raise BadRow(self.column, f"unknown verdict in {self.column}", detail)
        return known, None


def _named(value: Any, row: Mapping[str, Any], sides: Sides) -> Preference | None:
    """The side that a value names by its column, its model or its text."""
    for side, column, word in (("a", sides.a, sides.one), ("b", sides.b, sides.two)):
        model = row.get(f"model_{word}")
        if value in (column, model) or (isinstance(value, str) and value.strip() == str(row[column]).strip()):
            return "a" if side == "a" else "b"
    return None


def meaning_of(column: str, sides: Sides, values: Iterable[Any], where: str) -> Meaning:
    """What the numbers of a verdict column mean, from all values in it. Raises DataError where that cannot be known."""
    found = {n for v in values if v is not None and (n := _number(v)) is not None}
    words = words_of(column)
    if not found:
        return Meaning(column, sides)
    if {"strength"} <= set(words) or words == ("overall", "preference"):
        return Meaning(column, sides, _scale(column, found, where))
    if sides.words == ("human", "ref") and column in ("label", "labels"):  # SHP: 1 where the first is preferred
        return Meaning(column, sides, {1.0: ("a", None), 0.0: ("b", None)})
    flagged = {"a" if w in _FIRST else "b" for w in words if w in (_FIRST | _SECOND) and not w.isdigit()}
    if found <= {0.0, 1.0} and len(flagged) == 1:
        yes: Preference = "a" if "a" in flagged else "b"
        return Meaning(column, sides, {1.0: (yes, None), 0.0: ("b" if yes == "a" else "a", None)})
    first = _counted_from(column, sides, found)
    if first is None:
        raise DataError(_cannot_tell(column, sides, found, where))
    numbers: dict[float, tuple[Preference, float | None]] = {first: ("a", None), first + 1: ("b", None)}
    return Meaning(column, sides, numbers | ({0.0: ("tie", None)} if first == 1 and 0 in found else {}))


def _scale(column: str, found: set[float], where: str) -> dict[float, tuple[Preference, float | None]]:
    """HelpSteer: -3, the first is much better, to 3, the second is; 0 is a tie."""
    if any(abs(n) > 3 for n in found):
        raise DataError(f"{where} ({column}): expected -3 (the first answer is much better) to 3, found {max(found):g}")
    return {n: ("tie" if n == 0 else "a" if n < 0 else "b", abs(n) / 3 or None) for n in found}


def _counted_from(column: str, sides: Sides, found: set[float]) -> float | None:
    """The number of the first side; None where it cannot be known."""
    for word, first in (("index", 0.0), ("number", 1.0)):
        if word in words_of(column) and found <= {first, first + 1}:
            return first
    if sides.one in ("0", "1"):
        one = float(sides.one)
        if found <= {one, one + 1}:
            return one
        if one == 1 and all(n == 0 or 1 <= n <= 2 for n in found) and (max(found) > 1):
            return 1.0
        return 0.0 if found <= {0.0, 1.0} else 1.0 if found <= {1.0, 2.0} else None
    if "label" in words_of(column) or "labels" in words_of(column):
        return None  # 1 may call the first answer better, or name the second
    if 0 in found and found <= {0.0, 1.0}:
        return 0.0
    return 1.0 if 2 in found and found <= {1.0, 2.0} else None


def _cannot_tell(column: str, sides: Sides, found: set[float], where: str) -> str:
    shown = ", ".join(f"{n:g}" for n in sorted(found)[:5]) + (", ..." if len(found) > 5 else "")
    ways = {
        "0 names the first answer, 1 the second": "winner_index",
        "1 names the first answer, 2 the second": "winner_number",
        "1 says that the first is better, 0 that the second is": "a_is_better",
        "a scale from -3 (the first is much better) to 3": "preference_strength",
    }
    said = "; ".join(f"{what}: {map_to_give({name: column})}" for what, name in ways.items())
    return (
        f"{where}: the numbers in {column} ({shown}) do not say which of {sides.a} and {sides.b} they prefer. If {said}"
    )
