"""Token ids of prompts and their completions, in flat arrays that a million examples fit in.

Every algorithm sees its data as `PromptGroup`s: one prompt with k completions (SFT and KTO k=1, pairs k=2 with the
chosen one first, samples k=n). `GroupStore` holds many of them as a few flat arrays, in memory or on disk, so
that an epoch streams through memory; a part of a store is a list of rows, never a copy.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, Self, overload

import numpy as np

from prefiere.cache import cache_folder


@dataclass(frozen=True, slots=True)
class PromptGroup:
    """One prompt and its k completions as token ids.

    prompt: int32 [P], P >= 1. completions: k arrays int32 [C_i], C_i >= 1. masks: k arrays bool [C_i], true where a
    completion token is scored. weight scales the group's loss; label is the probability that completion 0 beats
    completion 1 (KTO: 1 desirable, 0 not); margin is a stated reward difference or nan. source names file and line.
    """

    prompt: np.ndarray
    completions: tuple[np.ndarray, ...]
    masks: tuple[np.ndarray, ...]
    weight: float = 1.0
    label: float = 1.0
    margin: float = float("nan")
    source: str = ""

    @property
    def length(self) -> int:
        """Tokens that the group takes in a packed row: the prompt once and every completion."""
        return len(self.prompt) + sum(len(c) for c in self.completions)


# The arrays of n groups of k completions. A group has in each: its tokens (prompt, then completions) and which of them
# are scored; 1 + k sizes; a hash of its prompt; one of its answers in any order; two words of a hash of its tokens,
# masks and cuts; the number of scored tokens; weight, label, margin; and the bytes of its source.
TYPES = {
    "tokens": np.int32,
    "mask": np.bool_,
    "sizes": np.int32,
    "prompt_key": np.int64,
    "answer_key": np.int64,
    "digest": np.uint64,
    "scored": np.int32,
    "weight": np.float64,
    "label": np.float64,
    "margin": np.float64,
    "source": np.uint8,
    "source_size": np.int32,
}
_LONG = ("tokens", "mask")
_CHUNK = 512
_AGAIN = "the same command looks for it again; PREFIERE_CACHE may name another folder"


class _Stretches:
    """An array in a file, of which stretches are read. Were it mapped, every page once read would count as memory of
    this process for as long as there is memory to spare, and an epoch reads all of them."""

    def __init__(self, path: Path, dtype: type):
        self._where, self._dtype, self._file = (path, dtype), np.dtype(dtype), path.open("rb", buffering=0)

    def __getitem__(self, part: slice) -> np.ndarray:
        size = self._dtype.itemsize
        wanted = (part.stop - part.start) * size
        try:
            read = os.pread(self._file.fileno(), wanted, part.start * size)
        except OSError as e:  # names no file
            raise OSError(f"cannot read {self._where[0]} ({e.strerror}): {_AGAIN}") from e
        if len(read) != wanted:
            raise OSError(f"{self._where[0]} is cut short: {_AGAIN}")
        return np.frombuffer(read, self._dtype)

    @property
    def folder(self) -> Path:
        return self._where[0].parent

    def __reduce__(self) -> tuple[Callable[[Path, type], _Stretches], tuple[Path, type]]:
        return _reopened, self._where


def _reopened(path: Path, dtype: type) -> _Stretches:
    """An array in a file of the cache, as another process has it: there, or in a cache of its own."""
    return _Stretches(path if path.exists() else cache_folder() / path.parent.name / path.name, dtype)


class GroupStore(Sequence[PromptGroup]):
    """An immutable sequence of `PromptGroup`s in flat arrays (`TYPES`); ``k`` completions each.

    rows: int64 [n], which of the arrays' groups these are, in which order; None for all.
    """

    def __init__(self, arrays: Mapping[str, Any], k: int, rows: np.ndarray | None = None):
        if "offsets" not in arrays:
            ends = {"offsets": _offsets(arrays["sizes"]), "source_offsets": _offsets(arrays["source_size"])}
            arrays = {**arrays, **ends}
        self._a, self.k, self._rows = arrays, k, rows

    @classmethod
    def build(cls, groups: Iterable[PromptGroup], k: int) -> GroupStore:
        """Groups of k completions each, in memory. Raises ValueError as `GroupWriter.add` does."""
        parts, stream = list[dict[str, np.ndarray]](), iter(groups)
        while chunk := list(islice(stream, _CHUNK)):
            for group in chunk:
                _check(group, k)
            parts.append(_columns(chunk, k))
        empty: dict[str, np.ndarray] = {name: np.zeros(0, dtype) for name, dtype in TYPES.items()}
        return cls({name: np.concatenate([p[name] for p in parts or [empty]]) for name in TYPES}, k)

    @classmethod
    def open(cls, folder: Path, k: int) -> GroupStore:
        """The store that a `GroupWriter` left in this folder: what grows with the text is read where it is asked for,
        the few numbers of each group (about 100 bytes) are read now. Nothing is mapped: where a drive goes away, a read
        that fails is an error, a mapped page that is not there kills the process. Raises OSError."""
        files = {name: (folder / f"{name}.bin", dtype) for name, dtype in TYPES.items()}
        long = _LONG if hasattr(os, "pread") else ()  # Windows has no reading at a place
        return cls({name: (_Stretches if name in long else np.fromfile)(*file) for name, file in files.items()}, k)

    @property
    def folder(self) -> Path | None:
        """Where the tokens are read; None for a store in memory."""
        tokens = self._a["tokens"]
        return tokens.folder if isinstance(tokens, _Stretches) else None

    def __len__(self) -> int:
        return len(self._a["weight"] if self._rows is None else self._rows)

    def __iter__(self) -> Iterator[PromptGroup]:
        return (self[i] for i in range(len(self)))

    @overload
    def __getitem__(self, i: int) -> PromptGroup: ...
    @overload
    def __getitem__(self, i: slice) -> list[PromptGroup]: ...
    def __getitem__(self, i: int | slice) -> PromptGroup | list[PromptGroup]:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        i %= len(self)
        a, row = self._a, i if self._rows is None else int(self._rows[i])
        cuts = a["offsets"][row * (self.k + 1) : (row + 1) * (self.k + 1) + 1].tolist()
        whole = slice(cuts[0], cuts[-1])
        tokens, mask = a["tokens"][whole], a["mask"][whole]
        parts = [slice(s - cuts[0], e - cuts[0]) for s, e in pairwise(cuts)]
        return PromptGroup(
            prompt=tokens[parts[0]],
            completions=tuple(tokens[p] for p in parts[1:]),
            masks=tuple(mask[p] for p in parts[1:]),
            weight=float(a["weight"][row]),
            label=float(a["label"][row]),
            margin=float(a["margin"][row]),
            source=self.source(i),
        )

    @cached_property
    def lengths(self) -> np.ndarray:
        """int64 [n]: tokens that each group takes in a packed row."""
        lengths = np.diff(self._a["offsets"][:: self.k + 1])
        return lengths if self._rows is None else lengths[self._rows]

    @cached_property
    def prompt_keys(self) -> np.ndarray:
        """int64 [n]: a hash of each group's prompt; equal prompts have equal keys."""
        return self._column("prompt_key")

    @cached_property
    def answer_keys(self) -> np.ndarray:
        """int64 [n]: a hash of each group's answers, in any order; 0 where they are so short that many share them."""
        return self._column("answer_key")

    @cached_property
    def split_keys(self) -> np.ndarray:
        """int64 [n]: what examples are held out by: their prompts, or the whole of them where the prompt is a single
        token (a BOS, or the first token of a plain text), which says nothing."""
        sizes, digests = self._a["sizes"].reshape(-1, self.k + 1), self._a["digest"].reshape(-1, 2)
        at = slice(None) if self._rows is None else self._rows
        whole = np.ascontiguousarray(digests[at][:, 0]).view(np.int64)
        return np.where(sizes[at][:, 0] == 1, whole, self.prompt_keys)

    def source(self, i: int) -> str:
        """Where a group was read (``file:line``), without its tokens."""
        row = i if self._rows is None else int(self._rows[i])
        return self._a["source"][slice(*self._a["source_offsets"][row : row + 2].tolist())].tobytes().decode()

    def sizes(self, i: int) -> list[int]:
        """Tokens of a group's prompt and of each of its completions."""
        row = i if self._rows is None else int(self._rows[i])
        return self._a["sizes"][row * (self.k + 1) : (row + 1) * (self.k + 1)].tolist()

    def _column(self, name: str) -> np.ndarray:
        return self._a[name] if self._rows is None else self._a[name][self._rows]

    @property
    def labels(self) -> np.ndarray:
        """float64 [n]: the probability that completion 0 is the preferred one."""
        return self._column("label")

    def counts(self, members: np.ndarray) -> dict[str, float]:
        """What losses of these groups are divided by: the number of groups, the sum of their weights, and the number
        of scored tokens, each times its group's weight."""
        rows = members if self._rows is None else self._rows[members]
        weight, scored = self._a["weight"][rows], self._a["scored"][rows]
        return {"groups": float(len(members)), "weight": float(weight.sum()), "tokens": float(weight @ scored)}

    def select(self, indices: Sequence[int] | np.ndarray) -> GroupStore:
        """The groups at these positions, without a copy of their tokens."""
        at = np.asarray(indices, np.int64)
        return GroupStore(self._a, self.k, at if self._rows is None else self._rows[at])

    def fingerprint(self) -> str:
        """A hash of everything that log-probs depend on: token ids, which are scored, where completions are cut."""
        digests = self._a["digest"].reshape(-1, 2)
        digests = digests if self._rows is None else digests[self._rows]
        return hashlib.blake2b(np.ascontiguousarray(digests).data, digest_size=16).hexdigest()


