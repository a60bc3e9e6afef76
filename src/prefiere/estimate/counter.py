"""Memory of a computation that never happens: every operation runs on tensors without contents, and is booked.

Under torch's FakeTensorMode shapes are computed and nothing else. The ledger notes each storage when an operation
makes it and strikes it out when the last tensor on it is gone, as an allocator would; its highest balance is the peak.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.flop_counter import flop_registry


class CostCounter(TorchDispatchMode):
    """Bytes alive ``now`` and at most (``peak``); matrix products (their floating-point operations, bytes read and
    written); bytes read and written by all else (``traffic``); how many operations there were (``calls``)."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()
        self.clear()

    def clear(self) -> None:
        """Forget the work so far, not the memory."""
        self.products: list[tuple[int, int]] = []
        self.traffic = self.calls = 0

    @property
    def flops(self) -> int:
        """Floating-point operations of all products."""
        return sum(flops for flops, _ in self.products)

    def seconds(self, flops: float, bandwidth: float, call: float) -> float:
        """How long the work takes at so many operations and bytes a second: a product waits for the slower of its
        two; each operation costs ``call`` seconds to be started."""
        slow = sum(max(f / flops, b / bandwidth) for f, b in self.products)
        return slow + self.traffic / bandwidth + self.calls * call

    def book(self, tensor: torch.Tensor) -> None:
        """Note the storage of a tensor that exists, until it is gone."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes()
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._strike, key, size)

    def _strike(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        for leaf in tree_flatten(out)[0]:
            if isinstance(leaf, torch.Tensor):
                self.book(leaf)
        if func.is_view or "empty" in str(func):  # nothing is moved
            return out
        self.calls += 1
        moved = sum(t.nbytes for t in tree_flatten((args, kwargs, out))[0] if isinstance(t, torch.Tensor))
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.products.append((int(count(*args, **kwargs, out_val=out)), moved))
        else:
            self.traffic += moved
        return out
