"""Reward models: a score per answer, fitted so that differences of scores explain who was preferred.

Scores are unitless log-odds (a difference of 1 means odds of e). Suffix: _G pairs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from prefiere.objectives.shapes import same_shape


def bradley_terry(
    chosen_G: Tensor, rejected_G: Tensor, *, label_G: Tensor | None = None, margin_G: Tensor | None = None
) -> Tensor:
    """-p log sigmoid(r_w - r_l - m) - (1 - p) log sigmoid(r_l - r_w - m). Returns [G], in fp32 at least.

    chosen_G, rejected_G: scores r. label_G: p, the probability that chosen is preferred (1: plain pair, 0.5: tie).
    margin_G: m, by how much the preferred answer should win (nan: not stated, which is 0). Bradley and Terry 1952;
    Ouyang et al. 2022, eq. 1; margin: Touvron et al. 2023 (Llama 2), eq. 2.
    """
    same_shape(rank=1, chosen_G=chosen_G, rejected_G=rejected_G, label_G=label_G, margin_G=margin_G)
    dtype = torch.promote_types(chosen_G.dtype, torch.float32)
    difference = chosen_G.to(dtype) - rejected_G.to(dtype)
    margin = torch.zeros_like(difference) if margin_G is None else margin_G.to(dtype).nan_to_num(nan=0.0)
    label = torch.ones_like(difference) if label_G is None else label_G.to(dtype)
    return -label * F.logsigmoid(difference - margin) - (1 - label) * F.logsigmoid(-difference - margin)


def centring(chosen_G: Tensor, rejected_G: Tensor) -> Tensor:
    """(r_w + r_l)^2: added with a small weight (0.01) it fixes the offset that Bradley-Terry leaves free. Returns [G].

    Eisenstein et al. 2023, eq. 2.
    """
    same_shape(rank=1, chosen_G=chosen_G, rejected_G=rejected_G)
    dtype = torch.promote_types(chosen_G.dtype, torch.float32)
    return (chosen_G.to(dtype) + rejected_G.to(dtype)).square()
