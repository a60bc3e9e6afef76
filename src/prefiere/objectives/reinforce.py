"""Policy gradients from whole answers: who gets how much credit, and the gradient that follows from it.

Suffixes: _C completions, _T tokens, _3 moments (count, sum, sum of squares). Completions of one prompt are consecutive.
"""

from __future__ import annotations

import torch
from torch import Tensor

from prefiere.objectives.shapes import of_shape, same_shape


def policy_gradient_loss(logp_T: Tensor, advantage_T: Tensor) -> Tensor:
    """-A log pi(a|s), whose gradient is that of the expected return when actions come from pi. Returns [T].

    logp_T: log-probs of the sampled tokens, nats. advantage_T: credit of each, taken as a constant. Williams 1992;
    Sutton et al. 2000, theorem 1.
    """
    same_shape(rank=1, logp_T=logp_T, advantage_T=advantage_T)
    return -advantage_T.detach() * logp_T


def reinforce_advantage(return_C: Tensor, moments_3: Tensor) -> Tensor:
    """R_i - mean of all other returns in the update: REINFORCE with a baseline that does not see its own sample. [C].

    moments_3: `masked.masked_moments` of the returns of the whole update, summed over micro-batches and processes. The
    baseline of a single return is 0. Williams 1992.
    """
    same_shape(rank=1, return_C=return_C)
    of_shape((3,), moments_3=moments_3)
    count, total = moments_3[0], moments_3[1]
    baseline = (total - return_C) / (count - 1).clamp(min=1)
    return (return_C - torch.where(count > 1, baseline, torch.zeros_like(baseline))).to(return_C.dtype)


def rloo_advantage(reward_C: Tensor, k: int) -> Tensor:
    """R_i - mean of the other k - 1 rewards of the same prompt: leave one out. Returns [C].

    Kool et al. 2019; Ahmadian et al. 2024. Raises ValueError for k < 2.
    """
    same_shape(rank=1, reward_C=reward_C)
    groups = _groups(reward_C, k)
    return ((groups - groups.mean(1, keepdim=True)) * (k / (k - 1))).view(-1)


def grpo_advantage(reward_C: Tensor, k: int, *, eps: float = 1e-4) -> Tensor:
    """(R_i - mean) / (std + eps) over the k rewards of the same prompt, std with k - 1 in the denominator. Returns [C].

    Equal rewards give 0. Shao et al. 2024, section 4.1.2. Dividing by std weighs prompts by how alike their rewards
    are, so the optimum is not that of the expected reward; `rloo_advantage` does not. Raises ValueError for k < 2.
    """
    same_shape(rank=1, reward_C=reward_C)
    groups = _groups(reward_C, k)
    centred = groups - groups.mean(1, keepdim=True)
    return (centred / (groups.std(1, keepdim=True) + eps)).view(-1)


def _groups(reward_C: Tensor, k: int) -> Tensor:
    if k < 2 or reward_C.numel() % k:
        raise ValueError(f"{reward_C.numel()} rewards do not make groups of {k}; k must be at least 2 and divide them")
    return reward_C.view(-1, k)
