"""Memory that runs out, wherever it does, as one line that says what to set."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_SAID = ("can't allocate memory", "out of memory", "could not create a primitive", "could not create a memory object")


class OutOfMemory(ValueError):
    """Memory ran out, and smaller micro-batches are of no help or not allowed; the message names the remedy."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on a GPU or a CPU."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in _SAID)
    )


@contextmanager
def within_memory(doing: str, remedy: str) -> Iterator[None]:
    """Raise OutOfMemory, saying what was done and what to set, where memory runs out inside."""
    try:
        yield
    except (RuntimeError, MemoryError) as e:
        if not out_of_memory(e):
            raise
        raise OutOfMemory(f"out of memory while {doing}: {remedy}") from e
