"""Answers to the same prompt before and after, beside each other, cut to what a reader takes in."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LONGEST = 1500
"""Characters shown of a prompt, an answer or a setting; the rest is counted."""
MOST_ANSWERS = 48
"""Answers shown of a run, the first ones open; the rest is counted."""


@dataclass(frozen=True, slots=True)
class Passage:
    """Text cut to what is shown: pieces with whether they changed, and how many characters are left out."""

    pieces: tuple[tuple[str, bool], ...]
    left_out: int = 0

    @property
    def long(self) -> bool:
        """Whether it may be higher than the page shows at once: 17 lines, of 21 wide letters on a phone."""
        text = "".join(piece for piece, _ in self.pieces)
        return len(text) / 21 + text.count("\n") > 17


@dataclass(frozen=True, slots=True)
class Answer:
    """The same prompt, answered before and after; either may be missing."""

    prompt: Passage
    before: Passage | None
    after: Passage | None
    row_before: Mapping[str, Any]
    row_after: Mapping[str, Any]


def before_and_after(rows: Sequence[Mapping[str, Any]]) -> tuple[list[Answer], tuple[int, int], int]:
    """First and last answers to each prompt and sample, their steps, and how many are not shown.

    Answers that changed come before those that did not; among them the first sample of each prompt before the second
    ones, so that what is shown is varied.
    """
    steps = [r["step"] for r in rows if isinstance(r.get("step"), int)]
    if not steps:
        return [], (0, 0), 0
    first, last = min(steps), max(steps)
    found: dict[tuple[str, Any], dict[int, Mapping[str, Any]]] = {}
    for row in rows:
        if row.get("step") in (first, last):
            found.setdefault((_prompt(row.get("prompt")), row.get("sample")), {})[row["step"]] = row
    answers = []

    def late(item: tuple[tuple[str, Any], dict[int, Mapping[str, Any]]]) -> tuple[bool, str]:
        (_, sample), by_step = item
        unchanged = len({str(row.get("completion")) for row in by_step.values()}) == 1
        return unchanged and len(by_step) == 2, str(sample).zfill(9)

    varied = sorted(found.items(), key=late)
    for (prompt, _), by_step in varied[:MOST_ANSWERS]:
        before, after = by_step.get(first), by_step.get(last) if last != first else None
        texts = [None if r is None else _cut(str(r.get("completion") or "")) for r in (before, after)]
        if texts[0] and texts[1]:
            texts = list(_compared(texts[0], texts[1]))
        answers.append(Answer(_cut(prompt), texts[0], texts[1], before or {}, after or {}))
    return answers, (first, last), max(0, len(found) - MOST_ANSWERS)


def _prompt(prompt: Any) -> str:
    """A prompt as text; messages become ``role: content``."""
    if isinstance(prompt, list):
        turns = [m if isinstance(m, Mapping) else {"content": m} for m in prompt]
        return "\n\n".join(f"{m.get('role', '')}: {m.get('content', '')}".removeprefix(": ") for m in turns)
    return str(prompt if prompt is not None else "")


def _cut(text: str) -> Passage:
    """The beginning of a text, and how much is left out."""
    return Passage(((text[:LONGEST], False),), max(0, len(text) - LONGEST))


def _compared(before: Passage, after: Passage) -> tuple[Passage, Passage]:
    """Both with the words that differ marked; unmarked where hardly a word is the same, and marks would say nothing."""
    a, b = (re.findall(r"\S+\s*|\s+", p.pieces[0][0]) for p in (before, after))
    matcher = difflib.SequenceMatcher(None, [w.strip() for w in a], [w.strip() for w in b], autojunk=False)
    if matcher.ratio() < 0.4:
        return before, after
    left, right = [], []
    for kind, i, j, k, m in matcher.get_opcodes():
        left.append(("".join(a[i:j]), kind != "equal"))
        right.append(("".join(b[k:m]), kind != "equal"))
    return (
        Passage(tuple(piece for piece in left if piece[0]), before.left_out),
        Passage(tuple(piece for piece in right if piece[0]), after.left_out),
    )
