"""Gradients summed over processes while the backward still runs.

A gradient that is complete goes out in a message with others of its kind, and the backward goes on meanwhile. All
processes send the same messages in the same order, so a message waits for those before it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

BUCKET_BYTES = 32 * 2**20
"""Bytes of a message, about."""

UNDER_WAY = 8
"""Messages under way at once: each holds a copy of its gradients."""


class GradientSums:
    """The sums over all processes of the gradients of these parameters, in buckets of one message each.

    A process may lack the gradient of a parameter that others have, as of an expert that none of its tokens chose: it
    adds zeros. A parameter that no process has a gradient of is left without one, as in a run of one process.
    """

    def __init__(self, parameters: Sequence[Tensor]):
        self._parameters = list(reversed(parameters))  # a backward comes to the last ones first
        self._late = set[int]()  # places of those that the last pass of an update did not reach in every process
        self._pass: _Pass | None = None
        for place, p in enumerate(self._parameters):
            p.register_post_accumulate_grad_hook(lambda _, place=place: self._complete(place))

    @contextmanager
    def during_backward(self, *, last: bool) -> Iterator[None]:
        """While entered, in the last backward of an update, gradients go out as they become complete."""
        if last:
            early = [n for n in range(len(self._parameters)) if n not in self._late]
            self._pass = _Pass(self._parameters, early)
        yield

    def _complete(self, place: int) -> None:
        if self._pass is not None:
            self._pass.complete(place)

    def finish(self) -> None:
        """Send what has not gone out, and wait until each gradient is the sum over all processes."""
        done = self._pass or _Pass(self._parameters, [])
        self._pass = None
        self._late = done.finish()


class _Pass:
    """The messages of one update. early: places of the parameters that its last backward is to reach, in this order.

    What goes out, and in which order, depends on nothing that only one process knows.
    """

    def __init__(self, parameters: Sequence[Tensor], early: Sequence[int]):
        self._parameters = parameters
        self._reached = set[int]()
        self._sent = set[int]()
        self._buckets = deque(_buckets([(n, parameters[n]) for n in early]))
        self._works = deque[tuple[dist.Work, Tensor, list[Tensor]]]()

    def complete(self, place: int) -> None:
        """The gradient at this place is complete."""
        self._reached.add(place)
        while self._buckets and self._reached.issuperset(self._buckets[0]):
            self._send(self._buckets.popleft())

    def _send(self, places: Sequence[int]) -> None:
        self._sent.update(places)
        while len(self._works) >= UNDER_WAY:
            self._receive()
        gradients = [self._gradient(n) for n in places]
        flat = torch._utils._flatten_dense_tensors(gradients)
        work = dist.all_reduce(flat, async_op=True)
        self._works.append((work, flat, gradients))

    def _gradient(self, place: int) -> Tensor:
        """The gradient at this place; zeros where this process has none."""
        p = self._parameters[place]
        if p.grad is None:
            p.grad = torch.zeros_like(p)
        return p.grad

    def _receive(self) -> None:
        work, flat, gradients = self._works.popleft()
        work.wait()
        for gradient, whole in zip(gradients, torch._utils._unflatten_dense_tensors(flat, gradients), strict=True):
            gradient.copy_(whole)

    def finish(self) -> set[int]:
        """Send the rest, and wait. Returns the places that the last backward did not reach in every process."""
        had = [p.grad is not None for p in self._parameters]
        reached = [n in self._reached for n in range(len(had))]
        for bucket in self._buckets:
            self._send(bucket)
        counts = torch.tensor([had, reached], dtype=torch.int32, device=self._parameters[0].device)
        dist.all_reduce(counts)
        have, reach = counts.tolist()
        for bucket in _buckets([(n, p) for n, p in enumerate(self._parameters) if have[n] and n not in self._sent]):
            self._send(bucket)
        while self._works:
            self._receive()
        for n, p in enumerate(self._parameters):
            if not have[n]:
                p.grad = None
        return {n for n, processes in enumerate(reach) if processes < dist.get_world_size()}


def _buckets(named: Sequence[tuple[int, Tensor]]) -> Iterator[list[int]]:
    """Runs of tensors of one dtype, of about `BUCKET_BYTES` each, by their names."""
    bucket, size, dtype = list[int](), 0, None
    for name, tensor in named:
        if bucket and (dtype != tensor.dtype or size + tensor.nbytes > BUCKET_BYTES):
            yield bucket
            bucket, size = [], 0
        bucket.append(name)
        size, dtype = size + tensor.nbytes, tensor.dtype
    if bucket:
        yield bucket
