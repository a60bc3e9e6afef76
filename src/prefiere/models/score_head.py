"""The head of a reward model: one number in fp32, its normalisation, and the padding that lets transformers find it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefiere.kernels.attention import AttentionPlan
from prefiere.models.trunk import POLICY, Trunk
from prefiere.tokens.dialect import Manner
from prefiere.tokens.pack import PackedBatch, unpack

SAVED = "reward.json"
"""Beside an adapter, which has no configuration of its own: the normalisation."""
KEY = "prefiere_reward"
"""In the configuration of a whole model: the same."""


@dataclass(frozen=True, slots=True)
class Normalisation:
    """score = logit - ``mean``. ``std`` is what the logits were divided by, so that demonstrations score 0 on average
    with unit scale; a difference of scores times ``std`` is the log-odds that the better answer is preferred.
    ``template``, ``template_kwargs`` and ``template_date`` (ISO 8601): how it was trained to read text."""

    mean: float = 0.0
    std: float = 1.0
    template: str = "auto"
    template_kwargs: dict[str, Any] | None = None
    template_date: str | None = None

    @property
    def manner(self) -> Manner:
        """The same for `encoder.Encoder`."""
        day = date.fromisoformat(self.template_date) if self.template_date else None
        return {"template": self.template, "template_kwargs": self.template_kwargs, "day": day}  # type: ignore[typeddict-item]


class Head(nn.Linear):
    """A linear map in fp32, also under autocast."""

    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.float()
            return nn.functional.linear(input.float(), self.weight.float(), bias)


class EncoderTrunk(Trunk):
    """A model that reads prompt and answer at once, both ways: each completion is a padded row of its own.

    ``typed``: the answer's tokens have token type 1, as the tokenizer of a BERT pairs texts.
    """

    def __init__(self, model: PreTrainedModel | PeftModel, *, typed: bool):
        super().__init__(model, packed=False)
        self.typed = typed

    def scores(self, batch: PackedBatch, role: str, plan: AttentionPlan | None = None) -> Tensor:
        """The model's own logit of each completion [C], in fp32."""
        rows = unpack(batch, self.lm.config.pad_token_id or 0)
        options = {}
        if self.typed:
            longest = rows.ids_CL.shape[1]
            before_C = torch.full_like(batch.last_C, longest).scatter_reduce(0, rows.row_N, rows.column_N, "amin")
            column_L = torch.arange(longest, device=before_C.device)
            options["token_type_ids"] = (column_L > before_C[:, None]).long() * rows.mask_CL
        with self.role(role):
            logits = self.model(input_ids=rows.ids_CL, attention_mask=rows.mask_CL, **options).logits
        scores: Tensor = logits[:, 0].float().clone()
        return scores


def head_of(trunk: Trunk) -> Head:
    """The trained score head."""
    heads = [m for m in trunk.lm.modules() if isinstance(m, Head)]
    for wrapper in trunk.lm.modules():
        if isinstance(wrapper, ModulesToSaveWrapper):
            heads = [m for m in wrapper.modules_to_save[POLICY].modules() if isinstance(m, Head)] or heads
    return heads[-1]


# -- padding ----------------------------------------------------------------------------------------------------------

_SPARE = re.compile(r"pad|reserved|unused|extra_", re.IGNORECASE)


def settle_padding(trunk: Trunk, tokenizer: PreTrainedTokenizerBase, eos_ids: Sequence[int]) -> str | None:
    """Give tokenizer and model one padding token that never ends an answer; in words what was done, None for nothing.

    transformers reads a score at the last token that is no padding: where padding is the end token, it would be the
    one before. An unused token is taken where there is one, else a new one.
    """
    model = trunk.lm
    pad, why = tokenizer.pad_token_id, None
    if pad is None or pad in eos_ids:
        spare = [
            t.content
            for i, t in sorted(tokenizer.added_tokens_decoder.items())
            if t.special and i not in eos_ids and _SPARE.search(t.content)
        ]
        tokenizer.pad_token = spare[0] if spare else "<|pad|>"
        if not spare:
            tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
        pad = tokenizer.pad_token_id
        table: Any = model.get_input_embeddings()
        if pad >= table.weight.shape[0]:
            model.resize_token_embeddings(pad + 1, mean_resizing=False)
        why = f"padding is {tokenizer.pad_token}, as the end token must be seen to be scored"
    for config in (model.config, model.config.get_text_config()):
        config.pad_token_id = pad
    return why


# -- normalisation ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def rescale(head: Head, factor: float) -> None:
    """Multiply everything that the head says by a factor."""
    for p in head.parameters():
        p.mul_(factor)


def normalise(trunk: Trunk, scores: np.ndarray, manner: Manner) -> Normalisation:
    """Divide the head by the standard deviation of these scores, and note their mean in the configuration, with how
    the model reads text."""
    spread = float(np.std(scores.astype(np.float64)))
    std = spread if spread > 1e-6 else 1.0
    rescale(head_of(trunk), 1 / std)
    day, kwargs = manner.get("day"), dict(manner.get("template_kwargs") or {})
    made = Normalisation(
        float(np.mean(scores.astype(np.float64))) / std,
        std,
        manner.get("template", "auto"),
        kwargs or None,
        day.isoformat() if day else None,
    )
    setattr(trunk.lm.config, KEY, {k: v for k, v in asdict(made).items() if v is not None})
    return made


def save_normalisation(trunk: Trunk, folder: Path) -> None:
    """Write it beside an adapter; a whole model's configuration has it already."""
    saved = getattr(trunk.lm.config, KEY, None)
    if trunk.adapted and saved is not None:
        (folder / SAVED).write_text(json.dumps(saved, indent=2) + "\n")
