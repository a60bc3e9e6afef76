"""Gradients of a sharded trunk, where not every process reaches every parameter.

torch sums the gradients of a layer in one message. A process of whose tokens none chose an expert has no gradient of
it, so that its message would be shorter than that of the others: it adds zeros instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from prefiere.models.shard.spread import in_parts, parts_of


class ReachedGradients:
    """Keeps account of which parameters of a sharded trunk the backwards of an update reach in any process.

    All processes make it together. Without torch's ``set_reduce_scatter_unused_params`` (before 2.13) no zeros are
    added.
    """

    def __init__(self, trunk: nn.Module):
        self._held = {n: p for n, p in trunk.named_parameters() if p.requires_grad}
        self._reached, self._used = set[str](), set[FSDPModule]()
        for part in parts_of(trunk):
            part.unshard()
            for name, p in trunk.named_parameters():
                if p.requires_grad and not in_parts(p):
                    p.register_post_accumulate_grad_hook(partial(self._complete, name, part))
            part.reshard()

    def _complete(self, name: str, part: FSDPModule, gradient_of: Tensor) -> None:
        self._reached.add(name)
        if part not in self._used:
            self._used.add(part)
            _add_zeros(part, True)

    @contextmanager
    def during_backward(self, *, last: bool) -> Iterator[None]:
        """While entered, in a backward, the layers that it reaches send a gradient of each of their parameters."""
        yield
        for part in self._used:
            _add_zeros(part, False)
        self._used.clear()

    def finish(self) -> None:
        """Leave a parameter that no process reached without a gradient, as in a run of one process."""
        reached = [n in self._reached for n in self._held]
        counts = torch.tensor(reached, dtype=torch.int32, device=next(iter(self._held.values())).device)
        dist.all_reduce(counts)
        for p, count in zip(self._held.values(), counts.tolist(), strict=True):
            if not count:
                p.grad = None
        self._reached.clear()


def _add_zeros(part: FSDPModule, on: bool) -> None:
    if hasattr(part, "set_reduce_scatter_unused_params"):
        part.set_reduce_scatter_unused_params(on, recurse=False)
