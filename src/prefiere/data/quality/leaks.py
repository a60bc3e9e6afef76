"""What must not stand on both sides of a split: not a prompt, nor the same answers under another phrasing of it.

A pair that is met again with its question reworded tests memory, not what was learnt: held-out data then says "good"
of a model that knows its pairs by heart.
"""

from __future__ import annotations

import numpy as np

FEW, COMMON, MANY = 20, 0.05, 512
"""Answers that more examples have than this share of them, and than `FEW`, are no sign of the same example ("yes" and
"no"). So many examples, and never more than `MANY` or half of all, are held out by one another at most: a split takes
them whole."""


def together(prompts: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """What examples are held out by: int64 [n], equal where examples belong on the same side.

    prompts, answers: int64 keys [n] of each example's prompt and of its answers in any order; 0 is no key. Examples of
    one prompt, or of the same answers, belong together, and so do those that are linked through others. Where that
    would tie more of them together than a split may take at once, their prompts alone decide.
    """
    own, shared = np.unique(prompts, return_inverse=True), _telling(answers)
    pairs = np.unique(np.stack([own[1], shared], 1)[shared >= 0], axis=0)
    if len(pairs) == len(np.unique(pairs[:, 1])):  # no answers have two prompts
        return prompts
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    size = len(own[0]) + int(shared.max()) + 1
    edges = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1] + len(own[0]))), (size, size))
    part = connected_components(edges, directed=False)[1][own[1]]
    _, part, count = np.unique(part, return_inverse=True, return_counts=True)
    order = np.lexsort((prompts, part))
    first = order[np.unique(part[order], return_index=True)[1]]  # the smallest key of a part stands for it
    small = count[part] <= min(max(FEW, min(COMMON * len(prompts), MANY)), len(prompts) / 2)
    held_by: np.ndarray = np.where(small, prompts[first][part], prompts)
    return held_by


def known_answers(train: np.ndarray, held: np.ndarray) -> np.ndarray:
    """Which held-out examples have the answers of a training example: bool [n of held]. Keys of answers: int64 [n]."""
    telling = _telling(np.concatenate([train, held]))
    seen, mine = telling[: len(train)], telling[len(train) :]
    found: np.ndarray = np.isin(mine, seen[seen >= 0])
    return found


def _telling(answers: np.ndarray) -> np.ndarray:
    """Numbers from 0 of answers that say which example it is: int64 [n], -1 where they do not."""
    _, number, count = np.unique(answers, return_inverse=True, return_counts=True)
    few = count[number] <= max(FEW, COMMON * len(answers))
    out: np.ndarray = np.where(few & (answers != 0), number, -1)
    return out
