"""The cache that a rollout decodes with: room for every token is made once, and prompts are prefilled at their length.

transformers' own cache grows by a copy of itself with every token, and takes all prompts padded to the longest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from prefiere.sample.shared_prefix import Decoding, SharedLayer, Watch

PADDING = 1.15
"""Prompts are prefilled together while their padded size stays within this factor of the real one..."""
SMALL = 256
"""...or within so many tokens of it: a call costs as much."""


class Room(DynamicLayer):
    """Keys and values [rows, heads, columns, D] of one layer, with free columns at the end."""

    def __init__(self, keys: Tensor, values: Tensor, used: int):
        super().__init__()
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self._keys, self._values = keys, values
        self._show(used)

    def _show(self, used: int) -> tuple[Tensor, Tensor]:
        self._used = used
        self.keys, self.values = shown = self._keys[:, :, :used], self._values[:, :, :used]
        return shown

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the new columns, and show all that are used."""
        start = self._used
        keys, values = self._show(start + key_states.shape[-2])
        keys[:, :, start:] = key_states
        values[:, :, start:] = value_states
        return keys, values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows."""

        def kept(x: Tensor) -> Tensor:
            new = x.new_empty(len(indices), *x.shape[1:])
            new[:, :, : self._used] = x[:, :, : self._used].index_select(0, indices)
            return new

        self._keys, self._values = kept(self._keys), kept(self._values)
        self._show(self._used)


def prefill(
    model: PreTrainedModel, prompts: Sequence[np.ndarray], samples: int, room: int, *, share: bool = False
) -> tuple[Tensor, Cache, Tensor, Decoding | None]:
    """Run each prompt once, for ``samples`` rows of ``room`` more tokens; prompts come shortest first.

    Returns the logits [R, V] of the first new token, the cache, and the mask [R, longest prompt + room]: prompts stand
    at the right of their columns, so that all rows' next token has the same one. With ``share`` (`shareable`), where
    the model goes along, samples share their prompt's keys: the model is then told who is ``decoding``.
    """
    kinds = {type(layer) for layer in DynamicCache(config=model.config).layers}
    ordinary = kinds <= {DynamicLayer, DynamicSlidingWindowLayer}
    longest, device = max(map(len, prompts)), next(model.parameters()).device
    parts, caches, watch = [], [], Watch()
    watched = {"decoding": watch} if share else {}
    for few in alike(prompts) if ordinary else [prompts]:
        ids, mask = _padded_left(few, device)
        # Ordinary layers keep all columns, and the model's mask has its windows; the others know what to keep.
        cache = DynamicCache() if ordinary else DynamicCache(config=model.config)
        position = (mask.cumsum(-1) - 1).clamp(min=0)
        logits = model(
            input_ids=ids, attention_mask=mask, position_ids=position, past_key_values=cache, use_cache=True,
            logits_to_keep=1, **watched,
        ).logits[:, -1]  # fmt: skip
        parts.append((logits.repeat_interleave(samples, 0), mask.repeat_interleave(samples, 0)))
        caches.append(cache)
    whole = parts[0][1].new_ones(len(prompts) * samples, longest + room)
    at = 0
    for _, mask in parts:
        whole[at : at + len(mask), :longest] = 0
        whole[at : at + len(mask), longest - mask.shape[1] : longest] = mask
        at += len(mask)
    if not ordinary:
        caches[0].batch_repeat_interleave(samples)
        return parts[0][0], caches[0], whole, None
    sharing = watch.all_plain(len(caches[0].layers))
    layers: list[Any] = []
    for number in range(len(caches[0].layers)):
        pieces = [c.layers[number] for c in caches]
        for c in caches:
            c.layers[number] = None  # type: ignore[call-overload]  # each layer is let go as it is copied
        copies, columns = (1, 0) if sharing else (samples, room)
        keys, values = (
            _together([getattr(p, n) for p in pieces], copies, longest, columns) for n in ("keys", "values")
        )
        if sharing:
            layers.append(SharedLayer(keys, values, whole[::samples, :longest].bool(), samples, room))
        else:
            layers.append(Room(keys, values, longest))
    logits = torch.cat([logits for logits, _ in parts])
    return logits, Cache(layers=layers), whole, Decoding(layers) if sharing else None


def _together(parts: Sequence[Tensor], samples: int, longest: int, room: int) -> Tensor:
    """Keys or values of prompts prefilled apart, each repeated for its samples, at the right of ``longest`` columns."""
    _, heads, _, width = parts[0].shape
    whole = parts[0].new_zeros(sum(len(p) for p in parts) * samples, heads, longest + room, width)
    at = 0
    for part in parts:
        rows = whole[at : at + len(part) * samples].view(len(part), samples, heads, longest + room, width)
        rows[..., longest - part.shape[2] : longest, :] = part[:, None]
        at += len(part) * samples
    return whole


def alike(prompts: Sequence[np.ndarray]) -> Iterator[Sequence[np.ndarray]]:
    """Runs of prompts of about the same length."""
    start = real = 0
    for i, prompt in enumerate(prompts):
        padded = len(prompt) * (i + 1 - start)
        if i > start and padded > max(PADDING * (real + len(prompt)), real + len(prompt) + SMALL):
            yield prompts[start:i]
            start, real = i, 0
        real += len(prompt)
    yield prompts[start:]


def _padded_left(prompts: Sequence[np.ndarray], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and mask [R, L], padded on the left."""
    longest = max(len(p) for p in prompts)
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for r, p in enumerate(prompts):
        ids[r, longest - len(p) :] = torch.from_numpy(p.astype(np.int64))
        mask[r, longest - len(p) :] = 1
    return ids.to(device), mask.to(device)
