"""What a verdict means: words, numbers and scores that prefer one of two answers.

A number alone does not say whether sides are counted from 0 or from 1: the set of all numbers in the column does, with
the names of the two columns. Where neither does, the data is refused, with the names that say it. A side's word in the
name of the column makes it a flag: ``response_1_better`` is 1 where the first answer is better.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

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
           "side", "which", "one", "who", "a", "b", "first", "second", "left", "right", "0", "1", "2"}  # fmt: skip

_FIRST, _SECOND = {"a", "1", "left", "first", "one"}, {"b", "2", "right", "second", "two"}
_TIED = {"tie", "tied", "equal", "equally", "same", "draw", "both", "similar"}
_BAD = {"bothbad", "neither", "none"}
_NOISE = {"model", "response", "answer", "assistant", "option", "output", "completion", "candidate", "text", "summary",
          "conversation", "side", "the", "is", "better", "best", "wins", "win", "won", "winner", "preferred", "prefer",
          "much", "slightly", "somewhat", "clearly", "significantly", "good", "chosen", "id"}  # fmt: skip
# Words that may stand beside both sides in "A and B are equally good" and "neither A nor B"; and others about models.
_JOINED = {"and", "or", "nor", "are", "about", "as", "bad"}
_DECIDED = {"better", "best", "wins", "win", "won", "winner", "preferred", "prefer", "chosen"}
_OF_MODEL = {"model", "name", "id", "response", "answer", "output", "completion", "generator"}
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
    words = words_of(re.sub(r"\ba (?=tie|draw)", "", said, flags=re.IGNORECASE))
    named = [side for w in words if (side := _side(w, one, two)) is not None]
    if set(words) & (_BAD | _TIED):
        return _alike(set(words), named, {w for w in words if _side(w, one, two) is None})
    left = [w for w in words if w not in _NOISE]
    if len(left) == 3 and left[1] == "than" and "better" in words[: words.index("than")]:  # A is much better than B
        return named[0] if len(named) == 2 and named[0] != named[1] else None
    return named[0] if len(left) == len(named) == 1 else None


def _side(word: str, one: str, two: str) -> Literal["a", "b"] | None:
    if word in (one, two):
        return "a" if word == one else "b"
    if one in ("0", "1") and word.isdigit():
        return None
    return "a" if word in _FIRST else "b" if word in _SECOND else None


def _alike(words: set[str], named: list[Literal["a", "b"]], others: set[str]) -> Preference | None:
    """A tie or both bad, where the words name no side ("both are good"), or both and nothing else ("A and B tie")."""
    if named and (set(named) != {"a", "b"} or words & _DECIDED or not others <= _BAD | _TIED | _JOINED | _NOISE):
        return None
    return "both_bad" if words & _BAD or {"both", "bad"} <= words else "tie"


def verdict(value: Any, where: str) -> Preference:
    """Which answer a word prefers. Raises BadRow at a word that is not known."""
    known = side_word(value)
    if known is None:
        detail = f"expected {KNOWN_WORDS}, found {str(value)[:40]!r}"
        raise BadRow(where, f"unknown verdict in {where}", detail)
    return known


def number_of(value: Any) -> float | None:
    """A finite number, also as text, and 1 or 0 for true and false; None for anything else."""
    if (flagged := _truth(value)) is not None:
        return float(flagged)
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _truth(value: Any) -> bool | None:
    """True and false, also as text; None for numbers and other words."""
    if isinstance(value, str):
        return {"true": True, "false": False}.get(value.strip().lower())
    return value if isinstance(value, bool) else None


@dataclass(frozen=True)
class Meaning:
    """What the values of a verdict column mean. numbers: what each number prefers, and how strongly if it says so.

    strength: the column that says how strongly, and its number for full strength.
    """

    column: str
    sides: Sides
    numbers: Mapping[float, tuple[Preference, float | None]] = field(default_factory=dict)
    strength: tuple[str, float] | None = None

    def read(self, row: Mapping[str, Any]) -> tuple[Preference, float | None]:
        """The verdict of a row, and its strength. Raises BadRow where nothing is said, or something unknown."""
        preference, strength = self._said(row)
        if self.strength is not None and preference in ("a", "b"):
            column, full = self.strength
            strength = abs(number_of(row.get(column)) or 0.0) / full or None
        return preference, strength

    def _said(self, row: Mapping[str, Any]) -> tuple[Preference, float | None]:
        value = row.get(self.column)
        if value is None or value == "":
            raise BadRow(self.column, "unanswered", "nobody gave a verdict", content=True)
        number = number_of(value)
        if number is None:
            return preferred_side(value, row, self.sides, self.column), None
        if number in self.numbers:
            return self.numbers[number]
        if self.sides.one == "1" and 1 <= number <= 2:  # AlpacaEval: 1 plus a probability
            return ("tie" if number == 1.5 else "a" if number < 1.5 else "b"), None
        raise _unknown(value, self.column)


def preferred_side(value: Any, row: Mapping[str, Any], sides: Sides, where: str) -> Preference:
    """Which answer of a row a word prefers, or the name of a side's column, of its model, or its text.

    Raises BadRow where it names neither, or both.
    """
    said, named = side_word(value, sides.one, sides.two), _named(value, row, sides)
    if said is None and len(named) == 2:
        detail = f"{str(value)[:40]!r} names both sides alike: say a, b, tie or both_bad"
        raise BadRow(where, f"unknown verdict in {where}", detail)
    if said is None and named:
        said = named[0]
    if said is None or (said in ("a", "b") and len(named) == 1 and said != named[0]):
        raise _unknown(value, where)
    return said


def _unknown(value: Any, where: str) -> BadRow:
    return BadRow(where, f"unknown verdict in {where}", f"expected {KNOWN_WORDS}, found {str(value)[:40]!r}")


def _named(value: Any, row: Mapping[str, Any], sides: Sides) -> list[Preference]:
    """The sides that a value names by their column, their model or their text."""
    if not isinstance(value, str):
        return []
    said, found = value.strip(), list[Preference]()
    for side, column, word in (("a", sides.a, sides.one), ("b", sides.b, sides.two)):
        names = [column, row.get(column), *(row.get(c) for c in row if _is_model(str(c), word))]
        if any(isinstance(n, str) and n.strip() == said for n in names):
            found.append("a" if side == "a" else "b")
    return found


@lru_cache(maxsize=1024)
def _is_model(column: str, word: str) -> bool:
    words = set(words_of(column))
    return {"model", word} <= words <= _OF_MODEL | {word}


def meaning_of(column: str, sides: Sides, values: Iterable[Any], where: str) -> Meaning:
    """What the numbers of a verdict column mean, from all values in it. Raises DataError where that cannot be known."""
    found, flags = set[float](), False
    for value in values:
        if value is not None and (number := number_of(value)) is not None:
            found.add(number)
            flags = flags or _truth(value) is not None
    words = words_of(column)
    if not found:
        return Meaning(column, sides)
    if is_strength(column):
        return Meaning(column, sides, _scale(column, found, where))
    if sides.words == ("human", "ref") and column in ("label", "labels"):  # SHP: 1 where the first is preferred
        return Meaning(column, sides, {1.0: ("a", None), 0.0: ("b", None)})
    numbers: dict[float, Preference] | None
    digits = {w for w in words if w.isdigit()}
    flagged = {s for w in words if w not in digits - {sides.one, sides.two} and (s := _side(w, sides.one, sides.two))}
    if found <= {0.0, 1.0} and (flagged or digits):
        yes = "a" in flagged
        numbers = {1.0: "a" if yes else "b", 0.0: "b" if yes else "a"} if len(flagged) == 1 else None
    else:
        numbers = _counted(column, sides, found) if not flags or "index" in words else None
    if numbers is None:
        raise DataError(_cannot_tell(column, sides, found, flags, where))
    return Meaning(column, sides, {n: (p, None) for n, p in numbers.items()})


def is_strength(column: str) -> bool:
    """Whether a column of verdicts says how strongly: on a scale with a sign, also which answer."""
    return "strength" in words_of(column) or words_of(column) == ("overall", "preference")


def full_strength(found: set[float]) -> float | None:
    """The number that stands for full strength: 3 of whole numbers, 1 of shares; None on a scale that is not known."""
    if all(abs(n) <= 3 and n == int(n) for n in found):
        return 3.0
    return 1.0 if all(0 <= n <= 1 for n in found) else None


def _scale(column: str, found: set[float], where: str) -> dict[float, tuple[Preference, float | None]]:
    """HelpSteer: -3, the first is much better, to 3, the second is; 0 is a tie."""
    if not min(found) < 0 < max(found):
        raise DataError(
            f"{where}: {column} ({_shown(found)}) has no numbers of both signs: it says how strongly an answer is "
            f"preferred, not which. Name the column that does: {map_to_give({'preference': '<column>'})}"
        )
    if any(abs(n) > 3 for n in found):
        raise DataError(f"{where} ({column}): expected -3 (the first answer is much better) to 3, found {max(found):g}")
    return {n: ("tie" if n == 0 else "a" if n < 0 else "b", abs(n) / 3 or None) for n in found}


def _counted(column: str, sides: Sides, found: set[float]) -> dict[float, Preference] | None:
    """Which side each number names; None where it cannot be known."""
    words = words_of(column)
    from_0: dict[float, Preference] = {0.0: "a", 1.0: "b"}
    from_1: dict[float, Preference] = {1.0: "a", 2.0: "b"}
    if "index" in words and (found <= {0.0, 1.0} or (0.0 in found and found <= {0.0, 1.0, 2.0})):
        return from_0 | {2.0: "tie"}
    if "number" in words and (found <= {1.0, 2.0} or (2.0 in found and found <= {0.0, 1.0, 2.0})):
        return from_1 | {0.0: "tie"}
    if "number" in words and 0.0 in found:
        return None
    if sides.words == ("output",) and sides.one == "1" and column == "preference":  # AlpacaEval: 0 is a tie
        return from_1 | {0.0: "tie"} if all(n == 0 or 1 <= n <= 2 for n in found) else None
    if sides.one == "0" and found <= {0.0, 1.0}:
        return from_0
    if sides.one == "1" and all(1 <= n <= 2 for n in found) and max(found) > 1:
        return from_1
    if sides.one not in ("0", "1") and ("label" in words or "labels" in words):
        return None  # 1 may call the first answer better, or name the second
    if found == {0.0, 1.0} or (found == {0.0} and sides.one != "1"):
        return from_0  # 1 alone may name the first, or the second
    return from_1 if 2.0 in found and found <= {1.0, 2.0} else None


def _shown(found: set[float], flags: bool = False) -> str:
    if flags and found <= {0.0, 1.0}:
        return ", ".join("true" if n else "false" for n in sorted(found))
    return ", ".join(f"{n:g}" for n in sorted(found)[:5]) + (", ..." if len(found) > 5 else "")


def _cannot_tell(column: str, sides: Sides, found: set[float], flags: bool, where: str) -> str:
    a_tie = ", 2 a tie" if 2.0 in found else ""
    no_tie = ", 0 a tie" if 0.0 in found else ""
    ways = {
        f"0 names the first answer, 1 the second{a_tie}": ("winner_index", {0.0, 1.0, 2.0} if 0.0 in found else {1.0}),
        f"1 names the first answer, 2 the second{no_tie}": ("winner_number", {0.0, 1.0, 2.0} if 2 in found else {1.0}),
        "1 says that the first is better, 0 that the second is": ("a_is_better", {0.0, 1.0}),
        "a scale from -3 (the first is much better) to 3": ("preference_strength", found if min(found) < 0 else set()),
    }
    if flags:
        ways = {
            "true says that the first is better": ("a_is_better", found),
            "that the second is": ("winner_index", found),
        }
    told = [f"{what}: {map_to_give({name: column})}" for what, (name, fitting) in ways.items() if found <= fitting]
    told = told or [f"another column says it: {map_to_give({'preference': '<column>'})}"]
    return (
        f"{where}: the values in {column} ({_shown(found, flags)}) do not say which of {sides.a} and {sides.b} they "
        f"prefer. If {'; '.join(told)}"
    )
