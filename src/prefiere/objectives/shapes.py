"""What every objective asks of its arguments first: their shapes.

PyTorch broadcasts in silence: a [G, 1] tensor beside a [G] one makes a [G, G] loss, which sums to a number G times too
large and couples examples that have nothing to do with each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor


def same_shape(*, rank: int | None = None, **given: Tensor | None) -> None:
    """Raise ValueError, with names and shapes, unless all tensors have one shape, of ``rank`` dimensions where stated.

    What is None was left out, and is not asked.
    """
    shapes = {x.shape for x in given.values() if x is not None}
    if len(shapes) > 1 or any(rank not in (None, len(shape)) for shape in shapes):
        raise ValueError(f"{_told(given)}: must have the same shape" + (f", of rank {rank}" if rank else ""))


def of_shape(shape: Sequence[int], **given: Tensor | float) -> None:
    """Raise ValueError, with names and shapes, unless every tensor has this shape. A plain number has the shape []."""
    if any((tuple(x.shape) if isinstance(x, Tensor) else ()) != tuple(shape) for x in given.values()):
        raise ValueError(f"{_told(given)}: must have the shape {list(shape)}")


def _told(given: Mapping[str, Tensor | float | None]) -> str:
    return ", ".join(f"{name} {list(x.shape)}" for name, x in given.items() if isinstance(x, Tensor))
