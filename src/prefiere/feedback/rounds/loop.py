"""Rounds of feedback: sample, ask, learn, compare, ask again. A round is a row, and each step of it one transaction.

    new -> sampling -> asking -> frozen -> training -> sampling_after -> comparing -> judged -> closed | stopped

Whatever kills the process, the same command continues: sampling skips answers that are there, asking counts the votes
that are there, a run resumes by itself. No torch here: what needs it is given as `Work`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import sqlalchemy as sa

from prefiere.data.schema import Text
from prefiere.feedback import items, snapshot
from prefiere.feedback.collect import How, NothingToAsk, Queueing
from prefiere.feedback.rounds import learning
from prefiere.feedback.rounds.recipe import LoopRecipe
from prefiere.feedback.rounds.verdict import Verdict, verdict_of
from prefiere.feedback.rounds.waiting import Watched, wait_for_people
from prefiere.feedback.schema import round_, snapshot_row
from prefiere.feedback.store import Store, StoreError, hidden
from prefiere.feedback.votes import in_force
from prefiere.run import Stop

RoundState: TypeAlias = Literal[
    "new", "sampling", "asking", "frozen", "training", "sampling_after", "comparing", "judged", "closed", "stopped"
]
OVER: tuple[RoundState, ...] = ("closed", "stopped")


class Work(Protocol):
    """What a round needs models for."""

    def collect(self, models: list[str], prompts: str, how: How, queueing: Queueing) -> None:
        """Let one model answer each prompt twice, or two once each, and queue the pairs. Raises NothingToAsk."""

    def features(self, said: Sequence[tuple[Text, Text]]) -> np.ndarray:
        """[n, D]: what answers (prompt, answer) look like to the model that the loop began with."""

    def judge(self, round_id: int) -> None:
        """Let the loop's judge vote on the pairs of this round that it has not had."""

    def train(self, model: str, data: str, out: str) -> Stop | None:
        """Start or continue a run, to its end. Returns why a guard stopped it, or None."""

    def report(self, out: str) -> None:
        """Let the run's report say how its blind comparison ended."""


@dataclass(frozen=True)
class Round:
    """One row: which round of the loop, what it is at, and the models before and after it."""

    id: int
    n: int
    state: RoundState
    before_model: str
    after_model: str | None
    snapshot_id: int | None
    run: str | None
    started: float
    reason: str | None


def rounds_of(c: sa.Connection, digest: str) -> list[Round]:
    """The rounds of a loop so far, in order."""
    columns = [round_.c[name] for name in Round.__dataclass_fields__]
    rows = c.execute(sa.select(*columns).where(round_.c.recipe_digest == digest).order_by(round_.c.n))
    return [Round(*row) for row in rows]


