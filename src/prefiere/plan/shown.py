"""Reading that takes a while says how far it has come, and about how long it still takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from prefiere.asked.language import in_words
from prefiere.console import Display, rough_time
from prefiere.data.formats import Records
from prefiere.run import called

SOMETHING = 0.01
"""The share of the data from which on the time that is left can be told."""


@contextmanager
def reading(
    display: Display, name: str, records: Records[Any], *, opening: bool = True
) -> Iterator[Callable[[int], None]]:
    """Call the yielded function with how many examples these records have given so far. opening: as of
    `Display.phase`."""
    began = display.clock()

    def line(n: int) -> str:
        said, share = in_words("progress.read", data=called(name), n=f"{n:,}"), records.share_read()
        if share is None or share < SOMETHING:
            return said
        left = (display.clock() - began) * (1 - share) / share
        return f"{said}, {in_words('progress.left', time=rough_time(left))}"

    with display.phase(in_words("progress.reading", data=called(name)), opening=opening) as at:
        yield lambda n: at(line(n))
