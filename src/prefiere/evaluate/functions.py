"""Python functions that score answers, called as TRL calls reward functions, or simply with prompts and completions.

A function that takes ``**kwargs`` and names its arguments as TRL does gets everything by keyword, in TRL's shapes:
``prompts``, ``completions``, ``completion_ids``, ``trainer_state``, and every column of the data; where a prompt is
messages, prompt and completion are lists of messages. Any other function gets texts: what a person reads of the prompt,
and the answer; what it names besides (a column, ``completion_ids``, ``trainer_state``) comes by keyword.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import math
import threading
import traceback
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from prefiere.asked.language import count_of
from prefiere.data.schema import Text, question
from prefiere.files import short

ScoreFunction: TypeAlias = Callable[..., Any]
"""prompts [n], completions [n] -> scores [n], higher is better; or by TRL's contract."""
NOT_COLUMNS = ("prompt", "completion", "completion_ids")
"""Columns of the data that no function gets, as in TRL: what it is told in their place is what was read and sampled."""


class JudgeError(ValueError):
    """A judge that cannot be loaded, or whose scores cannot be used."""


@dataclass(frozen=True, slots=True)
class Answered:
    """Answers that are to be scored, and what is known of each.

    prompts, completions: [n]. tokens: ids [n] of int32 [L] each, with the end token where there is one; empty where
    they are not known. columns: [n], the data's columns of each prompt; empty where they are not known. step, total:
    updates made so far, and those of the whole run.
    """

    prompts: Sequence[Text]
    completions: Sequence[str]
    tokens: Sequence[np.ndarray] = ()
    columns: Sequence[Mapping[str, Any]] = ()
    step: int = 0
    total: int = 0

    def some(self, places: Sequence[int]) -> Answered:
        """The answers at these places alone."""

        def at(each: Sequence[Any]) -> list[Any]:
            return [each[i] for i in places] if len(each) else []

        return Answered(
            at(self.prompts), at(self.completions), at(self.tokens), at(self.columns), self.step, self.total
        )

    def first(self) -> Answered:
        """The first answer alone."""
        return Answered(self.prompts[:1], self.completions[:1], self.tokens[:1], self.columns[:1], 0, self.total)


@dataclass(frozen=True)
class Function:
    """A Python function as a scorer."""

    name: str
    function: ScoreFunction
    call: Signature = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "call", Signature.of(self.function))

    def begin(self, asked: Answered) -> Callable[[], np.ndarray]:
        """Call the function, and return what waits for its scores: float64 [n], NaN where it returned None.

        One that is async runs meanwhile. Raises JudgeError, at once or then, where what it says cannot be used.
        """
        positional, keywords = self.call.arguments(self.name, asked)
        found = self._tried(lambda: self.function(*positional, **keywords))
        if inspect.iscoroutine(found):
            running = _run(found)
            return lambda: self._scores(self._tried(running.result), asked)
        return lambda: self._scores(found, asked)

    def score(self, asked: Answered) -> np.ndarray:
        """float64 [n]: what the function says of each answer, NaN for None. Raises JudgeError as `begin` does."""
        return self.begin(asked)()

    def _tried(self, call: Callable[[], Any]) -> Any:
        """What the user's code returns; where it fails, where that was, in one line."""
        try:
            return call()
        except (Exception, SystemExit) as e:
            at = traceback.extract_tb(e.__traceback__)[-1]
            said = " ".join(str(e).split())
            said = said if len(said) <= 300 else f"{said[:300]} ..."
            raise JudgeError(f"{self.name} failed at {at.filename}:{at.lineno}: {type(e).__name__}: {said}") from e

    def _scores(self, found: Any, asked: Answered) -> np.ndarray:
        no_numbers = JudgeError(f"{self.name} returned {type(found).__name__}: it must return a list of numbers.")
        try:
            each = iter(found)
        except TypeError as e:
            raise no_numbers from e
        values = self._tried(lambda: list(each))  # a generator's code runs here
        try:
            scores = [math.nan if v is None else float(v) for v in values]
        except (TypeError, ValueError) as e:
            raise no_numbers from e
        if len(scores) != len(asked.completions):
            made, wanted = count_of(len(scores), "score"), count_of(len(asked.completions), "answer")
            raise JudgeError(f"{self.name} returned {made} for {wanted}: it must return one each.")
        said = [0.0 if v is None else s for v, s in zip(values, scores, strict=True)]
        checked(np.asarray(said, np.float64), asked.prompts, self.name)
        return np.asarray(scores, np.float64)