@dataclass
class Rounds:
    """One loop on one store. `run` goes on from wherever it is, to its end."""

    store: Store
    recipe: LoopRecipe
    work: Work
    display: Watched

    def run(self) -> list[Round]:
        """Go through the rounds until the last, or until one is stopped. Returns all of them."""
        now = self._current()
        step: dict[RoundState, Callable[[Round], Round]] = {
            "new": self._new, "sampling": self._sampling, "asking": self._asking, "frozen": self._frozen,
            "training": self._training, "sampling_after": self._sampling_after, "comparing": self._comparing,
            "judged": self._judged,
        }  # fmt: skip
        while True:
            if now.state in OVER:
                if now.state == "stopped" or now.n >= self.recipe.rounds:
                    break
                now = self._begin(now.n + 1, str(now.after_model))
                continue
            now = step[now.state](now)
        with self.store.read() as c:
            return rounds_of(c, self.recipe.digest())

    def _current(self) -> Round:
        """The round that was begun last, else the first. Raises StoreError where ``out`` holds another loop's runs."""
        with self.store.read() as c:
            rounds = rounds_of(c, self.recipe.digest())
        if rounds:
            return rounds[-1]
        out = Path(self.recipe.out)
        if out.is_dir() and any(p.name.startswith("round-") for p in out.iterdir()):
            raise StoreError(
                f"{out} holds runs of a loop with other settings, or on another store. Give it those again to "
                "continue it, or choose another out."
            )
        return self._begin(1, self.recipe.model)

    def _begin(self, n: int, model: str) -> Round:
        with self.store.write() as c:
            items.insert(c, round_, n=n, state="new", recipe_digest=self.recipe.digest(), before_model=model,
                         started=time.time())  # fmt: skip
            return rounds_of(c, self.recipe.digest())[-1]

    def _to(self, now: Round, state: RoundState, c: sa.Connection | None = None, **values: Any) -> Round:
        """Follow one arrow, in one transaction. Raises StoreError where another process has followed it."""
        if c is None:
            with self.store.write() as c:
                return self._to(now, state, c, **values)
        if state in OVER:
            values["ended"] = time.time()
        mine = sa.and_(round_.c.id == now.id, round_.c.state == now.state)
        if c.execute(sa.update(round_).where(mine).values(state=state, **values)).rowcount != 1:
            raise StoreError(f"{hidden(self.store.name)}: another process is at work on round {now.n}. Let one go on.")
        return rounds_of(c, self.recipe.digest())[-1]

    def _say(self, now: Round, text: str) -> None:
        self.display.say(f"round {now.n} of {self.recipe.rounds}: {text}")

    def _stop(self, now: Round, reason: str) -> Round:
        self._say(now, f"stopped: {reason}")
        return self._to(now, "stopped", reason=reason)

    # -- the states: each does its work and follows its arrow -------------------------------------------------------

    def _new(self, now: Round) -> Round:
        return self._to(now, "sampling")

    def _sampling(self, now: Round) -> Round:
        self._say(now, f"{now.before_model} answers")
        queueing = Queueing(overlap=self.recipe.overlap, seed=self.recipe.seed, round_id=now.id)
        self.work.collect([now.before_model], self.recipe.prompts, self._how(2 * now.n - 2), queueing)
        return self._to(now, "asking")

    def _asking(self, now: Round) -> Round:
        asked = self.recipe.ask
        if self.recipe.judge is not None:
            self.work.judge(now.id)
        if asked.votes != 0:
            learning.prioritise(self.store, self._features)
        wait_for_people(
            self.store, self.display, now.id, "ask", name=f"round {now.n}: asking", votes=asked.votes,
            deadline=asked.deadline(now.started), enough=self._enough,
        )  # fmt: skip
        with self.store.write() as c:
            taken = snapshot.take_in(c)
            learnt = sa.select(snapshot_row.c.n).where(snapshot_row.c.snapshot_id == taken).limit(1)
            if c.execute(learnt).first() is None:
                return self._to(now, "stopped", c, reason="nobody has voted, so there is nothing to learn from")
            return self._to(now, "frozen", c, snapshot_id=taken)

    def _frozen(self, now: Round) -> Round:
        return self._to(now, "training", run=str(Path(self.recipe.out) / f"round-{now.n}"))

    def _training(self, now: Round) -> Round:
        assert now.run is not None
        self._say(now, f"{now.before_model} learns from {hidden(self.store.name)}#{now.snapshot_id} in {now.run}")
        stop = self.work.train(now.before_model, f"{self.store.name}#{now.snapshot_id}", now.run)
        if stop is not None:
            return self._stop(now, stop.text)
        return self._to(now, "sampling_after", after_model=now.run)

    def _sampling_after(self, now: Round) -> Round:
        self._say(now, f"{now.before_model} and {now.after_model} answer, blind")
        prompts = self.recipe.compare.prompts or self.recipe.prompts
        queueing = Queueing(purpose="compare", overlap=self.recipe.overlap, seed=self.recipe.seed, round_id=now.id)
        try:
            self.work.collect([now.before_model, str(now.after_model)], prompts, self._how(2 * now.n - 1), queueing)
        except NothingToAsk as e:
            return self._stop(now, str(e))
        return self._to(now, "comparing")

    def _comparing(self, now: Round) -> Round:
        if self.recipe.judge is not None:
            self.work.judge(now.id)
        votes = self.recipe.compare.votes
        wait_for_people(self.store, self.display, now.id, "compare", name=f"round {now.n}: comparing", votes=votes)
        return self._to(now, "judged")

    def _judged(self, now: Round) -> Round:
        with self.store.read() as c:
            found: Verdict = verdict_of(c, now.id)
        self.work.report(str(now.run))
        if found.lost:
            return self._stop(now, f"the model after lost: {found.sentence}")
        self._say(now, found.sentence)
        return self._to(now, "closed", reason=found.sentence)

    def _enough(self) -> bool:
        """Whether the stop rule ends the asking, where the recipe wants that."""
        if not self.recipe.ask.enough:
            return False
        with self.store.read() as c:
            votes = in_force(c)
            answers = learning.paired_answers(c, sorted({v.pair_id for v in learning.curve_votes(votes)}))
        if answers.said:  # nobody has voted: a model has nothing to read
            self.work.features(list(answers.said.values()))  # which are kept: no transaction waits for a model
        with self.store.read() as c:
            return learning.curve(c, votes, features=self._features).said == "stop"

    @property
    def _features(self) -> learning.Features:
        return learning.Features("hidden", self.work.features, learning.HIDDEN_WIDTH)

    def _how(self, more: int) -> How:
        """How answers are drawn: every sampling of a loop has a seed of its own."""
        r = self.recipe
        return How(r.temperature, r.top_p, r.max_new_tokens, r.seed + more)
