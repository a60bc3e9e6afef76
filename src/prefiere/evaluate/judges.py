"""Judges: anything that scores answers, to compare two models by or to reward one for. Equal scores are a tie.

A reward model reads the whole conversation through its own tokenizer and template; how a function is called stands in
functions.py.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from prefiere.asked.language import in_words
from prefiere.data.schema import Text, question
from prefiere.evaluate.functions import Answered, Function, JudgeError, ScoreFunction, checked
from prefiere.files import short
from prefiere.models.reward_model import RewardModel
from prefiere.models.shard.spread import whole

Combine: TypeAlias = Literal["mean", "min", "lower"]

_FUNCTION = re.compile(r"[\w.]+:\w+")


def names_function(name: str) -> bool:
    """Whether a judge's name means a Python function (``module:function``), not a model."""
    return _FUNCTION.fullmatch(name) is not None


@dataclass(frozen=True)
class Judge:
    """One or several scorers by name, and how their scores become one: ``mean``, ``min``, ``lower`` (the mean less
    ``k`` standard deviations over the scorers), or, with ``weights``, a weighted sum.

    Where a function says None, the others decide.
    """

    scorers: Mapping[str, RewardModel | Function]
    combine: Combine = "mean"
    k: float = 1.0
    weights: tuple[float, ...] | None = None

    @classmethod
    def load(
        cls,
        names: str | Sequence[str],
        *,
        combine: Combine = "mean",
        k: float = 1.0,
        weights: Sequence[float] | None = None,
        model: Callable[[str], RewardModel] = RewardModel.load,
        functions: Mapping[str, Function] | None = None,
        example: Answered | None = None,
    ) -> Judge:
        """Functions (``module:function``), and reward models as ``model`` opens them (folder, hub id, run).

        functions: those that are there already, by name. Each is asked once: of the ``example``, where it wants more
        than texts. Raises ValueError for one that cannot be loaded or whose answer cannot be used.
        """
        asked = [names] if isinstance(names, str) else list(names)
        if not asked or len(set(asked)) < len(asked):
            raise JudgeError(f"{short(asked)} {'names no judge' if not asked else 'names a judge twice'}.")
        known = functions if functions is not None else functions_of(asked)
        judge = cls(
            {n: known.get(n) or model(n) for n in asked}, combine, k, None if weights is None else tuple(weights)
        )
        judge._try_out(example)
        return judge

    def _try_out(self, example: Answered | None) -> None:
        plain = Answered(["?"], ["a"])
        for name, scorer in self.scorers.items():
            if isinstance(scorer, Function):
                scorer.score(example.first() if example is not None and scorer.call.reads_columns else plain)
            else:
                checked(scorer.score(plain.prompts, plain.completions), plain.prompts, name)

    @property
    def name(self) -> str:
        """The scorers' names."""
        return ", ".join(self.scorers)

    @property
    def reads_columns(self) -> bool:
        """Whether a scorer may want more of the data than its prompts."""
        return any(isinstance(s, Function) and s.call.reads_columns for s in self.scorers.values())

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Each process may score as many answers as it likes meanwhile: sharded weights that a reward model is mounted
        on are put together. All processes begin it together."""
        with ExitStack() as stack:
            for scorer in self.scorers.values():
                if isinstance(scorer, RewardModel):
                    stack.enter_context(whole(scorer.trunk))
            yield

    def scores(self, asked: Answered) -> np.ndarray:
        """float64 [n, M]: the score of each answer by each scorer, NaN where a function said None; those that are async
        run beside each other. Raises JudgeError where one is not finite, or nobody scores an answer."""
        begun = {n: s.begin(asked) for n, s in self.scorers.items() if isinstance(s, Function)}
        columns = []
        for name, s in self.scorers.items():
            if isinstance(s, Function):
                columns.append(begun[name]())
            else:
                columns.append(checked(s.score(asked.prompts, asked.completions), asked.prompts, name))
        each_CM = np.stack(columns, 1)
        nobody = np.isnan(each_CM).all(1)
        if nobody.any():
            prompt = short(question(asked.prompts[int(np.flatnonzero(nobody)[0])]))
            raise JudgeError(f"{self.name} returned None for an answer to {prompt}: somebody must score each answer.")
        return each_CM

    def combined(self, each_CM: np.ndarray) -> np.ndarray:
        """float64 [n]: one score each, of those that are there."""
        if self.weights is not None:
            return np.asarray(np.nansum(each_CM * np.asarray(self.weights), 1))
        if self.combine == "min":
            return np.asarray(np.nanmin(each_CM, 1))
        mean = np.asarray(np.nanmean(each_CM, 1) if np.isnan(each_CM).any() else each_CM.mean(1))
        return mean - self.k * spread(each_CM) if self.combine == "lower" else mean

    def __call__(self, prompts: Sequence[Text], completions: Sequence[str]) -> np.ndarray:
        """float64 [n]: the combined score of each completion."""
        return self.combined(self.scores(Answered(prompts, completions)))


def spread(each_CM: np.ndarray) -> np.ndarray:
    """float64 [n]: the standard deviation of each answer's scores, of those that are there."""
    return np.asarray(np.nanstd(each_CM, 1) if np.isnan(each_CM).any() else each_CM.std(1))


def short_names(names: Sequence[str]) -> list[str]:
    """What scorers are called in a log, as TRL does: the function, or the last part of a model's name; the whole name
    where two were called alike."""
    found = [
        (n.rpartition(":")[2] if names_function(n) else n.strip("<>").rstrip("/").rpartition("/")[2]) for n in names
    ]
    return found if len(set(found)) == len(found) else list(names)


def functions_of(names: Sequence[str], given: Mapping[str, ScoreFunction] | None = None) -> dict[str, Function]:
    """The functions among these names: those that were ``given`` in Python, and those of modules.

    Raises JudgeError for one that is not there.
    """
    own = given or {}
    found = {n: own[n] if n in own else load_scorer(n) for n in names if n in own or names_function(n)}
    return {n: Function(n, f) for n, f in found.items()}


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
        raise JudgeError(in_words("met.no_module", name=name, module=module_name, why=e)) from e
    except AttributeError as e:
        raise JudgeError(in_words("met.no_function", name=name, module=module_name, function=repr(function))) from e
    if not callable(found):
        raise JudgeError(in_words("met.not_a_function", name=name, function=function))
    scorer: ScoreFunction = found
    return scorer
