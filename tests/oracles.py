"""Slow, plain implementations that the objectives are held against: Python floats, one item at a time, no torch.

They follow the papers' sums and case distinctions, not the vectorised forms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence


def slope(f: Callable[[list[float]], float], x: Sequence[float], h: float = 1e-5) -> list[float]:
    """Gradient of ``f`` at ``x`` by central differences of fourth order."""
    result = []
    for i in range(len(x)):

        def at(step: float, i: int = i) -> float:
            return f([v + step if j == i else v for j, v in enumerate(x)])

        result.append((8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h))
    return result


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def softplus(x: float) -> float:
    """log(1 + e^x) = -log sigmoid(-x)."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


# The DPO family. A pair is (policy_w, policy_l, reference_w, reference_l, tokens_w, tokens_l, label): log-probs summed.

Pair = tuple[float, float, float, float, float, float, float]


def _flip(pair: Pair) -> Pair:
    pw, pl, rw, rl, nw, nl, label = pair
    return pl, pw, rl, rw, nl, nw, 1 - label


def _mixture(loss: Callable[[Pair], float], pair: Pair, eps: float) -> float:
    """Over the four cases: the label says w or l, and is true or flipped."""
    p = pair[6]
    w_first, l_first = loss(pair), loss(_flip(pair))
    return p * ((1 - eps) * w_first + eps * l_first) + (1 - p) * ((1 - eps) * l_first + eps * w_first)


def _dpop(pair: Pair, lam: float) -> float:
    pw, _, rw, *_ = pair
    return lam * max(0.0, rw - pw)


def _dpo_logit(pair: Pair, beta: float, dpop_lambda: float) -> float:
    pw, pl, rw, rl, *_ = pair
    return beta * ((pw - pl) - (rw - rl) - _dpop(pair, dpop_lambda))


def dpo(pair: Pair, *, beta: float = 0.1, label_smoothing: float = 0.0, dpop_lambda: float = 0.0) -> float:
    return _mixture(lambda q: softplus(-_dpo_logit(q, beta, dpop_lambda)), pair, label_smoothing)


def hinge(pair: Pair, *, beta: float = 0.1, label_smoothing: float = 0.0, dpop_lambda: float = 0.0) -> float:
    return _mixture(lambda q: max(0.0, 1 - _dpo_logit(q, beta, dpop_lambda)), pair, label_smoothing)


def ipo(pair: Pair, *, beta: float = 0.1, label_smoothing: float = 0.0, dpop_lambda: float = 0.0) -> float:
    def one(q: Pair) -> float:
        pw, pl, rw, rl, nw, nl, _ = q
        gap = (pw - rw) / nw - (pl - rl) / nl - dpop_lambda * max(0.0, (rw - pw) / nw)
        return (gap - 0.5 / beta) ** 2

    return _mixture(one, pair, label_smoothing)


def robust(pair: Pair, *, beta: float = 0.1, label_smoothing: float = 0.0, dpop_lambda: float = 0.0) -> float:
    eps = label_smoothing

    def one(q: Pair) -> float:
        seen = softplus(-_dpo_logit(q, beta, dpop_lambda))
        other = softplus(-_dpo_logit(_flip(q), beta, dpop_lambda))
        return ((1 - eps) * seen - eps * other) / (1 - 2 * eps)

    return _mixture(one, pair, 0.0)


def simpo(pair: Pair, *, beta: float = 2.0, simpo_gamma: float = 1.0, label_smoothing: float = 0.0) -> float:
    def one(q: Pair) -> float:
        pw, pl, _, _, nw, nl, _ = q
        return softplus(-(beta / nw * pw - beta / nl * pl - simpo_gamma))

    return _mixture(one, pair, label_smoothing)


def sft(pair: Pair) -> float:
    return _mixture(lambda q: -q[0] / q[4], pair, 0.0)


def cpo(pair: Pair, *, beta: float = 0.1, label_smoothing: float = 0.0) -> float:
    return _mixture(lambda q: softplus(beta * (q[1] - q[0])), pair, label_smoothing) + sft(pair)


