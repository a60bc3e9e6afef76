import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import oracles
from prefiere.objectives import masked, ppo, reinforce

number = st.floats(-5, 5)
step = st.tuples(number, number, st.booleans())


def rows(steps: list[tuple[float, float, bool]]) -> tuple[Tensor, Tensor, Tensor]:
    rewards, values, mask = zip(*steps, strict=True)
    return (*(torch.tensor([x], dtype=torch.float64) for x in (rewards, values)), torch.tensor([mask]))


def test_gae_with_a_masked_gap_by_hand() -> None:
    # Own tokens at 0, 1, 4; a tool wrote 2 and 3, and 5 is padding. gamma 0.9, lambda 0.5, so gamma lambda = 0.45.
    # delta_4 = 3 - 1 = 2;                       A_4 = 2
    # delta_1 = 0 + 0.9 * V_4 - V_1 = 0.9 - 2 = -1.1;   A_1 = -1.1 + 0.45 * 2 = -0.2
    # delta_0 = 1 + 0.9 * V_1 - V_0 = 1 + 1.8 - 0.5 = 2.3;   A_0 = 2.3 + 0.45 * -0.2 = 2.21
    nan = math.nan
    reward = torch.tensor([[1.0, 0.0, 7.0, nan, 3.0, 9.0]])
    value = torch.tensor([[0.5, 2.0, nan, 8.0, 1.0, nan]], requires_grad=True)
    mask = torch.tensor([[True, True, False, False, True, False]])
    advantage, returns = ppo.gae(reward, value, mask, gamma=0.9, lam=0.5)
    torch.testing.assert_close(advantage, torch.tensor([[2.21, -0.2, 0.0, 0.0, 2.0, 0.0]]))
    torch.testing.assert_close(returns, torch.tensor([[2.71, 1.8, 0.0, 0.0, 3.0, 0.0]]))
    assert not advantage.requires_grad
    assert not returns.requires_grad


@given(st.lists(step, min_size=1, max_size=8), st.floats(0, 1), st.floats(0, 1))
def test_gae_against_the_oracle(steps: list[tuple[float, float, bool]], gamma: float, lam: float) -> None:
    reward, value, mask = rows(steps)
    advantage, returns = ppo.gae(reward, value, mask, gamma=gamma, lam=lam)
    expected = oracles.gae(reward[0].tolist(), value[0].tolist(), mask[0].tolist(), gamma, lam)
    assert advantage[0].tolist() == pytest.approx(expected[0], abs=1e-10)
    assert returns[0].tolist() == pytest.approx(expected[1], abs=1e-10)
    discounted = ppo.discounted_returns(reward, mask, gamma=gamma)
    assert discounted[0].tolist() == pytest.approx(
        oracles.discounted_returns(reward[0].tolist(), mask[0].tolist(), gamma), abs=1e-10
    )


def test_gae_does_not_depend_on_padding_or_company() -> None:
    torch.manual_seed(0)
    reward, value = torch.randn(1, 4), torch.randn(1, 4)
    alone = ppo.gae(reward, value, torch.ones(1, 4, dtype=torch.bool))
    junk, mask = torch.randn(3, 9), torch.zeros(3, 9, dtype=torch.bool)
    for offset in (0, 2, 5):
        mask[:] = torch.rand(3, 9) < 0.5
        mask[1] = False
        mask[1, offset : offset + 4] = True
        r, v = junk.clone(), junk.clone()
        r[1, offset : offset + 4], v[1, offset : offset + 4] = reward[0], value[0]
        for got, expected in zip(ppo.gae(r, v, mask), alone, strict=True):
            assert torch.equal(got[1, offset : offset + 4], expected[0])


def test_gae_at_lambda_1_is_return_less_value_and_at_0_the_one_step_error() -> None:
    # gamma 1, rewards 0 0 1, values 0.2 0.5 0.8: returns are 1 everywhere.
    reward, value = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.2, 0.5, 0.8]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    advantage, returns = ppo.gae(reward, value, mask, lam=1.0)
    torch.testing.assert_close(advantage, torch.tensor([[0.8, 0.5, 0.2]]))
    torch.testing.assert_close(returns, torch.ones(1, 3))
    torch.testing.assert_close(ppo.gae(reward, value, mask, lam=0.0)[0], torch.tensor([[0.3, 0.3, 0.2]]))


