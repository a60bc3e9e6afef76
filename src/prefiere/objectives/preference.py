"""The DPO family: what a comparison of two answers says about a policy, as one loss per pair.

Every loss is the expectation of ``loss(preferred, other)`` over which of the two answers was the preferred one: soft
labels, ties and label smoothing mean the same everywhere, and swapping the answers with label 1 - p changes nothing.

Values are natural log-probs (nats), summed over the scored tokens of a completion. Losses are per pair or completion,
unreduced, in fp32 (float64 for float64 input). Weights and denominators are the engine's. Arguments of other shapes
than stated raise ValueError, here and in the files beside (`shapes`).

Suffixes: _C completions, _G groups (pairs).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from prefiere.objectives.shapes import of_shape, same_shape


def _fp32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32)) if x.is_floating_point() else x.float()


@dataclass(frozen=True, slots=True)
class PairBatch:
    """Two completions each of G prompts, as a loss sees them; every tensor is [G].

    policy_*, reference_*: sum of the log-probs of the scored tokens, nats (a loss without reference reads none).
    *_tokens: how many tokens that is. label_G: probability in [0, 1] that the chosen answer is the preferred one.
    """

    policy_chosen_G: Tensor
    policy_rejected_G: Tensor
    reference_chosen_G: Tensor
    reference_rejected_G: Tensor
    chosen_tokens_G: Tensor
    rejected_tokens_G: Tensor
    label_G: Tensor

    def __post_init__(self) -> None:
        same_shape(rank=1, **{f.name: getattr(self, f.name) for f in fields(self)})

    @classmethod
    def from_completions(
        cls, policy_C: Tensor, reference_C: Tensor, tokens_C: Tensor, label_G: Tensor | None = None
    ) -> Self:
        """From completions in group order, the chosen one first: c = 2 g for chosen, 2 g + 1 for rejected."""
        same_shape(rank=1, policy_C=policy_C, reference_C=reference_C, tokens_C=tokens_C)
        policy_chosen, policy_rejected = policy_C.view(-1, 2).unbind(1)
        reference_chosen, reference_rejected = reference_C.view(-1, 2).unbind(1)
        chosen_tokens, rejected_tokens = tokens_C.view(-1, 2).unbind(1)
        label = torch.ones_like(_fp32(policy_chosen)) if label_G is None else label_G
        return cls(
            policy_chosen, policy_rejected, reference_chosen, reference_rejected, chosen_tokens, rejected_tokens, label
        )

    def logps(self, *, per_token: bool = False) -> tuple[Tensor, Tensor]:
        """log pi(y | x) of chosen and rejected, [G] each, nats; or its mean over tokens."""
        chosen, rejected = _fp32(self.policy_chosen_G), _fp32(self.policy_rejected_G)
        return self._per_token(chosen, rejected) if per_token else (chosen, rejected)

    def logratios(self, *, per_token: bool = False) -> tuple[Tensor, Tensor]:
        """log pi(y | x) - log pi_ref(y | x) of chosen and rejected, [G] each, nats; or its mean over tokens."""
        chosen, rejected = self.logps()
        chosen, rejected = chosen - _fp32(self.reference_chosen_G), rejected - _fp32(self.reference_rejected_G)
        return self._per_token(chosen, rejected) if per_token else (chosen, rejected)

    def probability(self, label_smoothing: float = 0.0) -> Tensor:
        """p' = p (1 - eps) + (1 - p) eps: that chosen is the preferred one, when a share eps of labels is flipped."""
        label = _fp32(self.label_G)
        return label * (1 - label_smoothing) + (1 - label) * label_smoothing

    def _per_token(self, chosen: Tensor, rejected: Tensor) -> tuple[Tensor, Tensor]:
        return chosen / self.chosen_tokens_G.clamp(min=1), rejected / self.rejected_tokens_G.clamp(min=1)


def _expected(loss: Callable[[Tensor, Tensor], Tensor], sides: tuple[Tensor, Tensor], probability_G: Tensor) -> Tensor:
    """p loss(chosen, rejected) + (1 - p) loss(rejected, chosen)."""
    chosen, rejected = sides
    return probability_G * loss(chosen, rejected) + (1 - probability_G) * loss(rejected, chosen)


def _margin(preferred: Tensor, other: Tensor, dpop_lambda: float) -> Tensor:
    """Difference of log-ratios, less DPOP's penalty (Pal et al. 2024) where the preferred answer has become less likely
    than under the reference."""
    difference = preferred - other
    return difference - dpop_lambda * F.relu(-preferred) if dpop_lambda else difference