class GroupWriter:
    """Writes groups of k completions each into files of a folder that holds none yet, for `GroupStore.open`.

    Never more than a chunk of them is in memory. The store is whole once the ``with`` block has ended.
    """

    def __init__(self, folder: Path, k: int):
        self._files = {name: (folder / f"{name}.bin").open("xb") for name in TYPES}
        self._k, self._chunk, self._written = k, list[PromptGroup](), 0

    def __len__(self) -> int:
        return self._written + len(self._chunk)

    def add(self, group: PromptGroup) -> None:
        """Append a group. Raises ValueError at one that has not k completions, or an empty part."""
        _check(group, self._k)
        self._chunk.append(group)
        if len(self._chunk) == _CHUNK:
            self._flush()

    def _flush(self) -> None:
        for name, column in _columns(self._chunk, self._k).items():
            self._files[name].write(column.tobytes())
        self._written += len(self._chunk)
        self._chunk = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        try:
            if error is None and self._chunk:
                self._flush()
        finally:
            for file in self._files.values():
                file.close()


def _offsets(sizes: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])


def _check(group: PromptGroup, k: int) -> None:
    if len(group.completions) != k:
        raise ValueError(f"{group.source or 'a group'} has {len(group.completions)} completions, expected {k}")
    if not len(group.prompt) or not all(len(c) for c in group.completions):
        raise ValueError(f"{group.source or 'a group'} has an empty prompt or completion")