def test_token_rewards_put_the_score_on_the_last_own_token() -> None:
    kl = torch.tensor([[0.5, -1.0, math.nan, 2.0], [1.0, math.nan, 3.0, math.nan]])
    mask = torch.tensor([[True, True, False, True], [True, False, True, False]])
    got = ppo.token_rewards(torch.tensor([10.0, -1.0]), kl, mask, kl_coef=0.1)
    torch.testing.assert_close(got, torch.tensor([[-0.05, 0.1, 0.0, 9.8], [-0.1, 0.0, -1.3, 0.0]]))
    for row in range(2):
        expected = oracles.token_rewards([10.0, -1.0][row], kl[row].tolist(), mask[row].tolist(), 0.1)
        assert got[row].tolist() == pytest.approx(expected, abs=1e-6)
    with pytest.raises(ValueError, match="completion 1 has no token"):
        ppo.token_rewards(torch.zeros(2), kl, torch.tensor([[True] * 4, [False] * 4]), kl_coef=0.1)


# KL estimators, by enumeration of a distribution over five tokens.

LOGITS = torch.tensor([0.3, -1.2, 0.8, 2.0, -0.5], dtype=torch.float64)
OTHER = torch.log_softmax(torch.tensor([1.0, 0.1, -0.4, 0.9, 0.2], dtype=torch.float64), 0)


def kl(logp: Tensor, other: Tensor) -> Tensor:
    return (logp.exp() * (logp - other)).sum()


def test_kl_estimators_in_expectation() -> None:
    logp = torch.log_softmax(LOGITS, 0)
    p, true = logp.exp(), kl(logp, OTHER)
    torch.testing.assert_close((p * ppo.kl_k1(logp, OTHER)).sum(), true)
    torch.testing.assert_close((p * ppo.kl_k3(logp, OTHER)).sum(), true)
    assert (ppo.kl_k3(logp, OTHER) >= 0).all()
    assert abs((p * ppo.kl_k2(logp, OTHER)).sum() / true - 1) > 0.05  # biased this far apart
    near = torch.log_softmax(LOGITS + 1e-3 * OTHER, 0)
    torch.testing.assert_close((near.exp() * ppo.kl_k2(near, logp)).sum(), kl(near, logp), rtol=1e-2, atol=0)


def test_kl_estimators_as_losses_in_expectation() -> None:
    """Tokens come from pi itself; the gradient of the sampled loss goes through log pi only."""

    def gradient(f: Callable[[Tensor], Tensor], weights: Tensor | None = None) -> Tensor:
        x = LOGITS.clone().requires_grad_()
        logp = torch.log_softmax(x, 0)
        sampled = logp.detach().exp() if weights is None else weights
        (sampled * f(logp)).sum().backward()
        assert x.grad is not None
        return x.grad

    x = LOGITS.clone().requires_grad_()
    kl(torch.log_softmax(x, 0), OTHER).backward()
    forward, reverse = x.grad, gradient(lambda logp: OTHER - logp, OTHER.exp())
    assert forward is not None
    torch.testing.assert_close(gradient(lambda logp: ppo.kl_k2(logp, OTHER)), forward)
    assert gradient(lambda logp: ppo.kl_k1(logp, OTHER)).abs().max() < 1e-12
    torch.testing.assert_close(gradient(lambda logp: ppo.kl_k3(logp, OTHER)), reverse)
    # Tokens from a fixed policy, as in PPO's later epochs: k3 in its second argument is right.
    torch.testing.assert_close(gradient(lambda logp: ppo.kl_k3(OTHER, logp), OTHER.exp()), reverse)


def test_kl_estimators_by_hand() -> None:
    # log-ratio 0.5: k1 = 0.5, k2 = 0.125, k3 = e^-0.5 - 1 + 0.5.
    a, b = torch.tensor(-1.0), torch.tensor(-1.5)
    assert ppo.kl_k1(a, b).item() == 0.5
    assert ppo.kl_k2(a, b).item() == 0.125
    assert ppo.kl_k3(a, b).item() == pytest.approx(math.exp(-0.5) - 0.5)


# Losses per token.


@given(number, number, number, st.sampled_from([None, 3.0, 1.5]))
def test_policy_loss_against_the_oracle(logp: float, old: float, advantage: float, dual: float | None) -> None:
    x = torch.tensor([logp], dtype=torch.float64, requires_grad=True)
    old_t, advantage_t = (torch.tensor([v], dtype=torch.float64) for v in (old, advantage))
    y = ppo.policy_loss(x, old_t, advantage_t, dual_clip=dual)
    assert y.item() == pytest.approx(oracles.policy_loss(logp, old, advantage, dual_clip=dual), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope", "held"),
    [
        (1.0, 2.0, -2.0, -2.0, 0),  # inside: -A rho, and its slope in log pi is -A rho
        (1.1, 2.0, -2.2, -2.2, 0),
        (1.5, 2.0, -2.4, 0.0, 1),  # better, and far enough
        (0.5, 2.0, -1.0, -1.0, 0),  # worse: free to come back
        (1.0, -2.0, 2.0, 2.0, 0),
        (0.5, -2.0, 1.6, 0.0, 1),
        (2.0, -2.0, 4.0, 4.0, 0),
        (5.0, -2.0, 6.0, 0.0, 0),  # dual clip: at most 3 |A|
    ],
)
def test_policy_loss_by_hand(ratio: float, advantage: float, loss: float, slope: float, held: int) -> None:
    x = torch.tensor([math.log(ratio)], dtype=torch.float64, requires_grad=True)
    old, a = torch.zeros(1, dtype=torch.float64), torch.tensor([advantage], dtype=torch.float64)
    y = ppo.policy_loss(x, old, a)
    y.sum().backward()
    assert x.grad is not None
    assert y.item() == pytest.approx(loss)
    assert x.grad.item() == pytest.approx(slope)
    assert ppo.clipped(x, old, a).item() == held