def dpo_loss(batch: PairBatch, *, beta: float = 0.1, label_smoothing: float = 0.0, dpop_lambda: float = 0.0) -> Tensor:
    """-log sigmoid(beta (h_w - h_l)), h = log pi(y|x) - log pi_ref(y|x), summed over tokens. Returns [G].

    Rafailov et al. 2023, eq. 7. label_smoothing: Mitchell 2023 (cDPO). dpop_lambda: Pal et al. 2024 (DPOP), who
    subtract lambda max(0, -h_w) inside the bracket.
    """

    def loss(preferred: Tensor, other: Tensor) -> Tensor:
        return -F.logsigmoid(beta * _margin(preferred, other, dpop_lambda))

    return _expected(loss, batch.logratios(), batch.probability(label_smoothing))


def ipo_loss(batch: PairBatch, *, beta: float = 0.1, label_smoothing: float = 0.0, dpop_lambda: float = 0.0) -> Tensor:
    """(h_w - h_l - 1 / (2 beta))^2, h = mean over tokens of log pi - log pi_ref. Returns [G].

    Azar et al. 2023, eq. 17, where beta is tau and h is the sum over tokens; the mean is what its authors use, and TRL.
    """

    def loss(preferred: Tensor, other: Tensor) -> Tensor:
        return (_margin(preferred, other, dpop_lambda) - 1 / (2 * beta)).square()

    return _expected(loss, batch.logratios(per_token=True), batch.probability(label_smoothing))


def hinge_loss(
    batch: PairBatch, *, beta: float = 0.1, label_smoothing: float = 0.0, dpop_lambda: float = 0.0
) -> Tensor:
    """max(0, 1 - beta (h_w - h_l)), h = log pi - log pi_ref, summed over tokens. Returns [G].

    SLiC's hinge (Zhao et al. 2023) on log-ratios, as Liu et al. 2023 (RSO) have it: "hinge-norm".
    """

    def loss(preferred: Tensor, other: Tensor) -> Tensor:
        return F.relu(1 - beta * _margin(preferred, other, dpop_lambda))

    return _expected(loss, batch.logratios(), batch.probability(label_smoothing))


def robust_loss(
    batch: PairBatch, *, beta: float = 0.1, label_smoothing: float = 0.0, dpop_lambda: float = 0.0
) -> Tensor:
    """((1 - eps) l(h_w - h_l) - eps l(h_l - h_w)) / (1 - 2 eps), l = DPO's loss, eps = label_smoothing. Returns [G].

    Chowdhury et al. 2024: the mean over labels flipped with probability eps is DPO's loss on the true ones. Unbounded
    below for eps > 0. Raises ValueError unless 0 <= eps < 0.5.
    """
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing must be in [0, 0.5) for the robust loss, not {label_smoothing}")

    def loss(preferred: Tensor, other: Tensor) -> Tensor:
        given = -F.logsigmoid(beta * _margin(preferred, other, dpop_lambda))
        flipped = -F.logsigmoid(beta * _margin(other, preferred, dpop_lambda))
        return ((1 - label_smoothing) * given - label_smoothing * flipped) / (1 - 2 * label_smoothing)

    return _expected(loss, batch.logratios(), batch.probability())


def simpo_loss(
    batch: PairBatch, *, beta: float = 2.0, simpo_gamma: float = 1.0, label_smoothing: float = 0.0
) -> Tensor:
    """-log sigmoid(beta (m_w - m_l) - gamma), m = mean over tokens of log pi(y|x). No reference. Returns [G].

    Meng et al. 2024, eq. 6. A flipped label asks the other answer to win by gamma.
    """

    def loss(preferred: Tensor, other: Tensor) -> Tensor:
        return -F.logsigmoid(beta * (preferred - other) - simpo_gamma)

    return _expected(loss, batch.logps(per_token=True), batch.probability(label_smoothing))


def cpo_loss(batch: PairBatch, *, beta: float = 0.1, label_smoothing: float = 0.0) -> Tensor:
    """-log sigmoid(beta (log pi(y_w|x) - log pi(y_l|x))) plus `sft_loss`. No reference. Returns [G].

    Xu et al. 2024, eq. 3, with the behaviour-cloning term taken per token.
    """

    def loss(preferred: Tensor, other: Tensor) -> Tensor:
        return -F.logsigmoid(beta * (preferred - other))

    return _expected(loss, batch.logps(), batch.probability(label_smoothing)) + sft_loss(batch)