def orpo(pair: Pair, *, beta: float = 0.1, label_smoothing: float = 0.0) -> float:
    def one(q: Pair) -> float:
        p_w, p_l = math.exp(q[0] / q[4]), math.exp(q[1] / q[5])
        odds_ratio = (p_w / (1 - p_w)) / (p_l / (1 - p_l))
        return -beta * math.log(odds_ratio / (1 + odds_ratio))

    return sft(pair) + _mixture(one, pair, label_smoothing)


def kto(
    policy: float,
    reference: float,
    label: float,
    z: float,
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> float:
    """lambda_y - v(x, y), as in the paper."""
    r = policy - reference
    good = desirable_weight - desirable_weight * sigmoid(beta * (r - z))
    bad = undesirable_weight - undesirable_weight * sigmoid(beta * (z - r))
    return label * good + (1 - label) * bad


# Reward model.


def bradley_terry(chosen: float, rejected: float, label: float = 1.0, margin: float = 0.0) -> float:
    if math.isnan(margin):
        margin = 0.0
    return label * softplus(rejected + margin - chosen) + (1 - label) * softplus(chosen + margin - rejected)


# Trajectories: one completion, a list per quantity; None of the masked tokens exists.


def gae(
    rewards: Sequence[float], values: Sequence[float], mask: Sequence[bool], gamma: float, lam: float
) -> tuple[list[float], list[float]]:
    """A_t = sum over l of (gamma lam)^l delta_(t+l), on the sequence with masked tokens cut out."""
    kept = [t for t, m in enumerate(mask) if m]
    r, v = [rewards[t] for t in kept], [values[t] for t in kept] + [0.0]
    delta = [r[i] + gamma * v[i + 1] - v[i] for i in range(len(kept))]
    advantages, returns = [0.0] * len(mask), [0.0] * len(mask)
    for i, t in enumerate(kept):
        advantages[t] = math.fsum((gamma * lam) ** (j - i) * delta[j] for j in range(i, len(kept)))
        returns[t] = advantages[t] + v[i]
    return advantages, returns


def discounted_returns(rewards: Sequence[float], mask: Sequence[bool], gamma: float) -> list[float]:
    kept = [t for t, m in enumerate(mask) if m]
    result = [0.0] * len(mask)
    for i, t in enumerate(kept):
        result[t] = math.fsum(gamma ** (j - i) * rewards[kept[j]] for j in range(i, len(kept)))
    return result


def token_rewards(score: float, kl: Sequence[float], mask: Sequence[bool], kl_coef: float) -> list[float]:
    result = [-kl_coef * k if m else 0.0 for k, m in zip(kl, mask, strict=True)]
    for t in reversed(range(len(mask))):
        if mask[t]:
            result[t] += score
            return result
    raise AssertionError("nothing to score")


def policy_loss(logp: float, old: float, advantage: float, clip: float = 0.2, dual_clip: float | None = 3.0) -> float:
    """By cases of the sign of the advantage."""
    ratio = math.exp(min(max(logp - old, -20.0), 20.0))
    if advantage >= 0:
        return -advantage * min(ratio, 1 + clip)
    worst = math.inf if dual_clip is None else dual_clip
    return -advantage * min(max(ratio, 1 - clip), worst)


def value_loss(value: float, old: float, target: float, clip: float | None = 0.2) -> float:
    near = value if clip is None else min(max(value, old - clip), old + clip)
    return max(0.5 * (value - target) ** 2, 0.5 * (near - target) ** 2)


def rloo(rewards: Sequence[float]) -> list[float]:
    result = []
    for i, r in enumerate(rewards):
        others = [s for j, s in enumerate(rewards) if j != i]
        result.append(r - math.fsum(others) / len(others))
    return result


def grpo(rewards: Sequence[float], eps: float = 1e-4) -> list[float]:
    mean = math.fsum(rewards) / len(rewards)
    std = math.sqrt(math.fsum((r - mean) ** 2 for r in rewards) / (len(rewards) - 1))
    return [(r - mean) / (std + eps) for r in rewards]
