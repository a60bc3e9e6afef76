"""Tensors of a sharded run on disk: each process writes its parts, and any number of processes reads what it needs.

The files are safetensors with the place of each part in their headers. torch's own format keeps these places in a
pickle, which can run code.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributed import checkpoint
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException


def tensor_names(folder: Path) -> set[str]:
    """The names of all tensors of a folder's files. Raises ValueError for a file that is no safetensors."""
    found = set[str]()
    for path in folder.glob("*.safetensors"):
        try:
            with safe_open(path, framework="pt") as file:
                found |= set(file.keys())
        except SafetensorError as e:
            raise ValueError(f"{path} holds no tensors ({e}): restore it from a copy") from e
    return found


def write_parts(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write spread tensors into a folder that all processes see; all of them call it.

    Raises OSError in each of them where one cannot write.
    """
    try:
        checkpoint.save(dict(tensors), storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
    except CheckpointException as e:  # of every process that failed: its error, and where
        raise OSError("; ".join(f"process {rank}: {error[0]}" for rank, error in sorted(e.failures.items()))) from e


def read_parts(folder: Path, into: Mapping[str, Tensor]) -> None:
    """Read tensors by name, whole or spread as they are in ``into``, from files of `write_parts` or of safetensors.

    All processes call it. Raises ValueError where the files do not hold them, or hold others of their names.
    """
    alone = not dist.is_initialized()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
            checkpoint.load(dict(into), storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=alone)
    except CheckpointException as e:
        rank, (error, _) = min(e.failures.items())
        raise ValueError(f"{folder} holds other tensors (process {rank}: {error}): restore it from a copy") from e
