"""What took long to make, kept on disk for other runs: each thing under a key of all that it depends on.

An entry is a folder of files, written atomically, with the size and hash of each file written down. One that does not
agree with them (a full disk, a copy that broke off) is made anew. Several processes that want the same entry wait for
the one that makes it. Deleting the folder is always safe.

    with entry("tokens", key) as kept:
        if not kept.whole:
            with kept.making() as (folder, about):
                ...  # fill the folder, say in ``about`` what is in it
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from prefiere.console import progress, say
from prefiere.files import atomic_folder, seal, sealed

_SILENT = 2.0  # seconds of waiting before somebody is told


def cache_folder() -> Path:
    """Where entries lie: ``PREFIERE_CACHE``, or ``prefiere`` in Hugging Face's own folder (``HF_HOME``)."""
    if named := os.environ.get("PREFIERE_CACHE"):
        return Path(named).expanduser()
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME) / "prefiere"


def digest_of(key: Mapping[str, Any]) -> str:
    """The name of an entry: a hash of plain values."""
    return hashlib.blake2b(json.dumps(key, sort_keys=True).encode(), digest_size=16).hexdigest()


@dataclass
class Entry:
    """A place in the cache, held by this process.

    whole: whether it is there; otherwise it is to be made. about: the plain values that its making left.
    """

    folder: Path
    whole: bool
    about: dict[str, Any]

    @contextmanager
    def making(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        """Yield an empty folder to fill with files, and a dict to fill with plain values that are read back as
        ``about``. Nothing is kept where the filling fails."""
        about: dict[str, Any] = {}
        try:
            with atomic_folder(self.folder) as filled:
                yield filled, about
                seal(filled, about)
        except OSError as e:
            where = self.folder.parent
            if e.filename is not None and not Path(str(e.filename)).is_relative_to(where):
                raise  # something that was read meanwhile
            why = f"cannot write to {where} ({e.strerror or e})"
            raise ValueError(f"{why}: set PREFIERE_CACHE to another folder") from e
        self.whole, self.about = True, dict(json.loads(json.dumps(about)))


@contextmanager
def entry(kind: str, key: Mapping[str, Any]) -> Iterator[Entry]:
    """The entry of a key, held until the block ends: another process that wants it waits.

    key: everything that the entry depends on and nothing else, as plain values. Raises ValueError where the cache
    cannot be read or written.
    """
    path = cache_folder() / f"{kind}-{digest_of(key)}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_suffix(".lock"))
        try:
            lock.acquire(timeout=_SILENT)
        except Timeout:
            say(f"waiting for another process that makes the same {kind}: {lock.lock_file}", progress())
            lock.acquire()
    except OSError as e:
        raise ValueError(f"cannot write to {path.parent} ({e.strerror}): set PREFIERE_CACHE to another folder") from e
    try:
        try:
            about, damaged = sealed(path)
        except OSError as e:
            raise ValueError(f"cannot read {path} ({e.strerror}): set PREFIERE_CACHE to another folder") from e
        yield Entry(path, damaged is None, about)
    finally:
        lock.release()
