"""The reference: the policy as it was before this run, and its log-probs.

The log-probs of the data are computed once, before the first update, by the policy itself on the same code path, so
that the first loss is exact, and kept on disk under a key that covers all that they depend on. Sampled answers need a
live reference: the base without its adapter, the frozen copy of a starting adapter, or a frozen copy of a full model.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from prefiere.data.batch import pack
from prefiere.data.groups import GroupStore, PromptGroup
from prefiere.models.roles import REFERENCE, Trunk


class Reference:
    """A frozen stand-in for the policy before the run; costs a copy of the weights in full fine-tuning only."""

    def __init__(self, trunk: Trunk):
        self._trunk = trunk
        self._copy: Trunk | None = None
        if not trunk.adapted:
            self._copy = Trunk(copy.deepcopy(trunk.model).eval().requires_grad_(False), packed=trunk.packed)
        self._adapter = REFERENCE if trunk.adapted and REFERENCE in trunk.model.peft_config else None

    @contextmanager
    def live(self) -> Iterator[Trunk]:
        """The trunk under the reference's role."""
        if self._copy is not None:
            yield self._copy
        else:
            with self._trunk.role(self._adapter):
                yield self._trunk


@torch.no_grad()
def sequence_logps(
    trunk: Trunk,
    groups: Sequence[PromptGroup],
    *,
    budget: int,
    autocast: torch.dtype | None = None,
    progress: Callable[[int], None] | None = None,
) -> np.ndarray:
    """float32 [n, k]: log-prob of each completion's scored tokens, summed, in nats. Batched by length."""
    if not len(groups):
        return np.zeros((0, 1), np.float32)
    lengths = groups.lengths if isinstance(groups, GroupStore) else np.asarray([g.length for g in groups])
    k = len(groups[0].completions)
    out = np.zeros((len(groups), k), np.float32)
    device = trunk.device
    was_training = trunk.training
    trunk.eval()
    by_length = np.argsort(-lengths, kind="stable")
    for batch_indices in _runs(by_length, lengths, budget):
        batch = pack([groups[i] for i in batch_indices]).to(device)
        with torch.autocast(device.type, autocast) if autocast else nullcontext():
            logp = trunk(batch).logp_N
        sums = torch.zeros(batch.completions, device=device).index_add_(0, batch.owner_N, logp)
        out[list(batch_indices)] = sums.view(-1, k).cpu().numpy()
        if progress:
            progress(len(batch_indices))
    trunk.train(was_training)
    return out


def _runs(order: np.ndarray, lengths: np.ndarray, budget: int) -> tuple[tuple[int, ...], ...]:
    """Cut an ordered list into runs of at most ``budget`` tokens: linear, for many groups."""
    runs: list[tuple[int, ...]] = []
    current: list[int] = []
    total = 0
    for i in order:
        if current and total + int(lengths[i]) > budget:
            runs.append(tuple(current))
            current, total = [], 0
        current.append(int(i))
        total += int(lengths[i])
    return (*runs, tuple(current)) if current else tuple(runs)


def cached_logps(
    folder: Path,
    key: dict[str, str],
    compute: Callable[[], np.ndarray],
) -> tuple[np.ndarray, bool]:
    """Reference log-probs from ``folder`` if they are there under this key and whole; else computed and stored.

    ``key`` names everything that the values depend on (weights, token ids, dtype, quantization) and nothing else.
    Returns the values and whether they were reused.
    """
    digest = hashlib.blake2b(json.dumps(key, sort_keys=True).encode(), digest_size=16).hexdigest()
    path = folder / f"reference-{digest}.safetensors"
    if path.is_file():
        try:
            data = load_file(path)
            values, check = data["logps"], data["check"]
            if bytes(check) == hashlib.blake2b(values.tobytes(), digest_size=16).digest():
                return values, True
        except (SafetensorError, KeyError):
            pass  # a partial or damaged file is rebuilt below
    values = np.ascontiguousarray(compute())
    folder.mkdir(parents=True, exist_ok=True)
    check = np.frombuffer(hashlib.blake2b(values.tobytes(), digest_size=16).digest(), np.uint8)
    temporary = path.with_suffix(".tmp")
    save_file({"logps": values, "check": check}, temporary)
    temporary.replace(path)
    return values, False
