"""The cache that answers are decoded with: it has slots for every token from the start, and prompts are run at their
own lengths.

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

from prefiere.sample.plain import padded
from prefiere.sample.shared_prefix import Decoding, SharedLayer, Watch

MOST_PADDING = 1.15
"""Prompts are run together while their padded size stays within this factor of the real one..."""
FREE_PADDING = 256
"""...or within so many tokens of it: a call costs as much."""


class PreallocatedLayer(DynamicLayer):
    """Keys and values [rows, heads, slots, D] of one layer, of which the first ``used`` slots are filled."""

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
        """Fill the next slots; returns keys and values of all filled ones."""
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


class PreparedCache:
    """Rows that decode on keys and values in slots: each prompt is run once, and its cache serves all of its samples.

    prompts: int32 ids each, shortest first. samples: rows of each prompt. slots: room for each row's new tokens. With
    ``share`` (`shareable`) a prompt's rows share its keys, if all of the model's layers are plain. limit: positions
    that the model takes. logits_RV: of the first new token.

    Raises NotImplementedError for a model whose cache holds anything but keys and values.
    """

    may_drop = True

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[np.ndarray],
        samples: int,
        slots: int,
        *,
        share: bool = False,
        limit: int = 2**31,
    ):
        device = next(model.parameters()).device
        self._model, self._limit, self._longest, self._drawn = model, limit, max(map(len, prompts)), 0
        self.logits_RV, self._cache, self._mask, shared = prefill(model, prompts, samples, slots, share=share)
        self._shared = {} if shared is None else {"decoding": shared}
        self._length_R = torch.tensor([len(p) for p in prompts], device=device).repeat_interleave(samples)

    def step(self, token_R: Tensor) -> Tensor:
        """Take up each row's new token; returns the logits [R, V] of the next one."""
        self._drawn += 1
        logits: Tensor = self._model(
            input_ids=token_R[:, None],
            attention_mask=self._mask[:, : self._longest + self._drawn],
            position_ids=(self._length_R + self._drawn - 1).clamp(max=self._limit - 1)[:, None],
            past_key_values=self._cache,
            use_cache=True,
            **self._shared,
        ).logits[:, -1]
        return logits

    def keep(self, kept: Tensor) -> None:
        """Drop all rows but these."""
        self._cache.batch_select_indices(kept)
        self._mask, self._length_R = self._mask.index_select(0, kept), self._length_R.index_select(0, kept)


def prefill(
    model: PreTrainedModel, prompts: Sequence[np.ndarray], samples: int, slots: int, *, share: bool = False
) -> tuple[Tensor, Cache, Tensor, Decoding | None]:
    """Run each prompt once, and make a cache of ``samples`` rows a prompt, each with ``slots`` for more tokens.

    Returns the logits [R, V] of the first new token, the cache, and the mask [R, longest prompt + slots]. Prompts end
    in the same slot, so that all rows' next tokens have the same one. Where a prompt's rows share its keys, the last
    value is what each decoding step passes to the model as ``decoding``; otherwise it is None.
    """
    if not {type(layer) for layer in DynamicCache(config=model.config).layers} <= {
        DynamicLayer,
        DynamicSlidingWindowLayer,
    }:
        raise NotImplementedError(f"the cache of {type(model).__name__} holds more than keys and values")
    longest, device = max(map(len, prompts)), next(model.parameters()).device
    logits, masks, caches, watch = [], [], [], Watch()
    watched = {"decoding": watch} if share else {}
    for few in alike(prompts):
        ids, mask = padded(few, 1, device, left=True)
        cache = DynamicCache()  # its layers keep every token, and the model's mask has its windows
        position = (mask.cumsum(-1) - 1).clamp(min=0)
        out = model(
            input_ids=ids, attention_mask=mask, position_ids=position, past_key_values=cache, use_cache=True,
            logits_to_keep=1, **watched,
        )  # fmt: skip
        logits.append(out.logits[:, -1].repeat_interleave(samples, 0))
        masks.append(mask.repeat_interleave(samples, 0))
        caches.append(cache)
    mask = _right_aligned(masks, longest, slots)
    if watch.all_plain(caches[-1].layers):
        seen = mask[::samples, :longest].bool()
        shared = [SharedLayer(k, v, seen, samples, slots) for k, v in _layers(caches, 1, longest, 0)]
        return torch.cat(logits), Cache(layers=[*shared]), mask, Decoding(shared)
    own = [PreallocatedLayer(k, v, longest) for k, v in _layers(caches, samples, longest, slots)]
    return torch.cat(logits), Cache(layers=[*own]), mask, None


def _right_aligned(masks: Sequence[Tensor], longest: int, slots: int) -> Tensor:
    """The masks of prompts that were run apart as one mask [R, longest + slots]: prompts end in slot ``longest``, and
    all slots from there on are seen."""
    whole = masks[0].new_ones(sum(map(len, masks)), longest + slots)
    at = 0
    for mask in masks:
        whole[at : at + len(mask), :longest] = 0
        whole[at : at + len(mask), longest - mask.shape[1] : longest] = mask
        at += len(mask)
    return whole


def _layers(caches: Sequence[Cache], samples: int, longest: int, slots: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Keys and values of each layer, put together from these caches (see `_together`), which are emptied on the way:
    two copies of one layer are held at a time, not of all."""
    for number in range(len(caches[0].layers)):
        pieces = [c.layers[number] for c in caches]
        for c in caches:
            c.layers[number] = None  # type: ignore[call-overload]
        keys, values = (_together([getattr(p, n) for p in pieces], samples, longest, slots) for n in ("keys", "values"))
        del pieces
        yield keys, values


def _together(parts: Sequence[Tensor], samples: int, longest: int, slots: int) -> Tensor:
    """Keys or values [R, heads, longest + slots, D] of prompts that were run apart, each repeated for its samples and
    ending in slot ``longest``."""
    _, heads, _, width = parts[0].shape
    whole = parts[0].new_zeros(sum(len(p) for p in parts) * samples, heads, longest + slots, width)
    at = 0
    for part in parts:
        rows = whole[at : at + len(part) * samples].view(len(part), samples, heads, longest + slots, width)
        rows[..., longest - part.shape[2] : longest, :] = part[:, None]
        at += len(part) * samples
    return whole


def alike(prompts: Sequence[np.ndarray]) -> Iterator[Sequence[np.ndarray]]:
    """Runs of prompts of about the same length."""
    start = real = 0
    for i, prompt in enumerate(prompts):
        padded = len(prompt) * (i + 1 - start)
        if i > start and padded > max(MOST_PADDING * (real + len(prompt)), real + len(prompt) + FREE_PADDING):
            yield prompts[start:i]
            start, real = i, 0
        real += len(prompt)
    yield prompts[start:]