def test_at_ratio_1_the_gradient_is_the_policy_gradient() -> None:
    torch.manual_seed(0)
    logits, advantage = torch.randn(20, 7, dtype=torch.float64), torch.randn(20, dtype=torch.float64)
    token = torch.randint(7, (20, 1))

    def gradient(kind: str) -> Tensor:
        x = logits.clone().requires_grad_()
        logp = torch.log_softmax(x, -1).gather(-1, token)[:, 0]
        if kind == "ppo":
            ppo.policy_loss(logp, logp.detach(), advantage).sum().backward()
        else:
            reinforce.policy_gradient_loss(logp, advantage).sum().backward()
        assert x.grad is not None
        return x.grad

    torch.testing.assert_close(gradient("ppo"), gradient("reinforce"), rtol=1e-12, atol=1e-14)


@given(number, number, number, st.sampled_from([None, 0.2]))
def test_value_loss_against_the_oracle(value: float, old: float, target: float, clip: float | None) -> None:
    args = [torch.tensor([v], dtype=torch.float64) for v in (value, old, target)]
    assert ppo.value_loss(*args, clip=clip).item() == pytest.approx(
        oracles.value_loss(value, old, target, clip), abs=1e-12
    )


def test_value_loss_by_hand() -> None:
    # Old 0, target 1. At 0.1: (0.9)^2 / 2, slope -0.9. At 0.5 the clip holds it at 0.2: 0.32, slope 0. At -0.5, which
    # is worse than the clipped -0.2: 1.125, slope -1.5.
    x = torch.tensor([0.1, 0.5, -0.5], dtype=torch.float64, requires_grad=True)
    y = ppo.value_loss(x, torch.zeros(3).double(), torch.ones(3).double())
    y.sum().backward()
    assert x.grad is not None
    assert y.tolist() == pytest.approx([0.405, 0.32, 1.125])
    assert x.grad.tolist() == pytest.approx([-0.9, 0.0, -1.5])


def test_extreme_ratios_have_finite_losses_and_gradients() -> None:
    for gap, advantage in itertools.product([-1e4, -30.0, 30.0, 1e4], [-10.0, 0.0, 10.0]):
        x = torch.tensor([gap], requires_grad=True)
        old, a = torch.zeros(1), torch.tensor([advantage])
        total = ppo.policy_loss(x, old, a, dual_clip=None) + ppo.policy_loss(x, old, a)
        total = total + ppo.kl_k1(x, old) + ppo.kl_k2(x, old) + ppo.kl_k3(x, old) + ppo.kl_k3(old, x)
        total.backward()
        assert total.isfinite().all()
        assert x.grad is not None
        assert x.grad.isfinite().all()


def test_explained_variance() -> None:
    returns = torch.tensor([1.0, 2.0, 3.0, 4.0])

    def ev(values: Tensor) -> float:
        return ppo.explained_variance(masked.masked_moments(returns), masked.masked_moments(returns - values)).item()

    assert ev(returns + 7) == pytest.approx(1.0)  # an offset is not variance
    assert ev(torch.zeros(4)) == pytest.approx(0.0)
    assert ev(-returns) == pytest.approx(-3.0)  # Var(2 R) / Var(R) = 4
    equal = masked.masked_moments(torch.ones(4))
    assert ppo.explained_variance(equal, masked.masked_moments(returns)).isnan()


def test_adaptive_kl_by_hand() -> None:
    # Twice the target: the error 1 is clipped to 0.2, times 500 / 10,000 answers: +1%. A tenth below: -0.1 * 0.05.
    controller = ppo.AdaptiveKL(coef=0.2, target=6.0)
    controller.update(12.0, 500)
    assert controller.coef == pytest.approx(0.2 * 1.01)
    controller.update(5.4, 500)
    assert controller.coef == pytest.approx(0.2 * 1.01 * 0.995)
    again = ppo.AdaptiveKL(**controller.state_dict())
    again.update(0.0, 10**9)  # however many answers, never more than 20%
    assert again.coef == pytest.approx(0.8 * controller.coef)
