"""Rewards of answers as a user would write them, good and bad, for ``reward=rewarding:NAME``."""

from __future__ import annotations

import math
import zlib


def letters(prompts: list[str], completions: list[str]) -> list[float]:
    """Vowels, less a little for length."""
    if not completions:
        raise IndexError("nothing to score")
    return [sum(c.count(v) for v in "aeiou") - 0.05 * len(c) for c in completions]


def nan(prompts: list[str], completions: list[str]) -> list[float]:
    """Not a number, but where it is tried out."""
    return [1.0 if c == "a" else math.nan for c in completions]


def short(prompts: list[str], completions: list[str]) -> list[float]:
    """One answer is forgotten, but where it is tried out."""
    return [1.0] * max(1, len(completions) - 1)


def raises(prompts: list[str], completions: list[str]) -> list[float]:
    """Divides by nothing, but where it is tried out."""
    return [1.0 if c == "a" else 1 / 0 for c in completions]


def words(prompts: list[str], completions: list[str]) -> list[str]:
    """No numbers, but where it is tried out."""
    return ["1" if c == "a" else "good" for c in completions]


def graded(prompts: list[str], completions: list[str]) -> list[float]:
    """A fixed number from 0 to 1 for each pair of texts, spread evenly."""
    return [zlib.crc32(f"{p}>{c}".encode()) % 1000 / 999 for p, c in zip(prompts, completions, strict=True)]


def lowered(prompts: list[str], completions: list[str]) -> list[float]:
    """The same from -0.35 to 0.65."""
    return [x - 0.35 for x in graded(prompts, completions)]


def right(prompts: list[str], completions: list[str]) -> list[float]:
    """1 for about a third of all answers to a prompt, else 0."""
    return [float(x < 1 / 3) for x in graded(prompts, completions)]


def vowels(prompts: list[str], completions: list[str]) -> list[float]:
    """The share of vowels."""
    return [sum(c.count(v) for v in "aeiou") / max(len(c), 1) for c in completions]


def consonants(prompts: list[str], completions: list[str]) -> list[float]:
    """The share of all else."""
    return [1 - x for x in vowels(prompts, completions)]
