"""Ctrl-C, SIGTERM and SIGHUP end a run after the update at hand, and say how to go on."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from prefiere.asked.language import in_words

_HANGUP = tuple(getattr(signal, n) for n in ("SIGTERM", "SIGHUP") if hasattr(signal, n))


class Ending:
    """While entered, SIGTERM and SIGHUP raise KeyboardInterrupt as Ctrl-C does: a run never dies without a word."""

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        with contextlib.suppress(ValueError):  # not the main thread: signals stay as they are
            self._before = {n: signal.signal(n, _interrupt) for n in _HANGUP if _heeded(n)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def _heeded(number: int) -> bool:
    """Whether a signal counts here: ``nohup`` and shells have some ignored."""
    return signal.getsignal(number) is not signal.SIG_IGN


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


class Interrupt:
    """While entered, the first signal is noted in ``asked``. ``heard`` is called then. A second Ctrl-C is immediate."""

    def __init__(self, say: Callable[[str], None], heard: Callable[[], None] = lambda: None):
        self.say, self.heard, self.asked = say, heard, False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        with contextlib.suppress(ValueError):  # not the main thread: signals stay as they are
            self._before = {n: signal.signal(n, self._note) for n in (signal.SIGINT, *_HANGUP) if _heeded(n)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: Any) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True
        self.heard()
        self.say(in_words("progress.stopping"))


def resume_command() -> str:
    """What continues this run: the command line of this process, to copy."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return "the same torchrun command again"
    if not Path(sys.argv[0]).name.startswith(("prefiere", "__main__")):
        return "call the same function again"
    return shlex.join(["prefiere", *(a for a in sys.argv[1:] if a != "--fresh")])
