"""The one pass without gradients: groups are cut into micro-batches that fit into memory, packed, and run.

Validation, the reference's log-probs, a reward model's scores, KTO's baseline and what the roles say of a rollout are
all this pass; they differ in what they ask of the trunk.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from prefiere.kernels.memory import OutOfMemory, out_of_memory
from prefiere.models.shard.spread import sharded
from prefiere.models.trunk import Trunk
from prefiere.tokens.groups import GroupStore, PromptGroup
from prefiere.tokens.pack import PackedBatch, pack
from prefiere.tokens.schedule import longest_first

T = TypeVar("T")
Out = TypeVar("Out")
Name = TypeVar("Name", bound=Hashable)
Cut = Callable[[np.ndarray, np.ndarray, int], Sequence[tuple[int, ...]]]
"""From groups' indices, the lengths of all groups, and a budget, both in tokens, to the indices of each micro-batch."""


@dataclass
class Budget:
    """How many ``tokens`` a micro-batch holds at most. With ``adapt`` it is halved whenever memory runs out, and
    ``notice`` is told."""

    tokens: int
    adapt: bool = True
    notice: Callable[[str], None] = lambda text: None

    def fitting(self, work: Callable[[], T], longest: int, undo: Callable[[], None] = lambda: None) -> T:
        """Do ``work``, which cuts by ``tokens``, again with half of them whenever memory runs out.

        longest: tokens of the longest group, below which cutting cannot help. undo: lets go of what an attempt has
        left behind. Raises OutOfMemory.
        """
        while True:
            try:
                return work()
            except (RuntimeError, MemoryError) as e:
                if not out_of_memory(e):
                    raise
                undo()
                self._halve(longest, e)

    def _halve(self, longest: int, error: BaseException) -> None:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if not self.adapt:
            raise OutOfMemory(
                f"out of memory with tokens_per_microbatch={self.tokens}: set a smaller one (the result stays the same)"
            ) from error
        if self.tokens <= longest // 2:
            raise OutOfMemory(
                f"out of memory on a single example of {longest} tokens: set a smaller max_length, "
                "gradient_checkpointing=true, or lora=true"
            ) from error
        self.tokens //= 2
        self.notice(f"out of memory: going on with tokens_per_microbatch={self.tokens}")


class Found(NamedTuple, Generic[Name]):
    """What one micro-batch gave: the indices of its groups, and its arrays by name, in fp32 at least."""

    groups: tuple[int, ...]
    arrays: dict[Name, np.ndarray]


def autocast(device: torch.device, compute: torch.dtype | None, *, cached: bool = True) -> AbstractContextManager[Any]:
    """The precision of a forward: ``compute`` where it is a half, the weights' own for None and fp32.

    cached: weights in that precision are kept for the whole forward, which sharded ones must not be.
    """
    half = compute is not None and compute != torch.float32
    return torch.autocast(device.type, compute, cache_enabled=cached) if half else nullcontext()


@torch.no_grad()
def measure(
    trunk: Trunk,
    groups: Sequence[PromptGroup],
    forward: Callable[[PackedBatch], Out],
    work: Callable[[Out, PackedBatch], Mapping[Name, Tensor]],
    *,
    budget: Budget,
    compute: torch.dtype | None,
    members: np.ndarray | None = None,
    cut: Cut = longest_first,
    progress: Callable[[int], None] = lambda n: None,
) -> list[Found[Name]]:
    """What ``work`` makes of each micro-batch of these groups (``members``: indices; default all), without gradients.

    forward: runs the trunk, in ``compute`` (see `autocast`) and in evaluation mode. work: reads what it gave, in full
    precision. Micro-batches come in the order of ``cut``; ``batch.index_G`` says which groups they hold. progress: is
    told how many groups are done. Raises OutOfMemory.
    """
    lengths = groups.lengths if isinstance(groups, GroupStore) else np.asarray([g.length for g in groups])
    chosen = np.arange(len(groups)) if members is None else members

    def once() -> list[Found[Name]]:
        found: list[Found[Name]] = []
        for part in cut(chosen, lengths, budget.tokens):
            if not part:  # a filler, which keeps processes in step: it has nothing to tell
                if sharded(trunk):
                    with autocast(trunk.device, compute, cached=False):
                        forward(pack([groups[chosen[0]]], chosen[:1].tolist()).to(trunk.device))
                continue
            batch = pack([groups[i] for i in part], part).to(trunk.device)
            with autocast(trunk.device, compute, cached=not sharded(trunk)):
                out = forward(batch)
            found.append(Found(part, {name: _on_host(x) for name, x in work(out, batch).items()}))
            progress(len(part))
        return found

    was_training = trunk.training
    trunk.eval()
    try:
        return budget.fitting(once, int(lengths[chosen].max(initial=0)))
    finally:
        trunk.train(was_training)


def _on_host(x: Tensor) -> np.ndarray:
    array: np.ndarray = x.to(torch.promote_types(x.dtype, torch.float32)).cpu().numpy()
    return array
