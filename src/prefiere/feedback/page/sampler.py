"""The model behind the Ask page, in a process of its own: started with the server, started again after it died."""

from __future__ import annotations

import json
import queue
import random
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from prefiere.feedback import items
from prefiere.feedback.collect import How
from prefiere.feedback.items import Drawn
from prefiere.feedback.leases import hand
from prefiere.feedback.store import Store

SAMPLER_PATIENCE = 300.0
"""Seconds that one request to the process may take, loading included."""
_TRIES = 4  # seeds, where two answers are the same


class NoAnswer(Exception):
    """The model could not answer: why is a key of the page's words; ``detail`` is what the process said."""

    def __init__(self, key: str, detail: str = ""):
        super().__init__(detail or key)
        self.key, self.detail = key, detail


@dataclass(frozen=True)
class Known:
    """A model that the process has loaded."""

    label: str
    path: str
    fingerprint: str
    run: str | None
    step: int | None


class Sampler:
    """A process that answers, one request at a time; others wait, and beyond ``line`` of them are sent away."""

    def __init__(self, command: Sequence[str], line: int = 4):
        self._command, self._turn, self._line = list(command), threading.Lock(), threading.Semaphore(line)
        self._process: subprocess.Popen[str] | None = None
        self._said: queue.Queue[str | None] = queue.Queue()
        self.models: tuple[Known, ...] = ()

    def warm_up(self) -> None:
        """Start loading now, so that the first question waits less."""
        threading.Thread(target=self._start_quietly, daemon=True).start()

    def _start_quietly(self) -> None:
        with self._turn:
            try:
                self._ready()
            except NoAnswer:
                return  # whoever asks is told

    def draw(self, prompt: str, how: How) -> list[tuple[Known, int, str]]:
        """Two answers: the model's, the number of the sample, the text. Raises NoAnswer."""
        if not self._line.acquire(blocking=False):
            raise NoAnswer("ask_busy")
        try:
            with self._turn:
                self._ready()
                each = 2 if len(self.models) == 1 else 1
                found = []
                for n, model in enumerate(self.models):
                    asked = {"prompt": prompt, "samples": each, "model": n, "how": asdict(how)}
                    for i, text in enumerate(self._exchange(asked)["answers"]):
                        found.append((model, i, text))
                return found
        finally:
            self._line.release()

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _ready(self) -> None:
        if self._process is not None and self._process.poll() is None and self.models:
            return
        self.close()
        self._said = queue.Queue()
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        threading.Thread(target=_listen, args=(self._process, self._said), daemon=True).start()
        self.models = tuple(Known(**m) for m in self._next()["models"])

    def _exchange(self, asked: dict[str, Any]) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(asked) + "\n")
            self._process.stdin.flush()
        except OSError as e:
            raise NoAnswer("ask_gone") from e
        return self._next()

    def _next(self) -> dict[str, Any]:
        try:
            line = self._said.get(timeout=SAMPLER_PATIENCE)
        except queue.Empty:
            line = None
        if line is None:
            self.close()
            raise NoAnswer("ask_gone")
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            raise NoAnswer("ask_failed", str(found["error"]))
        return found


def _listen(process: subprocess.Popen[str], said: queue.Queue[str | None]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        said.put(line)
    said.put(None)


def ask_model(store: Store, sampler: Sampler, person_id: int, prompt: str, guidelines: str | None = None) -> None:
    """Let the model answer a person's own prompt, and put the pair of answers into their hands.

    Answers that are the same are drawn again under other seeds. Raises NoAnswer.
    """
    rng = random.SystemRandom()
    for _ in range(_TRIES):
        how = How(max_new_tokens=256, seed=rng.randrange(2**31))
        drawn = sampler.draw(prompt, how)
        texts = [text for _, _, text in drawn]
        if texts[0].strip() != texts[1].strip() and all(t.strip() for t in texts):
            break
    else:
        raise NoAnswer("ask_same")
    with store.write() as c:
        prompt_id = items.add_prompt(c, prompt, (), "asked on the page")
        sides = []
        for model, n, text in drawn:
            model_id = items.add_model(c, model.label, model.path, model.fingerprint, model.run, model.step)
            given = asdict(how) | {"model_id": model_id, "sample": n}
            sides.append(items.add_answer(c, prompt_id, text, Drawn(**given)))
        pair_id = items.add_pair(c, prompt_id, sides[0], sides[1], overlap=1, rng=rng)
        if pair_id is None:
            raise NoAnswer("ask_same")
        hand(store, c, person_id, pair_id, now=time.time(), rng=rng, guidelines=guidelines)
