"""Waiting for people: they vote in another process (`prefiere serve`), and the store tells when it is enough."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

import sqlalchemy as sa

from prefiere.asked.language import count_of
from prefiere.feedback.schema import Purpose, lease, pair
from prefiere.feedback.store import Store, hidden
from prefiere.feedback.votes import in_force

_LOOK, _LINE = 1.0, 60.0  # seconds between two looks; and between two lines of a log


class Watched(Protocol):
    """Where a loop speaks, as a `console.Display`."""

    @property
    def live(self) -> bool:
        """Whether a bar can move."""

    def say(self, text: str) -> None:
        """One line."""

    def stage(self, name: str, total: int, start: int = 0) -> AbstractContextManager[Callable[..., None]]:
        """A bar."""


@dataclass(frozen=True)
class SoFar:
    """Votes of people on a round's pairs, and the places at those pairs that nobody has filled."""

    votes: int
    places: int


def so_far(store: Store, round_id: int, purpose: Purpose) -> SoFar:
    """What people have said so far of a round's pairs of this purpose."""
    mine = sa.and_(pair.c.round_id == round_id, pair.c.purpose == purpose)
    with store.read() as c:
        pairs = set(c.execute(sa.select(pair.c.id).where(mine)).scalars())
        free = int(c.execute(sa.select(sa.func.coalesce(sa.func.sum(pair.c.open), 0)).where(mine)).scalar_one())
        held = sa.select(sa.func.count()).select_from(lease).join(pair, pair.c.id == lease.c.pair_id)
        free += int(c.execute(held.where(mine, lease.c.state == "open")).scalar_one())
        votes = sum(v.pair_id in pairs and not v.judge for v in in_force(c))
    return SoFar(votes, free)


def wait_for_people(
    store: Store, display: Watched, round_id: int, purpose: Purpose, *, name: str, votes: int | None,
    deadline: float | None = None, enough: Callable[[], bool] = lambda: False,
) -> None:  # fmt: skip
    """Until there are so many votes, the deadline has passed, it is enough, or every place at the pairs is filled."""
    now = so_far(store, round_id, purpose)
    wanted = now.votes + now.places if votes is None else min(votes, now.votes + now.places)
    if _over(now, votes, deadline) or enough():
        return
    until = f", at the latest at {datetime.fromtimestamp(deadline):%Y-%m-%d %H:%M}" if deadline is not None else ""
    display.say(
        f"{name}: waits for {count_of(wanted, 'vote')}{until}. `prefiere serve {hidden(store.name)}` asks people."
    )
    if not display.live:
        _look(store, round_id, purpose, votes, deadline, enough, _Lines(display, name, wanted, now.votes))
        return
    with display.stage(name, wanted, start=now.votes) as advance:
        _look(store, round_id, purpose, votes, deadline, enough, _Bar(advance, now.votes))


def _look(
    store: Store, round_id: int, purpose: Purpose, votes: int | None, deadline: float | None,
    enough: Callable[[], bool], show: Callable[[int], None],
) -> None:  # fmt: skip
    while True:
        now = so_far(store, round_id, purpose)
        show(now.votes)
        if _over(now, votes, deadline) or enough():
            return
        time.sleep(_LOOK)


def _over(now: SoFar, votes: int | None, deadline: float | None) -> bool:
    counted = votes is not None and now.votes >= votes
    return counted or not now.places or (deadline is not None and time.time() >= deadline)


@dataclass
class _Bar:
    """Moves a bar on."""

    advance: Callable[..., None]
    shown: int

    def __call__(self, votes: int) -> None:
        self.advance(votes - self.shown)
        self.shown = votes


@dataclass
class _Lines:
    """Says in a log how far it is: at most once a minute, and only where something has changed."""

    display: Watched
    name: str
    wanted: int
    shown: int
    at: float = 0.0

    def __call__(self, votes: int) -> None:
        if votes != self.shown and (time.monotonic() - self.at > _LINE or votes >= self.wanted):
            self.display.say(f"{self.name}: {votes:,} of {count_of(self.wanted, 'vote')}")
            self.shown, self.at = votes, time.monotonic()
