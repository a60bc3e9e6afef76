"""The data of a run of several processes: the first one reads and tokenizes it, the others get what it made.

What grows with the text lies in files of the cache. A process that sees the first one's cache reads them there; to one
on another machine, without a shared drive, they are sent, into a cache of its own.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from pathlib import Path

from prefiere.cache import cache_folder
from prefiere.files import atomic_folder
from prefiere.plan.examples import ExampleData, PromptData
from prefiere.world import World

CHUNK = 64 * 2**20
"""Bytes that are sent at once."""


def read_together(world: World, read: Callable[[], ExampleData | PromptData]) -> ExampleData | PromptData:
    """What ``read`` gives in the first process, in all of them. Raises what it raises."""
    data = read() if world.main else None
    folders = {s.folder for s in (data.train, data.eval) if s is not None} if isinstance(data, ExampleData) else set()
    for folder in world.broadcast(sorted(f for f in folders if f is not None)):
        _send(world, folder)
    shared = world.broadcast(data)
    assert shared is not None
    return shared


def sees(folder: Path) -> bool:
    """Whether this process has an entry of the first one's cache: there, or in its own."""
    return folder.is_dir() or (cache_folder() / folder.name).is_dir()


def _send(world: World, folder: Path) -> None:
    """Copy an entry of the first process's cache to the caches of those that do not see it."""
    mine = (socket.gethostname(), str(cache_folder()))
    told = world.gather([(world.rank, sees(folder), mine)])
    writers = {place: rank for rank, has, place in reversed(told) if not has}  # of a cache that several use, the first
    if not writers:
        return
    names = world.broadcast(sorted(f.name for f in folder.iterdir()) if world.main else [])
    own = cache_folder() / folder.name
    own.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(own) if world.rank in writers.values() else nullcontext() as made:
        for name in names:
            with ExitStack() as files:
                source = files.enter_context((folder / name).open("rb")) if world.main else None
                target = files.enter_context((made / name).open("wb")) if made else None
                while chunk := world.broadcast(source.read(CHUNK) if source else b""):
                    if target:
                        target.write(chunk)
    world.barrier()
