"""Judges: anything that scores answers, to compare two models by or to reward one for. Equal scores are a tie.

A reward model reads the whole conversation through its own tokenizer and template; a function gets what a person reads
of the prompt, and the answer.
"""

from __future__ import annotations

import importlib
import math
import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from prefiere.data.schema import Text, question
from prefiere.models.reward_model import RewardModel

ScoreFunction: TypeAlias = Callable[[list[str], list[str]], Sequence[float]]
"""prompts [n], completions [n] -> scores [n], higher is better."""
Combine: TypeAlias = Literal["mean", "min", "lower"]

_FUNCTION = re.compile(r"[\w.]+:\w+")


def names_function(name: str) -> bool:
    """Whether a judge's name means a Python function (``module:function``), not a model."""
    return _FUNCTION.fullmatch(name) is not None


class JudgeError(ValueError):
    """A judge that cannot be loaded, or whose scores cannot be used."""


@dataclass(frozen=True)
class Function:
    """A Python function as a scorer."""

    name: str
    function: ScoreFunction

    def score(self, prompts: Sequence[Text], completions: Sequence[str]) -> np.ndarray:
        """float64 [n]: what the function says of each completion. Raises JudgeError where that cannot be used."""
        return np.asarray(scores_of(self.function, [question(p) for p in prompts], completions, self.name), np.float64)


@dataclass(frozen=True)
class Judge:
    """One or several scorers by name, and how their scores become one: ``mean``, ``min``, or ``lower`` (the mean less
    ``k`` standard deviations over the scorers)."""

    scorers: Mapping[str, RewardModel | Function]
    combine: Combine = "mean"
    k: float = 1.0

    @classmethod
    def load(
        cls,
        names: str | Sequence[str],
        *,
        combine: Combine = "mean",
        k: float = 1.0,
        model: Callable[[str], RewardModel] = RewardModel.load,
    ) -> Judge:
        """Functions (``module:function``), and reward models as ``model`` opens them (folder, hub id, run).

        Each is asked once. Raises ValueError for one that cannot be loaded or whose answer cannot be used.
        """
        asked = [names] if isinstance(names, str) else list(names)
        if not asked or len(set(asked)) < len(asked):
            raise JudgeError(f"{asked} {'names no judge' if not asked else 'names a judge twice'}.")
        functions = {n: Function(n, load_scorer(n)) for n in asked if names_function(n)}
        judge = cls({n: functions.get(n) or model(n) for n in asked}, combine, k)
        judge(["?"], ["a"])
        return judge

    @property
    def name(self) -> str:
        """The scorers' names."""
        return ", ".join(self.scorers)

    def each(self, prompts: Sequence[Text], completions: Sequence[str]) -> np.ndarray:
        """float64 [n, M]: the score of each completion by each scorer. Raises JudgeError where one is not finite."""
        columns = [checked(s.score(prompts, completions), prompts, name) for name, s in self.scorers.items()]
        return np.stack(columns, 1)

    def combined(self, each_CM: np.ndarray) -> np.ndarray:
        """float64 [n]: one score each."""
        if self.combine == "min":
            return np.asarray(each_CM.min(1))
        mean: np.ndarray = each_CM.mean(1)
        return mean - self.k * each_CM.std(1) if self.combine == "lower" else mean

    def __call__(self, prompts: Sequence[Text], completions: Sequence[str]) -> np.ndarray:
        """float64 [n]: the combined score of each completion."""
        return self.combined(self.each(prompts, completions))


def load_scorer(name: str) -> ScoreFunction:
    """A scorer from ``module:function``, looked for in the current folder as well.

    Raises JudgeError, naming what is missing. Importing the module runs its code.
    """
    module_name, _, function = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(module_name), function)
    except (ImportError, SystemExit) as e:
        raise JudgeError(f"judge {name}: cannot import {module_name}: {e}. Write it as module:function.") from e
    except AttributeError as e:
        raise JudgeError(f"judge {name}: module {module_name} has no function {function!r}.") from e
    if not callable(found):
        raise JudgeError(f"judge {name}: {function} is not a function.")
    scorer: ScoreFunction = found
    return scorer


def scores_of(
    scorer: ScoreFunction, prompts: Sequence[str], completions: Sequence[str], name: str = "the judge"
) -> list[float]:
    """Scores of completions; raises JudgeError unless there is one finite number for each."""
    try:
        found = scorer(list(prompts), list(completions))
    except (Exception, SystemExit) as e:  # it is the user's code: say where it failed, in one line
        at = traceback.extract_tb(e.__traceback__)[-1]
        said = " ".join(str(e).split())
        raise JudgeError(f"{name} failed at {at.filename}:{at.lineno}: {type(e).__name__}: {said}") from e
    try:
        scores = [float(s) for s in found]
    except (TypeError, ValueError) as e:
        raise JudgeError(f"{name} returned {type(found).__name__}: it must return a list of numbers.") from e
    if len(scores) != len(completions):
        raise JudgeError(
            f"{name} returned {len(scores)} scores for {len(completions)} answers: it must return one each."
        )
    return list(checked(np.asarray(scores, np.float64), prompts, name))


def checked(scores_n: np.ndarray, prompts: Sequence[Text], name: str) -> np.ndarray:
    """These scores; raises JudgeError where one is not a finite number."""
    for prompt, value in zip(prompts, scores_n.tolist(), strict=True):
        if not math.isfinite(value):
            raise JudgeError(
                f"{name} returned {value} for an answer to {question(prompt)!r}: scores must be finite numbers."
            )
    return scores_n
