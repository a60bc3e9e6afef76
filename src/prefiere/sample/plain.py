"""The plain ways to decode, for models that the prepared cache (`kv_cache`) does not suit, and which way a model takes.

"prepared": keys and values lie in slots, a prompt's are held once, and ended rows are dropped. "cache": the cache that
transformers gives the model, whatever it holds (recurrent states, convolutions). "anew": every token from a forward
over all that is there. Whoever loads a model compares a few tokens with a plain forward, and chooses the fastest way
that agrees (`models.check.decoding`).

Suffixes: _R rows (answers that are being drawn), _V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

Way = Literal["prepared", "cache", "anew"]
WAYS: tuple[Way, ...] = get_args(Way)
"""The fastest first."""
LOGITS_AT_ONCE = 2**26
"""Entries of logits that one forward over whole rows computes at most."""
_WAY = "_prefiere_decoding"


def way_of(model: nn.Module) -> Way:
    """How a model decodes."""
    way: Way = getattr(model, _WAY, "prepared")
    return way


def set_way(model: nn.Module, way: Way) -> None:
    """Let a model decode in this way from now on."""
    setattr(model, _WAY, way)


class OwnCache:
    """Rows that decode on transformers' own cache. Prompts are padded on the left, each once for every sample."""

    def __init__(self, model: PreTrainedModel, prompts: Sequence[np.ndarray], samples: int):
        self._model = model = _itself(model)
        self._ids_RT, mask_RT = padded(prompts, samples, next(model.parameters()).device, left=True)
        takes = inspect.signature(model.forward).parameters
        self._options: dict[str, Any] = {"attention_mask": mask_RT, "use_cache": True}
        if "position_ids" in takes:
            self._options["position_ids"] = (mask_RT.cumsum(-1) - 1).clamp(min=0)
        if "past_key_values" in takes:
            self._options["past_key_values"] = DynamicCache(config=model.config)
        self.logits_RV = self._forward(None)

    def _forward(self, new: int | None) -> Tensor:
        model: Any = self._model
        first = new is None
        inputs = model.prepare_inputs_for_generation(
            self._ids_RT, next_sequence_length=new, is_first_iteration=first, **self._options
        )
        out = model(**inputs, return_dict=True)
        self._options = model._update_model_kwargs_for_generation(out, self._options)
        logits: Tensor = out.logits[:, -1]
        return logits

    def step(self, token_R: Tensor) -> Tensor:
        """Take up each row's new token; returns the logits [R, V] of the next one."""
        self._ids_RT = torch.cat([self._ids_RT, token_R[:, None]], -1)
        return self._forward(1)

    def keep(self, kept: Tensor) -> None:
        """Nothing: not every cache can drop rows, so `may_drop` is false."""

    may_drop = False


class Anew:
    """Rows that are run from their first token for each new one."""

    def __init__(self, model: PreTrainedModel, prompts: Sequence[np.ndarray], samples: int):
        self._model = model = _itself(model)
        device = next(model.parameters()).device
        self._ids_RT, _ = padded(prompts, samples, device, left=False)
        self._length_R = torch.tensor([len(p) for p in prompts], device=device).repeat_interleave(samples)
        self.logits_RV = self._forward()

    def _forward(self) -> Tensor:
        place_T = torch.arange(self._ids_RT.shape[1], device=self._ids_RT.device)
        mask_RT = (place_T < self._length_R[:, None]).long()
        wide = int(self._model.config.get_text_config().vocab_size) * self._ids_RT.shape[1]
        found = []
        for rows in torch.arange(len(mask_RT), device=mask_RT.device).split(max(1, LOGITS_AT_ONCE // wide)):
            out = self._model(input_ids=self._ids_RT[rows], attention_mask=mask_RT[rows], use_cache=False)
            found.append(out.logits[torch.arange(len(rows), device=rows.device), self._length_R[rows] - 1])
        return torch.cat(found)

    def step(self, token_R: Tensor) -> Tensor:
        """Take up each row's new token; returns the logits [R, V] of the next one."""
        self._ids_RT = torch.nn.functional.pad(self._ids_RT, (0, 1))
        self._ids_RT.scatter_(1, self._length_R[:, None], token_R[:, None])
        self._length_R = self._length_R + 1
        return self._forward()

    def keep(self, kept: Tensor) -> None:
        """Drop all rows but these."""
        self._ids_RT, self._length_R = self._ids_RT.index_select(0, kept), self._length_R.index_select(0, kept)

    may_drop = True


def _itself(model: Any) -> Any:
    """The language model inside a PEFT model, adapted layers in place: it says what its forward takes."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def padded(prompts: Sequence[np.ndarray], samples: int, device: torch.device, *, left: bool) -> tuple[Tensor, Tensor]:
    """Int64 ids and mask [R, L] of prompts (int32 ids), ``samples`` rows each, padded on one side."""
    longest = max(len(p) for p in prompts)
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for r, p in enumerate(prompts):
        own = slice(longest - len(p), longest) if left else slice(0, len(p))
        ids[r, own] = torch.from_numpy(p.astype(np.int64))
        mask[r, own] = 1
    return ids.repeat_interleave(samples, 0).to(device), mask.repeat_interleave(samples, 0).to(device)
