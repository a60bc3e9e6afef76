"""Files and folders that are written whole or not at all, and text that is safe to show.

A writer fills a temporary file or folder beside the final place, under a name that nobody can foresee, syncs it and
renames it. What a killed writer leaves behind is cleaned by whoever writes the same thing next. One process at a time
writes a thing: runs and entries of the cache have locks of their own.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import reprlib
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

# .NAME.<16 hex digits>.tmp: NAME as it is being written; .NAME.<16 hex digits>.old: what NAME was until it is replaced
_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{16}\.(tmp|old)", re.DOTALL)


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield an empty temporary file beside ``path``; on success it is synced and renamed over ``path``.

    On failure the temporary file is removed and what ``path`` was before is whole.
    """
    with _beside(path, folder=False) as temporary:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
    sync(path.parent)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder beside ``path``; on success its files are synced and it takes the place of
    ``path``.

    On failure the temporary folder is removed and what ``path`` was before is whole. A folder that is replaced is
    renamed first: a kill between the two renames leaves both, and `clean` puts the old one back.
    """
    with _beside(path, folder=True) as temporary:
        yield temporary
        for folder, _, names in os.walk(temporary):
            for name in names:
                sync(Path(folder, name))
            sync(Path(folder))
        if os.path.lexists(path):
            _replace(path, temporary)
        else:
            temporary.rename(path)
    sync(path.parent)


MANIFEST = "manifest.json"


def hash_of(path: Path) -> str:
    """A hash of a file's contents."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def seal(folder: Path, about: Mapping[str, Any] | None = None) -> None:
    """Write down the size and hash of each file of a folder, and plain values ``about`` them."""
    files = {f.name: [f.stat().st_size, hash_of(f)] for f in sorted(folder.iterdir())}
    (folder / MANIFEST).write_text(json.dumps({"files": files, "about": about or {}}))


def sealed(folder: Path) -> tuple[dict[str, Any], str | None]:
    """What `seal` was told about a folder, and the name of a file that is not as it was then, if there is one."""
    try:
        manifest = {} if (folder / MANIFEST).is_symlink() else json.loads((folder / MANIFEST).read_text())
        files, about = dict(manifest["files"]), dict(manifest["about"])
        expected = {name: (int(size), str(mark)) for name, (size, mark) in files.items()}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}, MANIFEST
    paths = {name: folder / Path(name).name for name in expected}
    off = (n for n, p in paths.items() if p.is_symlink() or not p.is_file() or p.stat().st_size != expected[n][0])
    name = next(off, None) or next((n for n, p in paths.items() if hash_of(p) != expected[n][1]), None)
    return about, name


def write_text(path: Path, text: str) -> None:
    """Write a file atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def remove_folder(path: Path) -> None:
    """Delete a folder, out of sight first: a kill in the middle leaves no half of it under its name.

    What cannot be deleted is left to `clean`.
    """
    doomed = _temporary_name(path, "tmp")
    path.rename(doomed)
    _delete(doomed)


def clean(folder: Path, name: str | None = None) -> None:
    """Put in order what killed writers left in this folder, of ``name`` or of everything; nothing else is touched.

    A folder that was about to be replaced is put back where nothing has taken its place; the rest is deleted. Only for
    who is alone in writing there: what another process is filling would be deleted too.
    """
    for left in list(folder.iterdir()) if folder.is_dir() else []:
        found = _TEMPORARY.fullmatch(left.name)
        if found and name in (None, found[1]):
            if found[2] == "old" and not os.path.lexists(folder / found[1]):
                left.rename(folder / found[1])
            else:
                _delete(left)


def _temporary_name(path: Path, kind: str) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.{kind}")


@contextmanager
def _beside(path: Path, *, folder: bool) -> Iterator[Path]:
    """A new file or folder beside ``path``, deleted on failure. What killed writers of ``path`` left is gone then."""
    clean(path.parent, path.name)
    temporary = _temporary_name(path, "tmp")
    if folder:
        temporary.mkdir()
    else:
        temporary.touch(exist_ok=False)
    try:
        yield temporary
    except BaseException:
        _delete(temporary)
        raise


def _replace(path: Path, new: Path) -> None:
    """Let ``new`` take the place of what is at ``path``, which is deleted then."""
    old = _temporary_name(path, "old")
    path.rename(old)
    try:
        new.rename(path)
    except BaseException:
        old.rename(path)
        raise
    doomed = _temporary_name(path, "tmp")  # not as ``old``: a kill from here on must not bring half of it back
    old.rename(doomed)
    _delete(doomed)


def _delete(path: Path) -> None:
    """Delete what may be there; what cannot be deleted is left to the next `clean`."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def sync(path: Path) -> None:
    """Make the contents of a file, or the names in a folder, survive a power cut."""
    if os.name == "nt":  # Windows syncs no folder, and a file only where it may be written to
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def leads_out(folder: Path, path: Path) -> bool:
    """Whether a path under ``folder`` is, or lies behind, a symbolic link to somewhere else.

    The folder itself may be one: whoever named it knows.
    """
    return not path.resolve().is_relative_to(folder.resolve())


def first_link_out(folder: Path) -> Path | None:
    """The first file or folder anywhere under ``folder`` that is a link to somewhere else."""
    for at, folders, names in os.walk(folder):
        for name in sorted((*folders, *names)):
            if (path := Path(at, name)).is_symlink() and leads_out(folder, path):
                return path
    return None


# Characters that hide, reorder their neighbours, break lines or break the encoding: C0 but tab and newline, DEL and C1,
# bidirectional controls, line and paragraph separators, surrogates, the byte order mark.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")


def visible(text: str) -> str:
    """Untrusted text for a terminal or a page: a character that hides or reorders others shows as ⟨U+202E⟩.

    That cannot be mistaken for what somebody wrote, as ``\\x1b`` can.
    """
    return _UNSAFE.sub(lambda m: f"⟨U+{ord(m[0]):04X}⟩", text)


_SHORT = reprlib.Repr()
_SHORT.maxdict = _SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxset = 3
_SHORT.maxstring = _SHORT.maxother = 80


def short(value: object) -> str:
    """What a value looks like, for an error: as Python writes it, and of a long one its ends alone."""
    text = _SHORT.repr(value)
    return text if len(text) <= 100 else f"{text[:60]} ... {text[-20:]}"


_PASSWORDS = (
    (re.compile(r"\b(postgres(?:ql)?://[^\s/:@]*:)[^\s@]+@"), r"\1***@"),
    (re.compile(r"\b(\w+://[^\s/:@]*:)[^\s/@]+@"), r"\1***@"),
    (re.compile(r"([?&]password=)[^&\s#]+"), r"\1***"),
)


def without_passwords(value: Any) -> Any:
    """Plain values in which no URL holds a password: ``postgresql://ana:***@host/votes``."""
    if isinstance(value, str):
        for pattern, shown in _PASSWORDS:
            value = pattern.sub(shown, value)
        return value
    if isinstance(value, Mapping):
        return {k: without_passwords(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [without_passwords(v) for v in value]
    return value
