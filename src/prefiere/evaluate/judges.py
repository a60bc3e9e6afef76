"""Judges: anything that scores answers. Two scores make a preference; equal scores are a tie."""

from __future__ import annotations

import importlib
import math
import os
import sys
from collections.abc import Callable, Sequence
from typing import TypeAlias

Scorer: TypeAlias = Callable[[list[str], list[str]], Sequence[float]]
"""prompts [n], completions [n] -> scores [n], higher is better."""


class JudgeError(ValueError):
    """A judge that cannot be loaded, or whose scores cannot be used."""


def load_scorer(name: str) -> Scorer:
    """A scorer from ``module:function``, looked for in the current folder as well.

    Raises JudgeError, naming what is missing. Importing the module runs its code.
    """
    module_name, _, function = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(module_name), function)
    except ImportError as e:
        raise JudgeError(f"judge {name}: cannot import {module_name}: {e}. Write it as module:function.") from e
    except AttributeError as e:
        raise JudgeError(f"judge {name}: module {module_name} has no function {function!r}.") from e
    if not callable(found):
        raise JudgeError(f"judge {name}: {function} is not a function.")
    scorer: Scorer = found
    score(scorer, ["?"], ["a"], name)
    return scorer


def score(scorer: Scorer, prompts: Sequence[str], completions: Sequence[str], name: str = "the judge") -> list[float]:
    """Scores of completions; raises JudgeError unless there is one finite number for each."""
    scores = scorer(list(prompts), list(completions))
    values = [float(s) for s in scores]
    if len(values) != len(completions):
        raise JudgeError(
            f"{name} returned {len(values)} scores for {len(completions)} answers: it must return one each."
        )
    for prompt, value in zip(prompts, values, strict=True):
        if not math.isfinite(value):
            raise JudgeError(f"{name} returned {value} for an answer to {prompt!r}: scores must be finite numbers.")
    return values
