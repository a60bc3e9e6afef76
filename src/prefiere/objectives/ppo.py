"""PPO for language models: credit for each token of an answer, and losses that keep an update near where it began.

A state is the prompt and the answer so far, an action the next token. Log-probs and KL are in nats.

Suffixes: _C completions, _CL completions x tokens, padded anywhere, with a mask; ``...`` any shape, taken per token.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from prefiere.objectives.masked import mean_and_variance
from prefiere.objectives.shapes import of_shape, same_shape

LOG_RATIO_LIMIT = 20.0
"""exp(20) is 5e8: beyond it a ratio says nothing, and its gradient is cut off."""


def log_ratio(logp: Tensor, other: Tensor) -> Tensor:
    """log pi(a|s) - log pi_other(a|s) per token, clamped to +-20. Any shape."""
    same_shape(logp=logp, other=other)
    return (logp - other).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def kl_k1(logp: Tensor, other: Tensor) -> Tensor:
    """k1 = log pi - log pi_other, for tokens sampled from pi: its mean is KL(pi || pi_other). Any shape, nats.

    For the reward (`token_rewards`). As a loss its gradient has mean 0. Schulman 2020, "Approximating KL divergence".
    """
    same_shape(logp=logp, other=other)
    return logp - other


def kl_k2(logp: Tensor, other: Tensor) -> Tensor:
    """k2 = (log pi - log pi_other)^2 / 2, for tokens sampled from pi. Any shape, nats.

    For the loss: the mean of its gradient in log pi is that of KL(pi || pi_other). As a measure it is biased, to third
    order in the log-ratio.
    """
    same_shape(logp=logp, other=other)
    return log_ratio(logp, other).square() / 2


def kl_k3(logp: Tensor, other: Tensor) -> Tensor:
    """k3 = pi_other / pi - 1 + log pi - log pi_other, for tokens sampled from pi: its mean is KL(pi || pi_other).

    Never negative, which makes it the one to measure with. As a loss in its second argument, with tokens sampled from a
    fixed first one, its gradient is right; in its first it is not (it is that of KL(pi_other || pi)). Any shape, nats.
    The log-ratio is clamped to +-20.
    """
    same_shape(logp=logp, other=other)
    x = log_ratio(other, logp)
    return torch.expm1(x) - x


WEIGHT_LIMIT = 2.0
"""What an importance weight is truncated at."""


def truncated_weight(logp: Tensor, sampled: Tensor) -> Tensor:
    """min(pi(a|s) / mu(a|s), 2) per token, where mu drew the token and pi is the policy that the update starts from.

    A mean over mu's tokens with these weights is one over pi's, but for what is truncated. logp, sampled: log-probs
    under pi and mu. Any shape. Truncated importance sampling: Yao et al. 2025, "Your efficient RL framework secretly
    brings you off-policy RL training".
    """
    same_shape(logp=logp, sampled=sampled)
    return log_ratio(logp, sampled).exp().clamp(max=WEIGHT_LIMIT)


def token_rewards(score_C: Tensor, kl_CL: Tensor, mask_CL: Tensor, *, kl_coef: float) -> Tensor:
    """r_t = -kl_coef KL_t, plus the score at the last token that the policy wrote. Returns [C, L], 0 where masked.

    score_C: reward of the whole answer. kl_CL: `kl_k1` per token. mask_CL: true where the policy wrote the token.
    Ziegler et al. 2019, eq. 2. Raises ValueError for a completion without such a token.
    """
    same_shape(rank=2, kl_CL=kl_CL, mask_CL=mask_CL)
    of_shape(kl_CL.shape[:1], score_C=score_C)
    if not bool(mask_CL.any(1).all()):
        empty = int(torch.nonzero(~mask_CL.any(1))[0])
        raise ValueError(f"completion {empty} has no token of the policy's own to put its score on")
    shaped = torch.where(mask_CL, -kl_coef * kl_CL, torch.zeros_like(kl_CL))
    positions = torch.arange(mask_CL.shape[1], device=mask_CL.device)
    last_C = torch.where(mask_CL, positions, -1).amax(1)
    return shaped.scatter_add(1, last_C[:, None], score_C.to(shaped.dtype)[:, None])


def discounted_returns(reward_CL: Tensor, mask_CL: Tensor, *, gamma: float = 1.0) -> Tensor:
    """G_t = r_t + gamma G_(t+1), where t + 1 is the next token that is not masked. Returns [C, L], 0 where masked."""
    same_shape(rank=2, reward_CL=reward_CL, mask_CL=mask_CL)
    return gae(reward_CL, torch.zeros_like(reward_CL), mask_CL, gamma=gamma, lam=1.0)[0]


def gae(
    reward_CL: Tensor, value_CL: Tensor, mask_CL: Tensor, *, gamma: float = 1.0, lam: float = 0.95
) -> tuple[Tensor, Tensor]:
    """Generalised advantages and the returns that they imply, [C, L] each, 0 where masked, without gradient.

    delta_t = r_t + gamma V_(t+1) - V_t;  A_t = delta_t + gamma lam A_(t+1);  return_t = A_t + V_t.
    Schulman et al. 2016, eq. 16. Masked tokens (padding, tool output) are no steps: t + 1 is the next token that is not
    masked, so the result is that of the sequence without them. Their rewards and values are not read. After the last
    token V and A are 0.
    """
    same_shape(rank=2, reward_CL=reward_CL, value_CL=value_CL, mask_CL=mask_CL)
    value_CL = value_CL.detach()
    next_value = next_advantage = torch.zeros_like(value_CL[:, 0])
    columns = []
    for t in reversed(range(mask_CL.shape[1])):
        here, value = mask_CL[:, t], value_CL[:, t]
        advantage = reward_CL[:, t] + gamma * next_value - value + gamma * lam * next_advantage
        next_value = torch.where(here, value, next_value)
        next_advantage = torch.where(here, advantage, next_advantage)
        columns.append(torch.where(here, advantage, torch.zeros_like(advantage)))
    advantage_CL = torch.stack(columns[::-1], 1).detach()
    return advantage_CL, torch.where(mask_CL, advantage_CL + value_CL, torch.zeros_like(value_CL))


def policy_loss(
    logp: Tensor, old_logp: Tensor, advantage: Tensor, *, clip: float = 0.2, dual_clip: float | None = 3.0
) -> Tensor:
    """max(-A rho, -A clip(rho, 1 - clip, 1 + clip)), rho = pi / pi_old; for A < 0 at most -A dual_clip. Per token.

    Schulman et al. 2017, eq. 7; dual clip: Ye et al. 2020. old_logp and advantage are constants. At rho = 1 the
    gradient is that of `reinforce.policy_gradient_loss`.
    """
    same_shape(logp=logp, old_logp=old_logp, advantage=advantage)
    advantage = advantage.detach()
    ratio = log_ratio(logp, old_logp.detach()).exp()
    loss = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip))
    if dual_clip is None:
        return loss
    return torch.where(advantage < 0, torch.minimum(loss, -advantage * dual_clip), loss)


def clipped(logp: Tensor, old_logp: Tensor, advantage: Tensor, *, clip: float = 0.2) -> Tensor:
    """1 where the clip holds a token back (A > 0 and rho > 1 + clip, or A < 0 and rho < 1 - clip), else 0. Per token.

    Its mean is the clip fraction.
    """
    same_shape(logp=logp, old_logp=old_logp, advantage=advantage)
    ratio = log_ratio(logp, old_logp).exp()
    return (((advantage > 0) & (ratio > 1 + clip)) | ((advantage < 0) & (ratio < 1 - clip))).float()


def value_loss(value: Tensor, old_value: Tensor, returns: Tensor, *, clip: float | None = 0.2) -> Tensor:
    """max((V - R)^2, (clip(V, V_old - clip, V_old + clip) - R)^2) / 2; clip None: (V - R)^2 / 2. Per token.

    old_value: the critic's at the rollout. returns: from `gae`. Both are constants.
    """
    same_shape(value=value, old_value=old_value, returns=returns)
    old_value, returns = old_value.detach(), returns.detach()
    loss = (value - returns).square()
    if clip is not None:
        near = old_value + (value - old_value).clamp(-clip, clip)
        loss = torch.maximum(loss, (near - returns).square())
    return loss / 2


def explained_variance(return_moments_3: Tensor, residual_moments_3: Tensor) -> Tensor:
    """1 - Var(R - V) / Var(R): 1 for a perfect critic, 0 for one that says nothing; nan if all returns are equal.

    Both arguments are `masked.masked_moments` of the whole update: of the returns, and of returns - values.
    """
    of_shape((3,), return_moments_3=return_moments_3, residual_moments_3=residual_moments_3)
    (_, total), (_, left) = mean_and_variance(return_moments_3), mean_and_variance(residual_moments_3)
    return torch.where(total > 0, 1 - left / total, torch.full_like(total, torch.nan))


@dataclass(slots=True)
class AdaptiveKL:
    """A KL coefficient that steers the measured KL towards a target. Ziegler et al. 2019, section 2.2.

    coef: what `token_rewards` takes. target: nats per sequence, not per token. horizon: answers over which the
    coefficient may change by about 20%.
    """

    coef: float
    target: float
    horizon: float = 10_000

    def update(self, kl: float, answers: int) -> None:
        """coef *= 1 + clip(kl / target - 1, -0.2, 0.2) answers / horizon, with ``kl`` in nats per sequence."""
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        self.coef *= 1 + error * min(answers / self.horizon, 1.0)

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint keeps; ``AdaptiveKL(**state)`` is the same controller."""
        return asdict(self)
