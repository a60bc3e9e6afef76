"""What a policy-gradient update minimises: the clipped policy loss with its KL terms, and the critic's loss."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from prefiere.algorithms.advantages import Advantages
from prefiere.algorithms.rollout import Rollout
from prefiere.kernels.logprobs import TargetLogprobs
from prefiere.models.measure import Found
from prefiere.models.trunk import CRITIC, Trunk
from prefiere.objectives.ppo import WEIGHT_LIMIT, clipped, kl_k2, kl_k3, log_ratio, policy_loss, value_loss
from prefiere.settings import PolicyGradient
from prefiere.tokens.pack import PackedBatch
from prefiere.train.objective import Metric, Objective, Result, Term


@dataclass
class Policy(Objective):
    """The policy's loss per token: PPO-clip, plus KL to the reference (k2) and to the rollout policy (k3) where asked.

    At the first pass over a rollout the ratio is 1, and the gradient is that of the plain policy gradient. Where other
    weights than those of training drew the answers, each token's loss is weighted (`truncated_weight`). Where the
    rollout does not know the policy's log-probs, this pass is the only one: they are its own, and ``seen`` keeps them
    with their entropies, as `Rollout.keep` takes them.
    """

    rollout: Rollout
    advantages: Advantages
    settings: PolicyGradient
    seen: list[Found[str]] = field(default_factory=list)

    def forward(self, trunk: Trunk, batch: PackedBatch) -> TargetLogprobs:
        """Log-probs at the temperature that the answers were sampled at."""
        known = "logp" in self.rollout.tokens
        out: TargetLogprobs = trunk(batch, temperature=self.settings.temperature, entropy=not known)
        return out

    def __call__(self, out: TargetLogprobs, batch: PackedBatch) -> Result:
        """Loss and metrics of a micro-batch of prompts with their completions."""
        s, logp_N = self.settings, out.logp_N
        ref_N, old_N = _of(self.rollout.tokens["ref"], self.rollout, batch, logp_N), logp_N.detach()
        if "logp" in self.rollout.tokens:
            old_N = _of(self.rollout.tokens["logp"], self.rollout, batch, logp_N)
        elif out.entropy_N is not None:
            said = {"logp": old_N.cpu().numpy(), "entropy": out.entropy_N.cpu().numpy()}
            self.seen.append(Found(tuple(batch.index_G.tolist()), said))
        advantage_N = _of(self.advantages.advantage_N, self.rollout, batch, logp_N)
        loss_N = policy_loss(logp_N, old_N, advantage_N, clip=s.cliprange, dual_clip=s.dual_clip)
        if s.kl_loss_coef:
            loss_N = loss_N + s.kl_loss_coef * kl_k2(logp_N, ref_N)
        if s.kl_rollout_coef:
            loss_N = loss_N + s.kl_rollout_coef * kl_k3(old_N, logp_N)
        weighed = {}
        if "weight" in self.rollout.tokens:
            weight_N = _of(self.rollout.tokens["weight"], self.rollout, batch, logp_N)
            loss_N = loss_N * weight_N
            weighed["tis/clipfrac"] = Metric((weight_N >= WEIGHT_LIMIT).float())
        new_N = logp_N.detach()
        metrics = {
            "loss/policy_avg": Metric(loss_N),
            "policy/clipfrac_avg": Metric(clipped(new_N, old_N, advantage_N, clip=s.cliprange)),
            "policy/approxkl_avg": Metric(kl_k3(old_N, new_N)),
            "val/ratio": Metric(log_ratio(new_N, old_N).exp()),
            **weighed,
        }
        return Result([Term(loss_N, "tokens")], metrics)


@dataclass
class Value(Objective):
    """The critic's loss per token: clipped squared error of its value against the return, times ``vf_coef``."""

    rollout: Rollout
    advantages: Advantages
    vf_coef: float
    cliprange: float | None

    def forward(self, trunk: Trunk, batch: PackedBatch) -> Tensor:
        """Values [N] under the critic's role."""
        return trunk.values(batch, CRITIC)

    def __call__(self, out: Tensor, batch: PackedBatch) -> Result:
        """Loss and metrics of a micro-batch."""
        value_N = out
        old_N = _of(self.rollout.tokens["value"], self.rollout, batch, value_N)
        return_N = _of(self.advantages.return_N, self.rollout, batch, value_N)
        loss_N = value_loss(value_N, old_N, return_N, clip=self.cliprange)
        return Result([Term(self.vf_coef * loss_N, "tokens")], {"loss/value_avg": Metric(loss_N)})


def _of(values_N: np.ndarray, rollout: Rollout, batch: PackedBatch, like: Tensor) -> Tensor:
    """The numbers of a batch's targets, from an array over all tokens of the rollout."""
    return torch.from_numpy(values_N[rollout.places(batch.index_G.cpu().numpy())]).to(like.device)
