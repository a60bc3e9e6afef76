"""What single examples show along a run, by source line: rows of pairs.jsonl.

An update knows the margin of each of its pairs before it learns from them. In the first epoch nothing was learnt from
a pair before that, so its margin is evidence as of held-out data, for free. A run keeps so many rows and no more:
of many examples a part that depends on their place alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from prefiere.tokens.groups import GroupStore

MOST_TRAIN, MOST_HELD = 8_000, 2_000
"""Rows of a whole run, at most about: of training examples, and of held-out ones (those of the last validation come on
top, so many at most)."""
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
            **{name: _short(values[at]) for name, values in columns.items()},
            **({"label": _short(labels[at])} if labels[at] != 1 else {}),
            "tokens": store.sizes(int(i))[1:],
        }
        for at, i in enumerate(index)
    ]


def _short(value: float) -> float:
    """Five significant digits: margins of a small beta or rate are small, and no zeros."""
    return float(f"{float(value):.5g}")


@dataclass
class KeptRows:
    """Which rows of a run are written, and when: those of training at once, those of a validation where there is room
    for it, and of the last one however the run ends.

    between: steps between two validations, of ``total`` steps. waiting: rows of the newest validation, not written yet.
    """

    between: int
    total: int
    waiting: list[dict[str, Any]] = field(default_factory=list)

    def due(self, found: list[dict[str, Any]], step: int | None, *, last: bool = False) -> list[dict[str, Any]]:
        """Those to write now. step: at which the validation was whose rows are among them, if there was one; last: no
        other one comes, so that what waits is written."""
        written = [row for row in found if row["split"] != "eval"]
        if step is not None:
            held = [row for row in found if row["split"] == "eval"]
            every = -(-max(1, self.total // self.between) * len(held) // MOST_HELD) or 1
            now = step == self.total or step // self.between % every == 0
            written, self.waiting = (found, []) if now else (written, held)
        if last:
            written, self.waiting = written + self.waiting, []
        return written