def orpo_loss(batch: PairBatch, *, beta: float = 0.1, label_smoothing: float = 0.0) -> Tensor:
    """`sft_loss` plus -beta log sigmoid(log odds_w - log odds_l). No reference. Returns [G].

    odds = P / (1 - P), log P = mean over tokens of log pi(y|x). Hong et al. 2024, eq. 4, 6 and 7, where beta is lambda.
    """

    def log_odds(mean_logp: Tensor) -> Tensor:
        below_one = mean_logp.clamp(max=-1e-6)  # P = 1 has infinite odds
        return below_one - torch.log(-torch.expm1(below_one))

    def loss(preferred: Tensor, other: Tensor) -> Tensor:
        return -beta * F.logsigmoid(log_odds(preferred) - log_odds(other))

    return sft_loss(batch) + _expected(loss, batch.logps(per_token=True), batch.probability(label_smoothing))


def sft_loss(batch: PairBatch) -> Tensor:
    """-mean over tokens of log pi(y_w|x): imitate the preferred answer. Returns [G], nats per token.

    Added with a weight to a preference loss it gives RPO (Pang et al. 2024, section 2). With a soft label both answers
    count, by their probability of being the preferred one; label smoothing does not apply.
    """
    return _expected(lambda preferred, other: -preferred, batch.logps(per_token=True), batch.probability())


def kto_loss(
    logratio_C: Tensor,
    label_C: Tensor,
    baseline: Tensor | float,
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """w_D (1 - sigmoid(beta (h - z))) if desirable, w_U (1 - sigmoid(beta (z - h))) if not. Returns [C].

    logratio_C: h = log pi(y|x) - log pi_ref(y|x), summed over tokens. label_C: 1 desirable, 0 not (or a probability).
    baseline: z, from `kto_baseline`, without gradient. Ethayarajh et al. 2024, section 4.
    """
    same_shape(rank=1, logratio_C=logratio_C, label_C=label_C)
    of_shape((), baseline=baseline)
    label = _fp32(label_C)
    x = beta * (_fp32(logratio_C) - baseline)
    return label * desirable_weight * torch.sigmoid(-x) + (1 - label) * undesirable_weight * torch.sigmoid(x)


def kto_baseline(logratio_sum: Tensor, count: Tensor | int) -> Tensor:
    """z = max(0, mean log-ratio of mismatched completions), an estimate of KL(pi || pi_ref) in nats, a scalar.

    logratio_sum, count: over the whole update, all processes together, each prompt with another prompt's completion.
    """
    of_shape((), logratio_sum=logratio_sum, count=count)
    return (logratio_sum.detach() / count).clamp(min=0.0)


@dataclass(frozen=True, slots=True)
class Loss:
    """What a training loop must know of a loss besides its function.

    per: what one value belongs to. needs_reference: whether reference log-probs are read. per_token: whether log-probs
    are divided by token counts. options: keyword arguments of the function, named as in a recipe.
    """

    function: Callable[..., Tensor]
    needs_reference: bool = True
    per_token: bool = False
    per: Literal["pair", "completion"] = "pair"

    @property
    def options(self) -> tuple[str, ...]:
        parameters = inspect.signature(self.function).parameters.values()
        return tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)


LOSSES: dict[str, Loss] = {
    "sigmoid": Loss(dpo_loss),
    "ipo": Loss(ipo_loss, per_token=True),
    "hinge": Loss(hinge_loss),
    "robust": Loss(robust_loss),
    "simpo": Loss(simpo_loss, needs_reference=False, per_token=True),
    "orpo": Loss(orpo_loss, needs_reference=False, per_token=True),
    "cpo": Loss(cpo_loss, needs_reference=False),
    "kto": Loss(kto_loss, per="completion"),
}
"""Every ``loss_type`` of a recipe."""


def rewards(batch: PairBatch, loss: Loss, *, beta: float) -> tuple[Tensor, Tensor]:
    """The rewards that a policy implies for chosen and rejected, [G] each, without gradient.

    beta (log pi - log pi_ref), summed over tokens, where the loss has a reference (Rafailov et al. 2023, section 4; IPO
    too, so that all are in the same unit). Otherwise beta log pi, per token where the loss is.
    """
    chosen, rejected = batch.logratios() if loss.needs_reference else batch.logps(per_token=loss.per_token)
    return beta * chosen.detach(), beta * rejected.detach()


def accuracies(margin_G: Tensor, *, noise: float = 0.0, label_G: Tensor | None = None) -> Tensor:
    """1 where the reward margin is above ``noise``, 0 where it is below -noise, 0.5 between (a tie). Returns [G].

    With labels, the expected agreement with them: p a + (1 - p) (1 - a).
    """
    same_shape(rank=1, margin_G=margin_G, label_G=label_G)
    margin = margin_G.detach()
    right = 0.5 * (1 + (margin > noise).float() - (margin < -noise).float())
    return right if label_G is None else label_G * right + (1 - label_G) * (1 - right)
