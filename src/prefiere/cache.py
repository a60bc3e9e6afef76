"""What took long to make, kept on disk for other runs: each thing under a key of all that it depends on.

An entry is a folder of files, made beside its place and renamed into it when it is whole, with the size and hash of
each file written down. One that does not agree with them (a full disk, a copy that broke off) is made anew. Several
processes that want the same entry wait for the one that makes it. Deleting the folder is always safe.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

_MANIFEST = "entry.json"


def cache_folder() -> Path:
    """Where entries lie: ``PREFIERE_CACHE``, or ``prefiere`` in Hugging Face's own folder (``HF_HOME``)."""
    if named := os.environ.get("PREFIERE_CACHE"):
        return Path(named).expanduser()
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME) / "prefiere"


def hash_of(path: Path) -> str:
    """A hash of a file's contents."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def digest_of(key: Mapping[str, Any]) -> str:
    """The name of an entry: a hash of plain values."""
    return hashlib.blake2b(json.dumps(key, sort_keys=True).encode(), digest_size=16).hexdigest()


def entry(kind: str, key: Mapping[str, Any], make: Callable[[Path], dict[str, Any]]) -> tuple[Path, dict[str, Any]]:
    """The folder of an entry and the plain values that its making returned.

    key: everything that the entry depends on and nothing else, as plain values. make: fills an empty folder; called
    only where there is no whole entry. Raises ValueError where the cache cannot be written.
    """
    path = cache_folder() / f"{kind}-{digest_of(key)}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_suffix(".lock"))
        lock.acquire()
    except OSError as e:
        raise ValueError(f"cannot write to {path.parent} ({e.strerror}): set PREFIERE_CACHE to another folder") from e
    try:
        about = _whole(path)
        return path, about if about is not None else _made(path, make)
    finally:
        lock.release()


def _made(path: Path, make: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    beside = Path(tempfile.mkdtemp(prefix=f"{path.name}.", suffix=".tmp", dir=path.parent))
    try:
        about = json.loads(json.dumps(make(beside)))
        files = {f.name: [f.stat().st_size, hash_of(f)] for f in sorted(beside.iterdir())}
        (beside / _MANIFEST).write_text(json.dumps({"files": files, "about": about}))
        for name in os.listdir(beside):
            with (beside / name).open("rb") as file:
                os.fsync(file.fileno())
        shutil.rmtree(path, ignore_errors=True)
        beside.rename(path)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    return dict(about)


def _whole(path: Path) -> dict[str, Any] | None:
    """What an entry's making returned; None where it is missing or damaged."""
    try:
        manifest = json.loads((path / _MANIFEST).read_text())
        files, about = manifest["files"], manifest["about"]
        sizes = all((path / name).stat().st_size == size for name, (size, _) in files.items())
        return dict(about) if sizes and all(hash_of(path / n) == h for n, (_, h) in files.items()) else None
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return None
