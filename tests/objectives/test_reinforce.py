import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import oracles
from prefiere.objectives import masked, reinforce

LOGITS = torch.tensor([0.4, -0.7, 1.1], dtype=torch.float64)
REWARD = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)


def true_gradient() -> Tensor:
    x = LOGITS.clone().requires_grad_()
    (torch.softmax(x, 0) * REWARD).sum().backward()
    assert x.grad is not None
    return x.grad


def expected_gradient(n: int, advantage: Callable[[Tensor], Tensor]) -> Tensor:
    """Mean gradient of the loss per sample, over all ways to draw n actions of a bandit with three arms."""
    x = LOGITS.clone().requires_grad_()
    logp = torch.log_softmax(x, 0)
    total = torch.zeros((), dtype=torch.float64)
    for arms in itertools.product(range(3), repeat=n):
        drawn = torch.tensor(arms)
        chance = logp.detach()[drawn].sum().exp()
        losses = reinforce.policy_gradient_loss(logp[drawn], advantage(REWARD[drawn]))
        total = total + chance * losses.mean()
    total.backward()
    assert x.grad is not None
    return x.grad


def test_policy_gradient_by_hand() -> None:
    logp = torch.tensor([-1.0, -2.0], requires_grad=True)
    advantage = torch.tensor([3.0, -0.5], requires_grad=True)
    y = reinforce.policy_gradient_loss(logp, advantage)
    assert y.tolist() == [3.0, -1.0]
    y.sum().backward()
    assert logp.grad is not None
    assert logp.grad.tolist() == [-3.0, 0.5]
    assert advantage.grad is None


def test_each_unbiased_advantage_gives_the_gradient_of_the_expected_reward() -> None:
    target = -true_gradient()
    torch.testing.assert_close(expected_gradient(1, lambda r: r), target)
    torch.testing.assert_close(expected_gradient(3, lambda r: reinforce.rloo_advantage(r, 3)), target)
    leave_one_out = expected_gradient(3, lambda r: reinforce.reinforce_advantage(r, masked.masked_moments(r)))
    torch.testing.assert_close(leave_one_out, target)


def test_grpo_is_another_objective() -> None:
    got, target = expected_gradient(3, lambda r: reinforce.grpo_advantage(r, 3)), -true_gradient()
    cosine = torch.cosine_similarity(got, target, 0).item()
    assert 0.5 < cosine < 0.999


@given(st.lists(st.floats(-10, 10), min_size=4, max_size=4), st.lists(st.floats(-10, 10), min_size=4, max_size=4))
def test_groups_against_the_oracle(first: list[float], second: list[float]) -> None:
    rewards = torch.tensor(first + second, dtype=torch.float64)
    expected = oracles.rloo(first) + oracles.rloo(second)
    assert reinforce.rloo_advantage(rewards, 4).tolist() == pytest.approx(expected, abs=1e-12)
    expected = oracles.grpo(first) + oracles.grpo(second)
    assert reinforce.grpo_advantage(rewards, 4).tolist() == pytest.approx(expected, abs=1e-8)


def test_groups_by_hand() -> None:
    rewards = torch.tensor([1.0, 2.0, 6.0, 5.0, 5.0, 5.0])
    # 1 - (2 + 6)/2 = -3; 2 - 3.5 = -1.5; 6 - 1.5 = 4.5.
    torch.testing.assert_close(reinforce.rloo_advantage(rewards, 3), torch.tensor([-3.0, -1.5, 4.5, 0.0, 0.0, 0.0]))
    # Mean 3, sum of squares 4 + 1 + 9 = 14, std sqrt(7).
    expected = torch.tensor([-2.0, -1.0, 3.0, 0.0, 0.0, 0.0]) / math.sqrt(7)
    torch.testing.assert_close(reinforce.grpo_advantage(rewards, 3), expected, rtol=1e-4, atol=1e-6)


def test_reinforce_baseline_by_hand_and_over_micro_batches() -> None:
    rewards = torch.tensor([1.0, 2.0, 6.0])
    moments = masked.masked_moments(rewards[:1]) + masked.masked_moments(rewards[1:])
    pieces = [reinforce.reinforce_advantage(part, moments) for part in (rewards[:1], rewards[1:])]
    torch.testing.assert_close(torch.cat(pieces), torch.tensor([-3.0, -1.5, 4.5]))
    # A single sample has no other to compare with.
    one = torch.tensor([4.0])
    assert reinforce.reinforce_advantage(one, masked.masked_moments(one)).tolist() == [4.0]


@pytest.mark.parametrize("advantage", [reinforce.rloo_advantage, reinforce.grpo_advantage])
@pytest.mark.parametrize("k", [1, 4])
def test_groups_that_do_not_work_out_are_an_error(advantage: Callable[[Tensor, int], Tensor], k: int) -> None:
    with pytest.raises(ValueError, match=f"6 rewards do not make groups of {k}"):
        advantage(torch.zeros(6), k)