def checked(scores_n: np.ndarray, prompts: Sequence[Text], name: str) -> np.ndarray:
    """These scores; raises JudgeError where one is not a finite number."""
    for prompt, value in zip(prompts, scores_n.tolist(), strict=True):
        if not math.isfinite(value):
            raise JudgeError(
                f"{name} returned {value} for an answer to {short(question(prompt))}: scores must be finite numbers."
            )
    return scores_n


@dataclass(frozen=True, slots=True)
class Signature:
    """How a function is called. positional: prompts and completions are its first two arguments, whatever it calls
    them. named: what it names besides. needed: of these, what has no default. every: it takes any keyword."""

    positional: bool
    named: frozenset[str]
    needed: tuple[str, ...]
    every: bool

    @classmethod
    def of(cls, function: ScoreFunction) -> Signature:
        """From its signature; one that has none is called with prompts and completions."""
        try:
            parameters = list(inspect.signature(function).parameters.values())
        except (TypeError, ValueError):
            return cls(True, frozenset(), (), False)
        kinds = {p.kind for p in parameters}
        places = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        every = inspect.Parameter.VAR_KEYWORD in kinds
        required = [p for p in places if p.default is p.empty]
        by_name = any(p.name in ("completions", "completion_ids") for p in places) or (every and len(required) < 2)
        by_name = by_name and not any(p.kind is p.POSITIONAL_ONLY for p in places)
        rest = parameters if by_name else [p for p in parameters if p not in places[:2]]
        rest = [p for p in rest if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        return cls(
            not by_name, frozenset(p.name for p in rest), tuple(p.name for p in rest if p.default is p.empty), every
        )

    @property
    def reads_columns(self) -> bool:
        """Whether it may want more than prompts and completions."""
        return self.every or bool(self.named - {"prompts", "completions"})

    @property
    def messages(self) -> bool:
        """Whether it takes conversations as TRL gives them."""
        return self.every and not self.positional

    def arguments(self, name: str, asked: Answered) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What a function is called with. Raises JudgeError where it needs what there is not."""
        prompts, completions = [question(p) for p in asked.prompts], list(asked.completions)
        if self.messages:
            prompts, completions = _conversations(asked)
        there: dict[str, Any] = {}
        if self.every or "trainer_state" in self.named:
            from transformers import TrainerState  # with all that a Trainer needs: a second, for those who ask

            there["trainer_state"] = TrainerState(global_step=asked.step, max_steps=asked.total)
        if asked.tokens:
            there["completion_ids"] = [t.tolist() for t in asked.tokens]
        columns = [c for c in dict.fromkeys(k for row in asked.columns for k in row) if c not in NOT_COLUMNS]
        clash = [c for c in columns if c in there or c in ("prompts", "completions")]
        if clash and self.every:
            raise JudgeError(f"{name}: the data has a column {clash[0]}, a name of something else here. Rename it.")
        there |= {c: [row.get(c) for row in asked.columns] for c in columns if c not in clash}
        own = () if not self.positional else (prompts, completions)
        if not self.positional:
            there |= {"prompts": prompts, "completions": completions}
        lacking = [n for n in self.needed if n not in there]
        if lacking:
            known = ", ".join(columns) or "none besides the prompt"
            raise JudgeError(f"{name} needs {lacking[0]}, and the data has no such column (its columns: {known}).")
        return own, there if self.every else {k: v for k, v in there.items() if k in self.named}


def _conversations(asked: Answered) -> tuple[list[Any], list[Any]]:
    """Prompts and completions as TRL has them: texts of a text, lists of messages of messages."""
    prompts: list[Any] = [p if isinstance(p, str) else [m.as_dict() for m in p] for p in asked.prompts]
    said: list[Any] = [
        c if isinstance(p, str) else [{"role": "assistant", "content": c}]
        for p, c in zip(asked.prompts, asked.completions, strict=True)
    ]
    return prompts, said


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    """One event loop beside the caller's, which may be a notebook's own: what async functions hold open stays open."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="async scores", daemon=True).start()
    return loop


def _run(coroutine: Coroutine[Any, Any, Any]) -> Future[Any]:
    return asyncio.run_coroutine_threadsafe(coroutine, _loop())
