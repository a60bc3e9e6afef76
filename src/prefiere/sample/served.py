"""Answers from rollout servers, for a policy that learns in this process.

Each version of an adapter goes into a folder, and under a name, of its own. A server that loads another adapter from a
path that it knows keeps the keys and values of the old one for prompts that it has seen, and reports success: its
answers then come from neither of the two. Where every weight is trained, a server reads its base anew, and answers
under its own name.
"""

from __future__ import annotations

import hashlib
import secrets
import shutil
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import TypeAlias, TypeVar

import numpy as np
from torch import nn

from prefiere.asked.endpoint import EndpointError
from prefiere.asked.language import in_words
from prefiere.sample.sampling import Sample, Sampling, Vocabulary
from prefiere.sample.server import Completed, Server
from prefiere.world import World

T = TypeVar("T")
Scored: TypeAlias = Callable[[Sequence[np.ndarray], Sequence[Sample], float], np.ndarray]
"""Prompts (int32 ids), samples of them, and a temperature -> float32 [N], the log-prob of each token of the samples, in
order, by the training forward."""

STRANGE = 0.15
"""Nats per token between a server and training, above which it serves another model: a real model in bfloat16 was 0.047
off, a server with the weights of before 0.70."""
FLOOR = 0.02
"""The least that drift is limited to, in nats per token: far above the rounding of a float32 server (1e-5), and of a
bfloat16 one on most models (1e-3)."""
FACTOR = 3.0
"""How often its drift at the start a server may be off later."""
IN_FLIGHT = 64
"""Prompts that a server is asked at once by one process; it decides itself how many it answers at once."""
PROBED, PROBE_TOKENS = 8, 16
"""Prompts that each server is asked when it is checked, and tokens of an answer."""


