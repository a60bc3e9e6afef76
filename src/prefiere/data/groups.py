"""Token ids of prompts and their completions, in flat arrays that a million examples fit in.

Every algorithm sees its data as `PromptGroup`s: one prompt with k completions (SFT and KTO k=1, pairs k=2 with the
chosen one first, samples k=n). `GroupStore` holds many of them as a few flat arrays.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import overload

import numpy as np


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


class GroupStore(Sequence[PromptGroup]):
    """An immutable sequence of `PromptGroup`s in flat arrays; ``k`` completions each."""

    def __init__(self, arrays: dict[str, np.ndarray], k: int):
        self._a, self.k = arrays, k

    @classmethod
    def build(cls, groups: Iterable[PromptGroup], k: int) -> GroupStore:
        """Pack groups of k completions each; raises ValueError at one that has another number."""
        tokens: list[np.ndarray] = []
        masks: list[np.ndarray] = []
        sizes: list[int] = []
        scalars: list[tuple[float, float, float]] = []
        keys: list[int] = []
        sources: list[bytes] = []
        for g in groups:
            if len(g.completions) != k:
                raise ValueError(f"{g.source or 'a group'} has {len(g.completions)} completions, expected {k}")
            if not len(g.prompt) or not all(len(c) for c in g.completions):
                raise ValueError(f"{g.source or 'a group'} has an empty prompt or completion")
            tokens += [g.prompt, *g.completions]
            masks += [np.zeros(len(g.prompt), bool), *g.masks]
            sizes += [len(g.prompt), *(len(c) for c in g.completions)]
            scalars.append((g.weight, g.label, g.margin))
            digest = hashlib.blake2b(np.ascontiguousarray(g.prompt, np.int32).tobytes(), digest_size=8).digest()
            keys.append(int.from_bytes(digest, "little", signed=True))
            sources.append(g.source.encode())
        table = np.asarray(scalars, np.float64).reshape(-1, 3)
        arrays = {
            "tokens": np.concatenate(tokens).astype(np.int32) if tokens else np.zeros(0, np.int32),
            "mask": np.concatenate(masks) if masks else np.zeros(0, bool),
            "offsets": np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
            "prompt_key": np.asarray(keys, np.int64),
            "weight": table[:, 0].copy(),
            "label": table[:, 1].copy(),
            "margin": table[:, 2].copy(),
            "source": np.frombuffer(b"".join(sources), np.uint8),
            "source_offsets": np.concatenate([[0], np.cumsum([len(s) for s in sources])]).astype(np.int64),
        }
        return cls(arrays, k)

    def __len__(self) -> int:
        return len(self._a["weight"])

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
        a, i = self._a, i % len(self)
        cuts = a["offsets"][i * (self.k + 1) : (i + 1) * (self.k + 1) + 1].tolist()
        parts = [slice(s, e) for s, e in pairwise(cuts)]
        return PromptGroup(
            prompt=a["tokens"][parts[0]],
            completions=tuple(a["tokens"][p] for p in parts[1:]),
            masks=tuple(a["mask"][p] for p in parts[1:]),
            weight=float(a["weight"][i]),
            label=float(a["label"][i]),
            margin=float(a["margin"][i]),
            source=bytes(a["source"][a["source_offsets"][i] : a["source_offsets"][i + 1]]).decode(),
        )

    @property
    def lengths(self) -> np.ndarray:
        """int64 [n]: tokens that each group takes in a packed row."""
        ends = self._a["offsets"][:: self.k + 1]
        return np.diff(ends)

    @property
    def prompt_keys(self) -> np.ndarray:
        """int64 [n]: a hash of each group's prompt; equal prompts have equal keys."""
        return self._a["prompt_key"]

    def counts(self, members: np.ndarray) -> dict[str, float]:
        """What losses of these groups are divided by: the number of groups, the sum of their weights, and the number
        of scored tokens, each times its group's weight."""
        weight = self._a["weight"][members]
        scored = np.asarray([sum(int(m.sum()) for m in self[int(i)].masks) for i in members])
        return {"groups": float(len(members)), "weight": float(weight.sum()), "tokens": float(weight @ scored)}

    def select(self, indices: Sequence[int] | np.ndarray) -> GroupStore:
        """The groups at these positions, as a store of its own."""
        return GroupStore.build((self[int(i)] for i in indices), self.k)

    def fingerprint(self) -> str:
        """A hash of everything that log-probs depend on: token ids and where prompts and completions are cut."""
        h = hashlib.blake2b(digest_size=16)
        for name in ("tokens", "offsets"):
            h.update(np.ascontiguousarray(self._a[name]).data)
        return h.hexdigest()
