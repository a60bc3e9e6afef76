"""The next step's answers are drawn by servers while this step's are learnt from: from weights an update old."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from prefiere.sample.sampling import Rollouts, Sample, Sampling


class Request(NamedTuple):
    """What one process asks for in a step: prompts (int32 ids), their numbers in the data, and how they are sampled."""

    prompts: list[np.ndarray]
    numbers: list[int]
    sampling: Sampling


class Ahead:
    """Answers to the prompts of the next step. request: what a step asks for; None: there is no such step."""

    def __init__(self, rollouts: Rollouts, request: Callable[[int], Request | None]):
        self._rollouts, self._request = rollouts, request
        self._step = -1
        self._thread: threading.Thread | None = None
        self._found: list[Sample] = []
        self._error: Exception | None = None

    def ask(self, step: int, version: int) -> None:
        """Have the answers of a step drawn from the weights of this version, and do not wait for them."""
        asked = self._request(step)
        if asked is None:
            return

        def draw() -> None:
            try:
                self._found = self._rollouts.sample(
                    asked.prompts, asked.sampling, version=version, numbers=asked.numbers
                )
            except Exception as e:  # whatever it is, `take` raises it where the answers are needed
                self._error = e

        self._step, self._found, self._error = step, [], None
        self._thread = threading.Thread(target=draw, daemon=True)
        self._thread.start()

    def take(self, step: int) -> list[Sample] | None:
        """The answers of a step, once they are there; None where they were not asked for. Raises what went wrong."""
        if self._thread is None or self._step != step:
            return None
        self._thread.join()
        self._thread = None
        if self._error is not None:
            raise self._error
        return self._found
