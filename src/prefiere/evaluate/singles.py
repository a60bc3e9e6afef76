"""What single examples show along a run, by source line: rows of pairs.jsonl.

An update knows the margin of each of its pairs before it learns from them. In the first epoch nothing was learnt from
a pair before that, so its margin is evidence as of held-out data, for free. A run keeps so many rows and no more:
of many examples a part that depends on their place alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from prefiere.tokens.groups import GroupStore

MOST_TRAIN, MOST_HELD = 8_000, 2_000
"""Rows of a whole run, at most about: of training examples, and of held-out ones."""
_ODD = 2_654_435_761  # Knuth's multiplier: spreads neighbours, so that a part of sorted data is no part of one kind


def some(index: np.ndarray, visits: int, most: int = MOST_TRAIN) -> np.ndarray:
    """Which of these examples [n] (places in their store) a run keeps rows of, as a mask [n], where it visits so many
    altogether: all, or every second, third, ... of a fixed mixed order."""
    every = max(1, -(-visits // most))
    mixed = index.astype(np.uint64) * np.uint64(_ODD) % np.uint64(2**32)
    mask: np.ndarray = (mixed >> np.uint64(16)) % np.uint64(every) == 0  # an odd factor leaves the low bits in order
    return mask


def rows(
    store: GroupStore, index: np.ndarray, columns: Mapping[str, np.ndarray], *, step: int, split: str
) -> list[dict[str, Any]]:
    """A row for each example (``index`` [n]) with its columns [n]; ``tokens`` are those of its answers. A pair's
    ``label`` is how likely its first answer is the better one, where that is not 1."""
    labels = store.labels[index] if store.k == 2 else np.ones(len(index))
    return [
        {
            "step": step,
            "split": split,
            "source": store.source(int(i)),
            **{name: round(float(values[at]), 4) for name, values in columns.items()},
            **({"label": round(float(labels[at]), 4)} if labels[at] != 1 else {}),
            "tokens": store.sizes(int(i))[1:],
        }
        for at, i in enumerate(index)
    ]


def kept(found: list[dict[str, Any]], at: tuple[int, int, int] | None) -> list[dict[str, Any]]:
    """The rows that are written: those of training, and those of the validation ``at`` (step, steps between two, all
    steps) where it is the last one or one of as many as there is room for; None: of no validation."""
    training = [row for row in found if row["split"] != "eval"]
    if at is None:
        return training
    step, between, total = at
    every = -(-max(1, total // between) * (len(found) - len(training)) // MOST_HELD) or 1
    return found if step == total or step // between % every == 0 else training
