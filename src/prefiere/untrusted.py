"""Files that nobody vouches for, as those of a run that somebody sent: read as data, up to a size, no link followed.

Nothing is imported, whatever a file names. No torch.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import yaml

LONGEST_FILE, LONGEST_YAML, LONGEST_LOG = 1 << 24, 1 << 16, 1 << 30
"""Bytes of a JSON file, of a YAML file (which takes a hundred times as long to read), and of a log."""
LONGEST_ROW = 1 << 20
"""Bytes of a row of a log."""
MOST_ROWS, MOST_TEXT = 10_000, 1 << 25
"""Rows, and bytes of them, that are held of a log for a report: a curve has no more points than a screen."""
_MOST_VALUES = 10_000  # of a YAML file, where what is named twice counts twice

_PLAIN = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)  # Windows has neither

LogRow = dict[str, Any]


class UnreadableFile(ValueError):
    """A file that is no plain file, too large, or not what its name says."""


def no_link(path: str, flags: int) -> int:
    """An ``opener`` for `open` that follows no link (OSError)."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


@contextmanager
def open_plain(path: Path) -> Iterator[BinaryIO]:
    """Open a file to read: never through a link, and never a pipe or a device.

    Raises FileNotFoundError where there is none, UnreadableFile for what is no plain file or may not be read.
    """
    try:
        descriptor = os.open(path, _PLAIN)  # a pipe must not make us wait
    except FileNotFoundError:
        raise
    except OSError as e:
        why = "it is a symbolic link, and links are not followed" if e.errno == errno.ELOOP else e.strerror
        raise UnreadableFile(f"{path} cannot be read: {why}.") from e
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UnreadableFile(f"{path} cannot be read: it is no plain file.")
    with open(descriptor, "rb") as f:
        yield f


def read_text(path: Path, most: int = LONGEST_FILE) -> str:
    """A file's text. Raises as `open_plain`, and UnreadableFile above ``most`` bytes or for bytes that are no text."""
    with open_plain(path) as f:
        read = f.read(most + 1)
    if len(read) > most:
        raise UnreadableFile(f"{path} has more than {most:,} bytes: no run writes so much into it.")
    try:
        return read.decode("utf-8")
    except UnicodeDecodeError as e:
        raise UnreadableFile(f"{path} is damaged: {e}.") from e


def read_json(path: Path) -> LogRow:
    """The names and values of a JSON file. Raises as `read_text`, and UnreadableFile for anything else."""
    try:
        data = json.loads(read_text(path))
    except UnreadableFile:
        raise
    except (ValueError, RecursionError) as e:
        raise UnreadableFile(f"{path} is damaged: {e}.") from e
    if not isinstance(data, dict):
        raise UnreadableFile(f"{path} is damaged: it holds no names and values.")
    return data


def read_yaml(path: Path) -> LogRow:
    """The names and values of a YAML file. Raises as `read_text`, and UnreadableFile for anything else."""
    try:
        loader, node = yaml_document(read_text(path, LONGEST_YAML))
        data = loader.construct_document(node) if node is not None else {}
    except UnreadableFile:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as e:
        raise UnreadableFile(f"{path} is damaged: {' '.join(str(e).split())}.") from e
    if not isinstance(data, dict) or not all(isinstance(k, str) for k in data):
        raise UnreadableFile(f"{path} is damaged: it holds no names and values.")
    return data


def yaml_document(text: str) -> tuple[yaml.SafeLoader, yaml.Node | None]:
    """A YAML text as the tree of its nodes, and the loader that makes plain values of them.

    What grows when it is written out is refused before anything is made of it: nine lines of aliases can stand for a
    billion values. Raises YAMLError, and ValueError for too many values.
    """
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
    except RecursionError as e:
        raise ValueError("it is nested too deeply") from e
    _count(node)
    return loader, node


def _count(node: yaml.Node | None) -> None:
    """Raise ValueError where a document stands for more than _MOST_VALUES values."""
    waiting, values = [node], 0
    while waiting:
        found = waiting.pop()
        values += 1
        if values > _MOST_VALUES:
            raise ValueError(f"it stands for more than {_MOST_VALUES:,} values")
        if isinstance(found, yaml.MappingNode):
            waiting += [n for pair in found.value for n in pair]
        elif isinstance(found, yaml.SequenceNode):
            waiting += found.value


def read_log(path: Path) -> Iterator[tuple[LogRow, int]]:
    """The rows of a log, one at a time, each with its bytes; none where there is no file.

    A last line that is not whole is left out: its writer is still at it, or was killed. Raises UnreadableFile for any
    other line that is no row.
    """
    try:
        with open_plain(path) as f:
            if os.fstat(f.fileno()).st_size > LONGEST_LOG:
                raise UnreadableFile(f"{path} has more than {LONGEST_LOG:,} bytes: no run writes so much into it.")
            for number, line in enumerate(iter(lambda: f.readline(LONGEST_ROW + 1), b""), 1):
                if line == b"\n":
                    continue
                try:
                    row = _row(line)
                except (ValueError, RecursionError) as e:
                    if len(line) <= LONGEST_ROW and not line.endswith(b"\n"):
                        return
                    raise UnreadableFile(f"{path}:{number} is damaged: {e}. Remove that line.") from e
                yield row, len(line)
    except FileNotFoundError:
        return


def _row(line: bytes) -> LogRow:
    if len(line) > LONGEST_ROW:
        raise ValueError(f"a row of more than {LONGEST_ROW:,} bytes")
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError("a row has names and values")
    step = row.get("step", 0)
    if not isinstance(step, int | float) or not abs(step) < 1e15:
        raise ValueError("its step is no number")
    return {sys.intern(k): v for k, v in row.items()}  # each row has the same names: held once


def thinned(rows: Iterable[tuple[LogRow, int]]) -> list[LogRow]:
    """Rows, given with their bytes: all, or of many every second, fourth, eighth, ..., and always the last."""
    kept: list[tuple[LogRow, int]] = []
    every, text = 1, 0
    last: tuple[LogRow, int] | None = None
    for seen, last in enumerate(rows):
        if seen % every == 0:
            kept.append(last)
            text += last[1]
        while len(kept) > MOST_ROWS or (text > MOST_TEXT and len(kept) > 1):
            kept, every = kept[::2], every * 2
            text = sum(size for _, size in kept)
    if last is not None and kept[-1] is not last:
        kept.append(last)
    return [row for row, _ in kept]


def at_ends(rows: Iterable[tuple[LogRow, int]]) -> list[LogRow]:
    """Of rows in the order of their steps: those of the first step and of the last, up to MOST_TEXT bytes each."""
    first: list[LogRow] = []
    last: list[LogRow] = []
    text = 0
    for row, size in rows:
        kept = first if not first or row.get("step") == first[0].get("step") else last
        if kept and row.get("step") != kept[0].get("step"):
            last, text = [], 0
            kept = last
        elif not kept:
            text = 0
        text += size
        if text <= MOST_TEXT or not kept:
            kept.append(row)
    return first + last
