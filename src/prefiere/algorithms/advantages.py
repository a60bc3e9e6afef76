"""From the rewards of whole answers to the credit of each token, which is where policy-gradient algorithms differ.

Suffixes: _C completions, _N their tokens in a row, _CL completions x tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from prefiere.algorithms.rollout import Rollout
from prefiere.objectives.masked import masked_moments, whiten
from prefiere.objectives.ppo import kl_k1, token_rewards
from prefiere.settings import PolicyGradient


@dataclass
class RewardScale:
    """What turns a reward model's number into the reward that is maximised.

    std: of the first rollout's rewards that differ at all (None before it, and where nothing is scaled); rewards are
    divided by it, so that the KL coefficient means the same whatever the unit of the reward.
    """

    std: float | None = None

    def __call__(self, reward_C: np.ndarray, ended_C: np.ndarray, settings: PolicyGradient) -> np.ndarray:
        """float64 [C]: scaled, clipped, and less the penalty where an answer never ended."""
        if self.std is None and settings.scale_rewards and reward_C.std() > 1e-6:
            self.std = float(reward_C.std())
        scaled = reward_C / (self.std or 1.0)
        if settings.reward_clip is not None:
            scaled = scaled.clip(-settings.reward_clip, settings.reward_clip)
        return np.asarray(scaled - settings.missing_eos_penalty * ~ended_C)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps; ``RewardScale(**state)`` is the same."""
        return asdict(self)


OUTLYING = 10
"""Median distances from the median, beyond which a reward is out of all proportion."""


def spread_of(reward_C: np.ndarray) -> dict[str, float]:
    """Quantiles of an update's rewards [C] (p05, p50, p95), and the share that lies `OUTLYING` median distances off the
    median (outliers; 0 where half of them are equal, as with rewards of right and wrong)."""
    low, middle, high = np.quantile(reward_C, [0.05, 0.5, 0.95]).tolist()
    distance = np.abs(reward_C - middle)
    usual = float(np.median(distance))
    outliers = float((distance > OUTLYING * usual).mean()) if usual > 0 else 0.0
    return {"p05": low, "p50": middle, "p95": high, "outliers": outliers}


@dataclass(frozen=True)
class Advantages:
    """advantage_N, return_N: float32 [N], in scaled rewards; return_N is what a critic should have said."""

    advantage_N: np.ndarray
    return_N: np.ndarray


Estimator: TypeAlias = Callable[[Tensor, Rollout], tuple[Tensor, Tensor]]
"""What tells one algorithm from another: rewards per token [C, L] and the rollout -> advantages and returns [C, L], in
scaled rewards. What stands beyond a completion's end is not read."""


def advantages_of(
    rollout: Rollout, score_C: np.ndarray, kl_coef: float, estimate: Estimator, *, whitened: bool
) -> Advantages:
    """The credit of each token: r_t = -kl_coef k1_t, plus the score at the last token, as ``estimate`` spreads it.

    score_C: float64 [C], from `RewardScale`. whitened: advantages to mean 0 and deviation 1 over the rollout's tokens.
    """
    mask = rollout.mask()
    kl_CL = torch.zeros(mask.shape, dtype=torch.float64)
    if kl_coef:  # without it nothing here asks what the policy says
        kl_CL = kl_k1(rollout.padded(rollout.tokens["logp"]), rollout.padded(rollout.tokens["ref"]))
    reward_CL = token_rewards(torch.from_numpy(score_C), kl_CL, mask, kl_coef=kl_coef)
    advantage_CL, return_CL = estimate(reward_CL, rollout)
    advantage_CL = torch.where(mask, advantage_CL, 0.0)
    if whitened:
        advantage_CL = torch.where(mask, whiten(advantage_CL, masked_moments(advantage_CL, mask)), 0.0)
    return Advantages(rollout.flat(advantage_CL), rollout.flat(return_CL))
