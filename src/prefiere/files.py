"""Files that are written whole or not at all, and text that is safe to show."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def sync_folder(folder: Path) -> None:
    """Make a rename in this folder survive a power cut."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it is synced and renamed over ``path``."""
    temporary = path.with_name(f".{path.name}.tmp")
    yield temporary
    with open(temporary, "rb") as f:
        os.fsync(f.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a file atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