def _columns(chunk: Sequence[PromptGroup], k: int) -> dict[str, np.ndarray]:
    """The arrays of these groups."""
    tokens = np.concatenate([part for g in chunk for part in (g.prompt, *g.completions)], dtype=np.int32)
    sizes = np.asarray([(len(g.prompt), *map(len, g.completions)) for g in chunk], np.int32)
    mask = np.zeros(len(tokens), bool)
    answered = np.repeat(np.tile([False] + [True] * k, len(chunk)), sizes.ravel())
    mask[answered] = np.concatenate([m for g in chunk for m in g.masks])
    starts = _offsets(sizes.sum(1))
    keys, digests = _hashes(tokens, mask, sizes, starts.tolist())
    answers = [_answer_key(g.completions) for g in chunk]
    sources = [g.source.encode() for g in chunk]
    columns = {
        "tokens": tokens,
        "mask": mask,
        "sizes": sizes.ravel(),
        "prompt_key": np.frombuffer(keys, np.int64),
        "answer_key": answers,
        "digest": np.frombuffer(digests, np.uint64),
        "scored": np.add.reduceat(mask, starts[:-1], dtype=np.int32),
        "weight": [g.weight for g in chunk],
        "label": [g.label for g in chunk],
        "margin": [g.margin for g in chunk],
        "source": np.frombuffer(b"".join(sources), np.uint8),
        "source_size": [len(s) for s in sources],
    }
    return {name: np.asarray(column, TYPES[name]) for name, column in columns.items()}


SHORT = 8
"""Tokens of all answers together, below which they do not tell one example from another."""


def _answer_key(completions: Sequence[np.ndarray]) -> int:
    """A hash of answers, whichever comes first."""
    if sum(map(len, completions)) < SHORT:
        return 0
    parts = sorted(hashlib.blake2b(np.ascontiguousarray(c, np.int32).data, digest_size=8).digest() for c in completions)
    return int.from_bytes(hashlib.blake2b(b"".join(parts), digest_size=8).digest(), "little", signed=True)


def _hashes(tokens: np.ndarray, mask: np.ndarray, sizes: np.ndarray, starts: list[int]) -> tuple[bytes, bytes]:
    """For each group a hash of its prompt (8 bytes), and one of its sizes, tokens and answers' masks (16 bytes)."""
    keys, digests = list[bytes](), list[bytes]()
    ids, scored = tokens.data, mask.astype(np.int32).data
    for (start, end), cuts, prompt in zip(pairwise(starts), sizes, sizes[:, 0].tolist(), strict=True):
        keys.append(hashlib.blake2b(ids[start : start + prompt], digest_size=8).digest())
        digest = hashlib.blake2b(cuts.data, digest_size=16)
        digest.update(ids[start:end])
        digest.update(scored[start + prompt : end])
        digests.append(digest.digest())
    return b"".join(keys), b"".join(digests)