class ServedRollouts:
    """Answers of the policy from servers (see `Rollouts`).

    size: token ids that the model has. folder: where versions are written, which the servers read as well. write:
    writes the policy's adapter, or all its weights, into a folder that it makes. scored: see `Scored`. probes: prompts
    to check the servers with, and how they are sampled in the run. adapted: an adapter is trained; else each version
    takes the place of the one before. each: check them so with each version, where answers come too late to tell.
    limit: nats per token that answers may be off training.
    """

    def __init__(
        self,
        servers: Sequence[Server],
        vocabulary: Vocabulary,
        *,
        size: int,
        world: World,
        folder: Path,
        write: Callable[[Path], None],
        scored: Scored,
        probes: Sequence[np.ndarray],
        sampling: Sampling,
        adapted: bool = True,
        each: bool = False,
    ):
        self.limit: float | None = STRANGE
        self._servers, self._vocabulary, self._size, self._world = servers, vocabulary, size, world
        self._folder, self._write, self._scored = folder.absolute(), write, scored
        self._probes, self._sampling, self._each = probes[:PROBED], sampling, each
        self._adapted, self._bases = adapted, dict[Server, str]()  # what each calls the base
        self._checked = self._closed = False
        whose = hashlib.blake2b(str(self._folder).encode(), digest_size=4).hexdigest()
        self._prefix = f"prefiere-{whose}-"
        self._mark = world.broadcast(secrets.token_hex(4))  # versions of this process: a resumed run makes them anew
        self._names: dict[int, str] = {}

    # -- versions -------------------------------------------------------------------------------------------------

    def publish(self, trunk: nn.Module, version: int) -> None:
        """Write the policy, and have every server load it; the last version but one of an adapter is forgotten.

        Raises EndpointError, in every process; with ``each`` also where a server then answers from other weights.
        """
        if version in self._names:
            return
        name = f"{self._prefix}{self._mark}-v{version}"

        def hand_over() -> None:
            if not self._names:
                self._clear()
            for old in sorted(self._names)[:-1]:  # answers may still be on their way from the last one
                self._forget(self._names[old])
            self._folder.mkdir(parents=True, exist_ok=True)
            try:
                self._write(self._folder / name)
                for server in self._servers:
                    if self._adapted:
                        server.load(name, self._folder / name)
                    else:
                        server.reload(self._folder / name)
            finally:
                if not self._adapted:  # a whole model, which nobody reads again
                    shutil.rmtree(self._folder / name, ignore_errors=True)

        if not self._adapted and not self._bases:
            named = self._first(lambda: [next(iter(server.models())) for server in self._servers])
            self._bases = dict(zip(self._servers, named, strict=True))
        self._first(hand_over)
        self._names = {**{v: self._names[v] for v in sorted(self._names)[-1:]}, version: name}
        if self._each and self._checked:
            assert self.limit is not None
            for server, off in zip(self._servers, self.probe(), strict=True):
                if not off <= self.limit:
                    raise EndpointError(others_weights(server.name, off, self.limit))

    def _first(self, work: Callable[[], T]) -> T:
        """What the first process finds, or raises, here and in all others."""
        found: tuple[T | None, str] = (None, "")
        if self._world.main:
            try:
                found = work(), ""
            except (EndpointError, OSError) as e:
                found = None, str(e)
        value, error = self._world.broadcast(found)
        if error:
            raise EndpointError(error)
        return value  # type: ignore[return-value]

    def _clear(self) -> None:
        """Forget what a process of this run that was killed had left with the servers, and on the disk."""
        for server in self._servers:
            for name in server.models():
                if name.startswith(self._prefix):
                    server.unload(name)
        for left in self._folder.glob(f"{self._prefix}*"):
            shutil.rmtree(left, ignore_errors=True)

    def _forget(self, name: str) -> None:
        for server in self._servers if self._adapted else ():
            with suppress(EndpointError):  # it may have let go of it by itself, or be gone
                server.unload(name)
        shutil.rmtree(self._folder / name, ignore_errors=True)

    def close(self) -> None:
        """Have the servers forget this run's adapters, and delete them. A base that was read anew stays."""
        if self._world.main:
            for name in self._names.values():
                self._forget(name)
            with suppress(OSError):  # something else lies there
                self._folder.rmdir()
        self._names, self._closed = {}, True

    # -- answers --------------------------------------------------------------------------------------------------

    def sample(
        self,
        prompts: Sequence[np.ndarray],
        sampling: Sampling,
        *,
        version: int,
        numbers: Sequence[int] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[Sample]:
        """Answers from the servers, each of which takes its share of the prompts (see `Rollouts`).

        Raises EndpointError where one of them fails.
        """
        name = self._names[version]

        def ask(i: int, number: int) -> list[Completed]:
            if self._closed:  # nobody waits for what was asked ahead
                raise EndpointError("the run is over")
            return self._asked(self._servers[i % len(self._servers)], name, prompts[i], sampling, number)

        called = list(numbers if numbers is not None else range(len(prompts)))
        return all_answers(ask, called, IN_FLIGHT * len(self._servers), version, progress)

    def _asked(self, server: Server, name: str, prompt: np.ndarray, sampling: Sampling, number: int) -> list[Completed]:
        """Answers to one prompt; the seed depends on its number and not on the others."""
        seed, called = prompt_seed(sampling.seed, number), self._bases.get(server, name)
        return server.complete(called, prompt, sampling, self._vocabulary, size=self._size, seed=seed)

    # -- whether they are the policy's ----------------------------------------------------------------------------

    def check(self, trunk: nn.Module) -> str:
        """Measure how far each server is off training, and limit what it may be off later. Says both.

        Raises ValueError, in every process, where it serves another model.
        """
        drift = self.probe()
        for server, off in zip(self._servers, drift, strict=True):
            if not off <= STRANGE:
                raise EndpointError(
                    f"{server.name}: its answers are {off:.2g} nats per token off what training says of them, and "
                    f"rounding explains {STRANGE:g} at most. It must serve the run's model, from the same folder, with "
                    "--logprobs-mode processed_logprobs, and with --dtype float32 to be exact"
                )
        self.limit, self._checked = max(FLOOR, FACTOR * max(drift)), True
        shown = {"off": f"{max(drift):.2g}", "limit": f"{self.limit:.2g}"}
        return in_words("why.served", servers=", ".join(server.name for server in self._servers), **shown)

    def probe(self) -> list[float]:
        """How far each server's log-probs are off training's, in nats per token, on a few answers of the newest
        version."""
        version = max(self._names)
        sampling = Sampling(1, self._sampling.temperature, 1.0, min(PROBE_TOKENS, self._sampling.max_new_tokens))

        def ask() -> list[list[Sample]]:
            return [
                [
                    sample
                    for i, prompt in enumerate(self._probes)
                    for sample in _samples(i, self._asked(server, self._names[version], prompt, sampling, i), version)
                ]
                for server in self._servers
            ]

        found = []
        for samples in self._first(ask):  # every process scores: with sharded weights none can alone
            said = np.concatenate([s.logp for s in samples])
            off = np.abs(said - self._scored(self._probes, samples, sampling.temperature)).mean()
            found.append(float(off))
        return self._world.broadcast(found)


class ServedModel:
    """Answers of a finished model behind a server: a source of `Rollouts` that nothing is published to.

    name: what the server calls it. vocabulary, size: of its tokens.
    """

    limit: float | None = None

    def __init__(self, server: Server, name: str, vocabulary: Vocabulary, size: int):
        self._server, self._name, self._vocabulary, self._size = server, name, vocabulary, size

    def check(self, trunk: nn.Module) -> str:
        """Nothing is trained, so there is nothing that answers could be off."""
        return ""

    def publish(self, trunk: nn.Module, version: int) -> None:
        """The server has its weights."""

    def sample(
        self,
        prompts: Sequence[np.ndarray],
        sampling: Sampling,
        *,
        version: int,
        numbers: Sequence[int] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[Sample]:
        """Answers from the server, of whichever ``version`` (see `Rollouts`). Raises EndpointError."""

        def ask(i: int, number: int) -> list[Completed]:
            seed = prompt_seed(sampling.seed, number)
            return self._server.complete(self._name, prompts[i], sampling, self._vocabulary, size=self._size, seed=seed)

        called = list(numbers if numbers is not None else range(len(prompts)))
        return all_answers(ask, called, IN_FLIGHT, version, progress)

    def close(self) -> None:
        """Nothing is held."""


def all_answers(
    ask: Callable[[int, int], list[Completed]],
    numbers: Sequence[int],
    most: int,
    version: int,
    progress: Callable[[int], None] | None,
) -> list[Sample]:
    """The answers to all prompts, in order, of which so many are asked at once. ask: takes a prompt's place and number.

    Raises what the first of them raises, and asks no more then. Neither this nor the end of the process waits for
    answers that are on their way: the threads are daemons, which those of a ThreadPoolExecutor are not.
    """
    found: list[Sample] = []
    waiting = [Future[list[Completed]]() for _ in numbers]
    asking = deque(enumerate(numbers))

    def work() -> None:
        while True:
            try:
                i, number = asking.popleft()
            except IndexError:
                return
            try:
                waiting[i].set_result(ask(i, number))
            except Exception as e:  # whatever it is, it is raised where the answers are waited for
                asking.clear()
                waiting[i].set_exception(e)

    for _ in range(min(most, len(numbers))):
        Thread(target=work, daemon=True).start()
    try:
        for i, answers in enumerate(waiting):
            new = _samples(i, answers.result(), version)
            found += new
            if progress:
                progress(len(new))
    finally:
        asking.clear()
    return found


def others_weights(server: str, drift: float, limit: float) -> str:
    """What is said of a server whose answers are further off training than the limit, in nats per token."""
    return (
        f"{server}: its log-probs are {drift:.2g} nats per token off those of training, and {limit:.2g} is the limit: "
        "it answers from other weights than it was given. Nothing was learnt from these answers. Restart the server, "
        "and continue the run"
    )


def prompt_seed(seed: int, number: int) -> int:
    """The seed that a server gets for a prompt's answers: 31 bits, which every server takes."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0]) >> 1


def _samples(prompt: int, answers: Sequence[Completed], version: int) -> list[Sample]:
    return [Sample(prompt, j, a.tokens, a.logp, a.ended, version) for j, a in enumerate(answers)]
