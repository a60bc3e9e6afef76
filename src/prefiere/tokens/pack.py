"""PromptGroups packed into one row of tokens: the one batch layout that every algorithm uses.

A group lies in the row as prompt, completion 1, ..., completion k. Positions restart after the prompt for each
completion, and attention runs over segments: prompt + completion 1 is plain causal; completion i > 1 has the prompt
and itself as keys. So the prompt is computed once, nothing is padded, and the LM head is needed at targets only.

Suffixes: _T packed tokens, _N targets (scored completion tokens), _C completions, _G groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from prefiere.tokens.groups import PromptGroup


class Segment(NamedTuple):
    """Queries [start, stop) of the row; keys are [prefix_start, prefix_stop) followed by the queries themselves."""

    start: int
    stop: int
    prefix_start: int
    prefix_stop: int


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """Several groups of k completions in one row.

    tokens_T, positions_T: int64. predictor_N: the row index whose hidden state predicts target n (the last prompt
    token for a completion's first token). target_N: token ids. owner_N: the completion each target belongs to.
    last_C: row index of each completion's last token. scored_C: targets per completion. weight_G, label_G, margin_G:
    float32. index_G: where the groups stand in the data set. Completions are in group order: c = g * k + i. reads: for
    each segment the run of its rows, first to one past the last, that holds its predictors; empty where it has none.
    """

    tokens_T: Tensor
    positions_T: Tensor
    predictor_N: Tensor
    target_N: Tensor
    owner_N: Tensor
    last_C: Tensor
    scored_C: Tensor
    weight_G: Tensor
    label_G: Tensor
    margin_G: Tensor
    index_G: Tensor
    segments: tuple[Segment, ...]
    k: int
    reads: tuple[tuple[int, int], ...] = ()

    @property
    def completions(self) -> int:
        return self.last_C.shape[0]

    def to(self, device: torch.device | str) -> Self:
        """The same batch with its tensors on ``device``, but for index_G, which looks things up on the host."""
        moved = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "index_G"}
        moved = {n: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for n, v in moved.items()}
        return type(self)(**moved, index_G=self.index_G)


def pack(groups: Sequence[PromptGroup], indices: Sequence[int] | None = None) -> PackedBatch:
    """Lay groups (all with the same k, at least one) out in one row; ``indices`` are their places in the data set."""
    k = len(groups[0].completions)
    tokens: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    predictors: list[np.ndarray] = []
    targets: list[np.ndarray] = []
    owners: list[np.ndarray] = []
    last: list[int] = []
    scored: list[int] = []
    segments: list[Segment] = []
    reads: list[tuple[int, int]] = []
    here = 0
    for group in groups:
        if len(group.completions) != k:
            raise ValueError(f"groups of {k} and of {len(group.completions)} completions cannot share a batch")
        prompt_start, prompt_stop = here, here + len(group.prompt)
        tokens.append(group.prompt)
        positions.append(np.arange(len(group.prompt)))
        here = prompt_stop
        for i, (completion, mask) in enumerate(zip(group.completions, group.masks, strict=True)):
            size = len(completion)
            rows = np.arange(here - 1, here + size - 1)
            rows[0] = prompt_stop - 1
            predictors.append(rows[mask])
            targets.append(completion[mask])
            scored.append(int(mask.sum()))
            owners.append(np.full(scored[-1], len(last)))
            tokens.append(completion)
            positions.append(np.arange(len(group.prompt), len(group.prompt) + size))
            if i == 0:
                segments.append(Segment(prompt_start, here + size, prompt_start, prompt_start))
            else:
                segments.append(Segment(here, here + size, prompt_start, prompt_stop))
            here += size
            last.append(here - 1)
        found = np.concatenate(predictors[-k:])
        for s in segments[-k:]:
            inside = found[(found >= s.start) & (found < s.stop)]
            reads.append((int(inside.min()), int(inside.max()) + 1) if len(inside) else (s.start, s.start))

    def row(parts: list[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.concatenate(parts).astype(np.int64))

    return PackedBatch(
        tokens_T=row(tokens),
        positions_T=row(positions),
        predictor_N=row(predictors),
        target_N=row(targets),
        owner_N=row(owners),
        last_C=torch.tensor(last),
        scored_C=torch.tensor(scored),
        weight_G=torch.tensor([g.weight for g in groups], dtype=torch.float32),
        label_G=torch.tensor([g.label for g in groups], dtype=torch.float32),
        margin_G=torch.tensor([g.margin for g in groups], dtype=torch.float32),
        index_G=torch.tensor(list(indices) if indices is not None else list(range(len(groups)))),
        segments=tuple(segments),
        k=k,
        reads=tuple(reads),
    )


class PaddedRows(NamedTuple):
    """The same completions as right-padded rows, one for each: what a plain forward takes.

    ids_CL, mask_CL: int64 [C, L]. row_N, column_N: where target n's predictor stands.
    """

    ids_CL: Tensor
    mask_CL: Tensor
    row_N: Tensor
    column_N: Tensor


def unpack(batch: PackedBatch, pad_id: int = 0) -> PaddedRows:
    """Spread a packed row into padded rows of prompt + completion (the prompt is repeated for each completion)."""
    rows = [
        torch.cat([torch.arange(s.prefix_start, s.prefix_stop), torch.arange(s.start, s.stop)]) for s in batch.segments
    ]
    device = batch.tokens_T.device
    where = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1).to(device)
    mask = (where >= 0).long()
    ids = torch.where(where >= 0, batch.tokens_T[where.clamp(min=0)], torch.full_like(where, pad_id))
    # A predictor's column is its position, as every row starts at position 0 and is padded on the right.
    return PaddedRows(ids, mask, batch.owner_N, batch.positions_T[batch.predictor_N])
