"""Every process says over and over that it is alive, and nobody waits for long for one that is not.

A process that computes together with others waits inside a library, where it can neither look around nor be woken. So a
thread beats into the launcher's store of keys. The first process watches all the others, and they watch the first.
Whoever finds that one is missing says which, and ends its own process: the launcher then ends the rest, or starts all
of them again. No torch.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Protocol

from prefiere.files import visible
from prefiere.processes.errors import PeerError, SaidOnce

PAUSE = 2.0
"""Seconds between two beats, at most."""

SOON = 5
"""Rounds of silence after which a process counts as lost once the launcher asks all to end: it kills them after 30
seconds, and who is missing has been said by then."""


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """A launcher asks all processes to end where one has: first it is found out which."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class KeyStore(Protocol):
    """What is needed of a store of keys (`torch.distributed.Store`)."""

    def set(self, key: str, value: str, /) -> None:
        """Write a key."""

    def get(self, key: str, /) -> bytes:
        """What is written under a key; waits for it."""

    def add(self, key: str, n: int, /) -> int:
        """Add to a key that counts, and give the sum."""

    def check(self, keys: list[str], /) -> bool:
        """Whether all of these keys are written."""


class Heartbeat:
    """The beats of this process, and those that it watches. Beats begin when it is made, and end with `stop`.

    patience: seconds without a beat of another process after which it counts as lost. on_loss: what the first process
    does then, before ``end`` ends this process.
    """

    def __init__(
        self, keys: KeyStore, rank: int, size: int, patience: float, *, end: Callable[[ValueError], None] | None = None
    ):
        self.keys, self.rank, self.size = keys, rank, size
        self.pause = min(PAUSE, patience / 20)
        self.rounds = round(patience / self.pause)
        self.on_loss: Callable[[ValueError], None] = lambda error: None
        self._end = end or self._exit
        self._over, self._word = threading.Event(), threading.Lock()
        self._meetings = 0
        keys.set(f"who/{rank}", f"pid {os.getpid()} on {socket.gethostname()}")
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()
        atexit.register(self.stop)

    def stop(self, error: BaseException | None = None) -> None:
        """Beat no more; the others are told of an error that ends this process, unless they know.

        The thread is waited for: one that comes back from the store into an interpreter that has ended aborts the
        process. A store whose machine went silent is waited for no longer than a few beats.
        """
        if not self._over.is_set() and error is not None and (not self.rank or not isinstance(error, SaidOnce)):
            said = str(error) if isinstance(error, ValueError | OSError) else f"{type(error).__name__} {error}"
            with contextlib.suppress(RuntimeError):  # the store may be gone
                self.keys.set(f"ended/{self.rank}", said.strip().partition("\n")[0])
        self._over.set()
        atexit.unregister(self.stop)
        if threading.current_thread() is not self._thread:
            self._thread.join(SOON * self.pause)

    def hurry(self) -> None:
        """Count another one as lost soon: this process is asked to end, which a launcher does where one has."""
        self.rounds = min(self.rounds, SOON)

    def meet(self) -> None:
        """Wait until every process is here, however long one that lives has to do before."""
        self._meetings += 1
        here, pause = f"here/{self._meetings}", 0.001
        self.keys.add(here, 1)
        while self.keys.add(here, 0) < self.size:
            time.sleep(pause)
            pause = min(2 * pause, 0.05)

    def cause(self) -> ValueError | None:
        """Why something that all processes do together has failed: an error that names who is missing, if one is."""
        if not self._word.acquire(blocking=False):  # the thread has the word, and ends this process
            threading.Event().wait()
        try:
            with _undisturbed():
                before = self._beats(self._others())
                for _ in range(4):
                    time.sleep(self.pause)
                    if (ended := self._ended()) is not None:
                        return ended
                missing = [n for n, beats in self._beats(self._others()).items() if beats == before[n]]
        except RuntimeError:  # the store is gone, and with it the process or the machine that holds it
            missing = [0]
        if missing:
            return self._lost(missing[0])
        self._word.release()
        return None

    # -- the thread -----------------------------------------------------------------------------------------------

    def _beat(self) -> None:
        last, silent = dict[int, int](), dict[int, int]()
        while not self._over.wait(self.pause):
            try:
                self.keys.add(f"beat/{self.rank}", 1)
                if (error := self._ended()) is not None and self._over.wait(5 * self.pause):
                    return  # it ended this process as well, which needed a moment more
                for n, beats in self._beats([0] if self.rank else self._others()).items():
                    # Rounds are counted, not seconds: where this process itself stood still, nobody was silent.
                    silent[n] = silent.get(n, 0) + 1 if last.get(n) == beats else 0
                    last[n] = beats
                    if silent[n] >= self.rounds:
                        error = error or self._lost(n)
            except RuntimeError:  # as above
                error = self._lost(0)
            if error is not None and not self._over.is_set() and self._word.acquire(blocking=False):
                self._end(error)
                return

    def _others(self) -> list[int]:
        return [n for n in range(self.size) if n != self.rank]

    def _beats(self, of: list[int]) -> dict[int, int]:
        return {n: self.keys.add(f"beat/{n}", 0) for n in of}

    def _ended(self) -> ValueError | None:
        """What a process that it watches said when it ended. What the first one said is not said again."""
        for n in [0] if self.rank else self._others():
            if self.keys.check([f"ended/{n}"]):
                said = f"process {n} ended: {self.keys.get(f'ended/{n}').decode()}"
                return SaidOnce(said) if self.rank else PeerError(said)
        return None

    def _lost(self, n: int) -> ValueError:
        who = ""
        with contextlib.suppress(RuntimeError):
            who = f" ({self.keys.get(f'who/{n}').decode()})" if self.keys.check([f"who/{n}"]) else ""
        words = (
            f"process {n}{who} is not heard of any more: it was killed, is stuck, or cannot be reached. Look at its "
            "output and its machine; the same torchrun command again continues the run"
        )
        return SaidOnce(words) if self.rank and n else PeerError(words)

    def _exit(self, error: ValueError) -> None:
        """End this process from outside: its main thread waits where nothing wakes it."""
        try:
            self.stop(error)
            if self.rank == 0:
                self.on_loss(error)
            if isinstance(error, PeerError):
                name = f" (process {self.rank})" if self.rank else ""
                print(visible(f"error{name}: {error}"), file=sys.stderr, flush=True)
        finally:  # whoever would read it may be gone as well
            os._exit(2)
