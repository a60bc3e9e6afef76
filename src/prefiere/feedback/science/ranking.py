"""Which model people prefer: Bradley-Terry strengths with intervals clustered by prompt, raw and length-controlled."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Game:
    """One vote between two models' answers: ``won`` is 1 where the first won, 0.5 for a tie.

    ``longer`` is how much longer the first answer is, log(characters) less log(characters).
    """

    first: Hashable
    second: Hashable
    won: float
    prompt: Hashable
    longer: float = 0.0


@dataclass(frozen=True, slots=True)
class Rank:
    """A model's strength in log-odds against the mean of all models, with its 95% interval, and its votes."""

    model: Hashable
    strength: float
    low: float
    high: float
    votes: int


def fit_bradley_terry(games: Sequence[Game], *, by_length: bool = False, ridge: float = 0.01) -> list[Rank]:
    """Maximum-likelihood strengths (Bradley and Terry 1952), ties as half a win for each, best first.

    P(first wins) = sigmoid(s_first - s_second [+ g * longer]); with ``by_length`` the strengths are what remains once
    the length of answers is given its own coefficient g. A small ridge keeps a model that never lost finite. Intervals
    are those of the sandwich H^-1 (sum over prompts of (sum of scores)(sum of scores)') H^-1, with factor G/(G-1).
    """
    models = list(dict.fromkeys(m for g in games for m in (g.first, g.second)))
    if not games:
        return []
    at = {m: i for i, m in enumerate(models)}
    x = np.zeros((len(games), len(models) + by_length))
    for i, g in enumerate(games):
        x[i, at[g.first]] += 1
        x[i, at[g.second]] -= 1
        if by_length:
            x[i, -1] = g.longer
    y = np.array([g.won for g in games])
    theta, hessian = logistic(x, y, ridge)
    p = 1 / (1 + np.exp(-x @ theta))
    scores = x * (y - p)[:, None]
    prompts = {q: i for i, q in enumerate(dict.fromkeys(g.prompt for g in games))}
    summed = np.zeros((len(prompts), x.shape[1]))
    np.add.at(summed, [prompts[g.prompt] for g in games], scores)
    clusters = len(prompts)
    inverse = np.linalg.inv(hessian)
    centre = np.eye(len(models), x.shape[1]) - np.pad(
        np.full((len(models), len(models)), 1 / len(models)), ((0, 0), (0, int(by_length)))
    )
    strength = centre @ theta
    error = np.full(len(models), np.nan)
    if clusters > 1:
        covariance = inverse @ (summed.T @ summed) @ inverse * clusters / (clusters - 1)
        error = np.sqrt(np.maximum(0.0, np.diag(centre @ covariance @ centre.T)))
    votes = np.abs(x[:, : len(models)]).sum(0).astype(int)
    ranks = [
        Rank(m, float(s), float(s - 1.96 * e), float(s + 1.96 * e), int(n))
        for m, s, e, n in zip(models, strength, error, votes, strict=True)
    ]
    return sorted(ranks, key=lambda r: -r.strength)


def logistic(x: np.ndarray, y: np.ndarray, ridge: float, weights: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
    """Newton's method for a logistic regression with an L2 penalty of ``ridge`` / 2 |theta|^2, without intercept.

    x [n, d], y [n] in [0, 1], weights [n] -> theta [d], the Hessian [d, d] there.
    """
    w = np.ones(len(y)) if weights is None else weights
    theta = np.zeros(x.shape[1])
    hessian = np.eye(x.shape[1])
    for _ in range(50):
        p = 1 / (1 + np.exp(-np.clip(x @ theta, -50, 50)))
        hessian = (x * (w * p * (1 - p))[:, None]).T @ x + ridge * np.eye(x.shape[1])
        step = np.linalg.solve(hessian, x.T @ (w * (y - p)) - ridge * theta)
        size = float(np.linalg.norm(step))
        theta = theta + step * min(1.0, 5 / size if size else 1.0)
        if size < 1e-10:
            break
    return theta, hessian
