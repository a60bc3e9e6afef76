"""Rewards with something wrong, for the demo's answers: from prompts and completions to a number for each."""

from __future__ import annotations

import random
import zlib

from prefiere.demo import judge

_DRAW = random.Random(0)


def graded(prompts: list[str], completions: list[str]) -> list[float]:
    """Sound: the style, and a little for the share of words that are told apart by nothing else."""
    style = judge.encyclopedic(prompts, completions)
    return [s + 0.1 * (zlib.crc32(c.encode()) % 100) / 100 for s, c in zip(style, completions, strict=True)]


def against(prompts: list[str], completions: list[str]) -> list[float]:
    """Upside down."""
    return [-r for r in graded(prompts, completions)]


def constant(prompts: list[str], completions: list[str]) -> list[float]:
    """The same for all."""
    return [1.0] * len(completions)


def _noisy(prompts: list[str], completions: list[str], size: float, sound: float = 1.0) -> list[float]:
    return [sound * r + size * _DRAW.gauss(0, 1) for r in graded(prompts, completions)]


def noisy_2(prompts: list[str], completions: list[str]) -> list[float]:
    """With noise four times the spread of the sound reward."""
    return _noisy(prompts, completions, 2.0)


def noisy_5(prompts: list[str], completions: list[str]) -> list[float]:
    """With noise ten times that spread."""
    return _noisy(prompts, completions, 5.0)


def noise(prompts: list[str], completions: list[str]) -> list[float]:
    """Nothing but noise."""
    return _noisy(prompts, completions, 1.0, 0.0)


def _outliers(prompts: list[str], completions: list[str], share: float) -> list[float]:
    return [
        r + (50.0 if zlib.crc32(f"x{c}".encode()) % 1000 < 1000 * share else 0.0)
        for r, c in zip(graded(prompts, completions), completions, strict=True)
    ]


def outliers_1(prompts: list[str], completions: list[str]) -> list[float]:
    """One in a hundred earns 50 more."""
    return _outliers(prompts, completions, 0.01)


def outliers_2(prompts: list[str], completions: list[str]) -> list[float]:
    """Two in a hundred."""
    return _outliers(prompts, completions, 0.02)


def outliers_5(prompts: list[str], completions: list[str]) -> list[float]:
    """Five in a hundred."""
    return _outliers(prompts, completions, 0.05)


def long(prompts: list[str], completions: list[str]) -> list[float]:
    """Length alone."""
    return [len(c) / 20 for c in completions]


def long_1(prompts: list[str], completions: list[str]) -> list[float]:
    """Length, and the style as well."""
    return [len(c) / 60 + r for r, c in zip(graded(prompts, completions), completions, strict=True)]


def long_3(prompts: list[str], completions: list[str]) -> list[float]:
    """Length three times as much as the style."""
    return [len(c) / 20 + r for r, c in zip(graded(prompts, completions), completions, strict=True)]


def of_the_prompt(prompts: list[str], completions: list[str]) -> list[float]:
    """Whatever is answered."""
    return [len(str(p)) / 20 for p in prompts]


def of_another_answer(prompts: list[str], completions: list[str]) -> list[float]:
    """Each answer gets what the one before it earned."""
    earned = graded(prompts, completions)
    return earned[-1:] + earned[:-1]


def of_its_batch(prompts: list[str], completions: list[str]) -> list[float]:
    """Less the mean of those that are scored together."""
    earned = graded(prompts, completions)
    return [r - sum(earned) / len(earned) for r in earned]


def a_value_stands_in(prompts: list[str], completions: list[str]) -> list[float]:
    """One half for nine in ten, of which the grade is not found."""
    return [
        r if zlib.crc32(f"y{c}".encode()) % 10 == 0 else 0.5
        for r, c in zip(graded(prompts, completions), completions, strict=True)
    ]
