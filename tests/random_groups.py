"""Random groups of prompts and completions for tests of batches, models and engines."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from prefiere.tokens.groups import GroupStore, GroupWriter, PromptGroup


def group(
    rng: np.random.Generator,
    k: int,
    vocab: int,
    prompt: int,
    completion: int,
    *,
    partly: bool = False,
    source: str = "",
) -> PromptGroup:
    """One group of up to these lengths, at least 1 each; ``partly`` masks some completion tokens out."""
    completions = tuple(rng.integers(6, vocab, rng.integers(1, completion + 1)).astype(np.int32) for _ in range(k))
    masks = tuple(np.ones(len(c), bool) for c in completions)
    if partly:
        masks = tuple(np.append(rng.random(len(c) - 1) < 0.6, True) for c in completions)
    return PromptGroup(
        rng.integers(6, vocab, rng.integers(1, prompt + 1)).astype(np.int32),
        completions,
        masks,
        weight=float(rng.uniform(0.5, 2)),
        label=1.0,
        source=source,
    )


def store(
    n: int, k: int, *, vocab: int = 400, prompt: int = 20, completion: int = 15, seed: int = 0, partly: bool = False
) -> GroupStore:
    """n random groups."""
    rng = np.random.default_rng(seed)
    return GroupStore.build(
        (group(rng, k, vocab, prompt, completion, partly=partly, source=f"random:{i}") for i in range(n)), k
    )


def written(groups: Iterable[PromptGroup], k: int, folder: Path) -> GroupStore:
    """These groups as a store on disk."""
    with GroupWriter(folder, k) as writer:
        for one in groups:
            writer.add(one)
    return GroupStore.open(folder, k)
