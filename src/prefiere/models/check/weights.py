"""Whether a model's weights are all there, and numbers: names those that are not."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefiere.models.source import ModelError


def nothing_missing(name: str, model: PreTrainedModel, info: Mapping[str, Any], *, whole: bool) -> None:
    """Raise ModelError where a checkpoint lacks weights of a model, which transformers then draws at random, or has
    more of them than the model has layers or experts.

    info: transformers' account of the loading, in which tied weights are not missing. whole: nothing may be missing;
    otherwise what a new classifier has besides layers and embeddings may be.
    """
    own = {_place(n) for n in model.state_dict()}
    beyond = sorted(n for n in info["unexpected_keys"] if _place(n) in own)
    if beyond:
        raise ModelError(
            f"{name} holds weights that its config.json has no layer or expert for ({_some(beyond)}): correct the "
            "numbers there, or download it again."
        )
    missing = sorted(info["missing_keys"])
    if not whole:
        table = next((n for n, m in model.named_modules() if m is model.get_input_embeddings()), "")
        body = f"{model.base_model_prefix}."
        parts = (rf"^{re.escape(body)}.*\.\d+\.", rf"^{re.escape(table)}\.")
        missing = [n for n in missing if any(re.search(p, n) for p in parts)]
    if missing:
        there = sorted(info["unexpected_keys"])
        instead = f" Its files hold {_some(there)} instead: rename them." if there else " Download it again."
        raise ModelError(f"{name} lacks weights of {type(model).__name__} ({_some(missing)}).{instead}")


def _place(name: str) -> str:
    """The name of a weight whatever the number of its layer or expert."""
    return re.sub(r"\.\d+\.", ".#.", name)


def ids_fit(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Raise ModelError where a tokenizer has ids without a row in the embeddings; padding is never looked up."""
    table: Any = model.get_input_embeddings()
    rows = int(table.weight.shape[0])
    last = max((i for i in tokenizer.get_vocab().values() if i != tokenizer.pad_token_id), default=0)
    if last >= rows:
        raise ModelError(
            f"{name}: its tokenizer has ids up to {last}, and its embeddings {rows} rows: give it the tokenizer that "
            "it was trained with, or resize its embeddings (model.resize_token_embeddings) and save it."
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")


def not_a_number(model: nn.Module) -> str | None:
    """The name of the first weight that is not finite everywhere; None where all are."""
    floats = ((n, p) for n, p in model.named_parameters() if p.is_floating_point())
    return next((n for n, p in floats if not bool(torch.isfinite(p).all())), None)
