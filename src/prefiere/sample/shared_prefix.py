"""Decoding on a CPU with a prompt's keys and values held once for all of its samples.

The samples of a prompt are further queries of its keys, in one matrix product; each sample's own keys are another, and
one softmax goes over the scores of both. Scores are computed in fp32, as fused kernels have them, so keys are held in
fp32. All operands are contiguous: PyTorch's kernels for bf16 on a CPU otherwise lay the whole cache out anew at every
step, which takes several times as long as the attention.

Suffixes: _R rows (samples that decode), _P prompts, _L tokens of the longest prompt, _K key heads, _D width of a head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from prefiere.kernels import attention
from prefiere.kernels.matmul import compute_dtype


@contextmanager
def shareable(model: PreTrainedModel) -> Iterator[bool]:
    """Let a model on a CPU with plain attention in every layer take keys from `SharedLayer`; says whether it may.

    Whether it really does, `Watch` finds out from a prefill.
    """
    before = model.config._attn_implementation
    plain = {type(layer) for layer in DynamicCache(config=model.config).layers} <= {DynamicLayer}
    fits = plain and next(model.parameters()).device.type == "cpu" and before in (attention.NAME, "sdpa")
    if fits and before != attention.NAME:
        attention.register()
        model.set_attn_implementation(attention.NAME)
    try:
        yield fits
    finally:
        if model.config._attn_implementation != before:
            model.set_attn_implementation(before)


class Watch:
    """Sees during a prefill which layers call the attention function, and whether nothing but causality is in it."""

    def __init__(self) -> None:
        self._shapes: dict[int, tuple[torch.Size, torch.Size]] = {}
        self._plain = True

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scale: float, plain: bool) -> None:
        """Note a call, which goes on as it would."""
        self._shapes[getattr(module, "layer_idx", -1)] = key.shape, value.shape
        self._plain &= plain

    def all_plain(self, layers: Sequence[Any]) -> bool:
        """Whether each of these layers of the last cache called, plainly, with the keys and values that it holds:
        some hold what these are computed from (DeepSeek's latents)."""
        return self._plain and self._shapes == {i: (x.keys.shape, x.values.shape) for i, x in enumerate(layers)}


class Decoding:
    """Hands the queries of a layer to its `SharedLayer`."""

    def __init__(self, layers: list[SharedLayer]):
        self._layers = layers

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scale: float, plain: bool) -> Tensor:
        """[R, heads, 1, D] -> [R, 1, heads, D]."""
        return self._layers[int(module.layer_idx)].attend(query, scale)  # type: ignore[arg-type]


class SharedLayer(DynamicLayer):
    """One layer's cache. keys, values: [P, K, L, D], of the prompts, values of another width where the model has them
    so; seen_PL: bool, false at padding; each prompt has ``samples`` rows, each with ``slots`` for tokens of its own."""

    def __init__(self, keys: Tensor, values: Tensor, seen_PL: Tensor, samples: int, slots: int):
        super().__init__()
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        prompts, heads, self._longest, width = keys.shape
        self._work = compute_dtype(values)
        self._keys, self._values = keys.float().contiguous(), values.to(self._work).contiguous()
        own = prompts * samples, heads, slots
        self._own_keys = torch.zeros(*own, width)
        self._own_values = torch.zeros(*own, values.shape[-1], dtype=self._work)
        self._bias = torch.zeros(seen_PL.shape).masked_fill_(~seen_PL, float("-inf"))
        self._samples, self._used = samples, 0
        self._cell_R = torch.arange(prompts * samples)

    def get_seq_length(self) -> int:
        """Slots filled so far, those of the longest prompt included."""
        return self._longest + self._used

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Take up the new token of each row."""
        self._own_keys[:, :, self._used] = key_states[:, :, 0]
        self._own_values[:, :, self._used] = value_states[:, :, 0]
        self._used += 1
        return key_states, value_states

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows, and the prompts that they continue."""
        self._own_keys, self._own_values = (x.index_select(0, indices) for x in (self._own_keys, self._own_values))
        cells = self._cell_R.index_select(0, indices)
        kept, place = torch.unique(cells // self._samples, return_inverse=True)
        self._cell_R = place * self._samples + cells % self._samples
        self._keys, self._values, self._bias = (x.index_select(0, kept) for x in (self._keys, self._values, self._bias))

    @torch.autocast("cpu", enabled=False)
    def attend(self, query: Tensor, scale: float) -> Tensor:
        """One query of each row over its prompt and its own tokens: [R, heads, 1, D] -> [R, 1, heads, D]."""
        rows, heads, _, width = query.shape
        prompts, kv, longest, _ = self._keys.shape
        query_RK = query.reshape(rows, kv, -1, width).float() * scale
        shared = torch.bmm(self._by_prompt(query_RK), self._keys.flatten(0, 1).transpose(1, 2))
        shared = shared.view(prompts, -1, longest).add_(self._bias[:, None])
        own = torch.bmm(query_RK.flatten(0, 1), self._own_keys.flatten(0, 1).transpose(1, 2)).view(
            rows, kv, -1, self._slots
        )
        own[..., self._used :] = float("-inf")
        p = torch.softmax(torch.cat([self._by_row(shared.view(prompts * kv, -1, longest)), own], -1), -1).to(self._work)
        first, second = p.split([longest, self._slots], -1)
        out = self._by_row(torch.bmm(self._by_prompt(first), self._values.flatten(0, 1)))
        out = out + torch.bmm(second.flatten(0, 1), self._own_values.flatten(0, 1)).view_as(out)
        return out.reshape(rows, 1, heads, out.shape[-1])

    @property
    def _slots(self) -> int:
        return self._own_keys.shape[2]

    def _by_prompt(self, x: Tensor) -> Tensor:
        """Rows in the cells of a grid of prompts x samples, [R, K, G, n] -> [P K, samples G, n]; rows that were dropped
        are zeros."""
        prompts, kv = self._keys.shape[:2]
        grid = x.new_zeros(prompts * self._samples, *x.shape[1:]).index_copy_(0, self._cell_R, x)
        return grid.view(prompts, self._samples, *x.shape[1:]).transpose(1, 2).reshape(prompts * kv, -1, x.shape[-1])

    def _by_row(self, x: Tensor) -> Tensor:
        """The reverse of `_by_prompt`: [P K, samples G, n] -> [R, K, G, n]."""
        prompts, kv = self._keys.shape[:2]
        grid = x.view(prompts, kv, self._samples, -1, x.shape[-1]).transpose(1, 2)
        return grid.flatten(0, 1).index_select(0, self._cell_R)
