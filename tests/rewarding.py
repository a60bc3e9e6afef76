"""Rewards of answers as a user would write them, good and bad, for ``reward=rewarding:NAME``."""

from __future__ import annotations

import math


def letters(prompts: list[str], completions: list[str]) -> list[float]:
    """Vowels, less a little for length."""
    return [sum(c.count(v) for v in "aeiou") - 0.05 * len(c) for c in completions]


def plain(prompts: list[str], completions: list[str]) -> list[float]:
    """The opposite of what `letters` wants."""
    return [-x for x in letters(prompts, completions)]


def nan(prompts: list[str], completions: list[str]) -> list[float]:
    """Not a number, but where it is tried out."""
    return [1.0 if c == "a" else math.nan for c in completions]


def short(prompts: list[str], completions: list[str]) -> list[float]:
    """One answer is forgotten, but where it is tried out."""
    return [1.0] * max(1, len(completions) - 1)


def raises(prompts: list[str], completions: list[str]) -> list[float]:
    """Divides by nothing, but where it is tried out."""
    return [1.0 if c == "a" else 1 / 0 for c in completions]


def same(prompts: list[str], completions: list[str]) -> list[float]:
    """Nothing to choose."""
    return [1.0] * len(completions)
