"""LongRoPE (Ding et al. 2024): each text of a row is turned by the frequencies that it has alone.

Such a model has a set of frequencies for texts up to the length that it was first trained on, and one for longer ones.
transformers takes the set of the longest text of a forward for all of them, so that a text's log-probs would depend on
who shares its row. Here each prompt with its completions, and each padded row, has the set of its own longest text.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

LONGROPE = "longrope"


def keep_own_positions(model: nn.Module) -> None:
    """Let the rotary modules of a model go by each text's own length. Models without LongRoPE stay as they are."""
    for module in _rotary(model):
        module.register_forward_hook(_by_each, with_kwargs=True)


def own_positions(model: nn.Module, mask_CL: Tensor) -> dict[str, Tensor]:
    """What padded rows of a LongRoPE model say of their positions (int64 [C, L]), nothing for other models: by itself a
    model takes one row's positions for all."""
    if next(_rotary(model), None) is None:
        return {}
    return {"position_ids": (mask_CL.cumsum(-1) - 1).clamp(min=0)}


def _rotary(model: nn.Module) -> Iterator[nn.Module]:
    """The modules of transformers that turn by LongRoPE, all layers or those of some kind."""
    for module in model.modules():
        kind = getattr(module, "rope_type", None)
        known = hasattr(getattr(module, "config", None), "rope_parameters")
        if known and LONGROPE in (kind.values() if isinstance(kind, dict) else (kind,)):
            yield module


def _by_each(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], turned: Any) -> Any:
    """Cosines and sines [B, T, D] that transformers chose for all, with those of short texts put right."""
    asked = dict(zip(("x", "position_ids", "layer_type"), args, strict=False)) | kwargs
    parameters, positions_BT = module.config.rope_parameters, asked["position_ids"]
    if asked.get("layer_type") is not None:
        parameters = parameters[asked["layer_type"]]
    if parameters["rope_type"] != LONGROPE:
        return turned
    first = parameters["original_max_position_embeddings"]
    short_BT = _lengths(positions_BT) <= first
    below = module.forward(**asked | {"position_ids": positions_BT.clamp(max=first - 1)})
    return tuple(torch.where(short_BT[..., None], s, t) for s, t in zip(below, turned, strict=True))


def _lengths(positions_BT: Tensor) -> Tensor:
    """int64 [B, T]: how long each token's text gets. A text begins where positions do, or where a row does."""
    begins = positions_BT == 0
    begins[:, 0] = True
    text = begins.flatten().cumsum(0) - 1
    longest = torch.zeros_like(text).scatter_reduce_(0, text, positions_BT.flatten(), "amax")
    return (longest[text] + 1).view_as(positions_BT)
