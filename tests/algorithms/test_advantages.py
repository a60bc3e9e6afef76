"""Credit by hand: two prompts, two answers each, of 2, 1, 3 and 1 tokens."""

from functools import partial
from importlib import import_module

import numpy as np
import pytest

from prefiere.algorithms.advantages import Advantages, RewardScale, advantages_of
from prefiere.algorithms.rollout import Rollout
from prefiere.methods import METHODS
from prefiere.settings import PolicyGradient
from prefiere.tokens.groups import GroupStore, PromptGroup

SIZES = (2, 1, 3, 1)
REWARD = np.array([1.0, 0.0, 4.0, 2.0])
LOGP = np.array([-1.0, -2.0, -1.0, -1.0, -3.0, -1.0, -2.0], np.float32)
REF = np.array([-1.5, -2.0, -3.0, -1.0, -2.0, -1.0, -2.0], np.float32)
# k1 = logp - ref: .5 0 | 2 | 0 -1 0 | 0


def rollout(value=None) -> Rollout:
    def tokens(n):
        return np.arange(5, 5 + n, dtype=np.int32)

    groups = [
        PromptGroup(tokens(2), tuple(tokens(n) for n in pair), tuple(np.ones(n, bool) for n in pair))
        for pair in (SIZES[:2], SIZES[2:])
    ]
    arrays = {"logp": LOGP, "ref": REF} | ({} if value is None else {"value": np.asarray(value, np.float32)})
    first = np.concatenate([[0], np.cumsum(SIZES)])
    return Rollout(GroupStore.build(groups, 2), first, REWARD, REWARD[:, None], np.ones(4, bool), arrays)


def settings(method: str, **options) -> PolicyGradient:
    given = {"num_generations": 2, "whiten_advantages": False, **options}
    return METHODS[method].settings(model="m", data="d", out="o", reward="r:f", **given)


def credit_of(method: str, kl_coef: float, value=None, **options) -> Advantages:
    """What a method's own file makes of the rollout."""
    s = settings(method, **options)
    estimate = partial(import_module(METHODS[method].home).advantages, settings=s)
    return advantages_of(rollout(value), REWARD, kl_coef, estimate, whitened=s.whiten_advantages)


def test_rloo_by_hand() -> None:
    """Returns less 0.1 KL: 1 - .05, 0 - .2, 4 + .1, 2; each less the other of its prompt."""
    credit = credit_of("rloo", 0.1)
    np.testing.assert_allclose(credit.advantage_N, [1.15, 1.15, -1.15, 2.1, 2.1, 2.1, -2.1], rtol=1e-6)


def test_reinforce_by_hand() -> None:
    """Rewards from the token on, less the mean return of the three other answers."""
    credit = credit_of("reinforce", 0.1)
    whole = np.array([0.95, -0.2, 4.1, 2.0])
    others = (whole.sum() - whole) / 3
    to_go = [0.95, 1.0, -0.2, 4.1, 4.1, 4.0, 2.0]
    expected = np.array(to_go) - np.repeat(others, SIZES)
    np.testing.assert_allclose(credit.advantage_N, expected, rtol=1e-6)
    np.testing.assert_allclose(credit.return_N, to_go, rtol=1e-6)


def test_reinforce_discounts_what_is_far() -> None:
    credit = credit_of("reinforce", 0.0, gamma=0.5)
    np.testing.assert_allclose(credit.return_N, [0.5, 1, 0, 1, 2, 4, 2], rtol=1e-6)


def test_reinforce_without_a_baseline_by_hand() -> None:
    """The plain estimator: a token's credit is the sum of the rewards from it on."""
    credit = credit_of("reinforce", 0.1, baseline="none")
    np.testing.assert_allclose(credit.advantage_N, [0.95, 1.0, -0.2, 4.1, 4.1, 4.0, 2.0], rtol=1e-6)
    np.testing.assert_array_equal(credit.return_N, credit.advantage_N)


def test_grpo_by_hand() -> None:
    """(r - mean) / std, std of two numbers 1 apart: 1 / sqrt 2; 2 apart: sqrt 2. So +-1 / sqrt 2 for both prompts."""
    credit = credit_of("grpo", 0.0)
    half = 2**-0.5
    np.testing.assert_allclose(credit.advantage_N, [half, half, -half, half, half, half, -half], rtol=1e-3)


def test_ppo_by_hand() -> None:
    """GAE with lambda 0.5: delta = r + V' - V, A = delta + 0.5 A'."""
    value = [0.5, 1.0, 0.0, 1.0, 2.0, 3.0, 2.5]
    credit = credit_of("ppo", 0.1, value, lam=0.5)
    deltas = [[-0.05 + 1.0 - 0.5, 1.0 - 1.0], [1 * (0 - 0.2) - 0.0], [2 - 1.0, 0.1 + 3 - 2, 4 - 3.0], [2 - 2.5]]
    advantages = [[0.45, 0.0], [-0.2], [1 + 0.5 * (1.1 + 0.5), 1.1 + 0.5, 1.0], [-0.5]]
    assert deltas[0][0] == pytest.approx(0.45)
    flat = np.array([a for row in advantages for a in row])
    np.testing.assert_allclose(credit.advantage_N, flat, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(credit.return_N, flat + np.array(value), rtol=1e-5)


def test_whitening_is_over_the_tokens_of_the_rollout() -> None:
    plain = credit_of("reinforce", 0.1).advantage_N
    white = credit_of("reinforce", 0.1, whiten_advantages=True).advantage_N
    np.testing.assert_allclose(white, (plain - plain.mean()) / plain.std(), rtol=1e-5)


def test_the_first_rollout_sets_the_scale_and_endless_answers_pay() -> None:
    s = settings("rloo", missing_eos_penalty=1.0, reward_clip=1.5)
    scale = RewardScale()
    ended = np.array([True, True, False, True])
    std = REWARD.std()
    np.testing.assert_allclose(scale(REWARD, ended, s), [1 / std, 0, 1.5 - 1, 2 / std])
    np.testing.assert_allclose(scale(10 * REWARD, np.ones(4, bool), s), [1.5, 0, 1.5, 1.5])
    assert RewardScale(**scale.state()).std == pytest.approx(std)


def test_equal_rewards_are_not_divided_by_nothing() -> None:
    scale = RewardScale()
    np.testing.assert_allclose(scale(np.full(4, 3.0), np.ones(4, bool), settings("rloo")), 3.0)


def test_places_follow_the_batch() -> None:
    assert rollout().places([1, 0]).tolist() == [3, 4, 5, 6, 0, 1, 2]


def test_rows_and_back() -> None:
    r = rollout()
    rows = r.padded(LOGP)
    assert rows.shape == (4, 3)
    assert rows[1].tolist() == [-1.0, 0.0, 0.0]
    assert r.flat(rows).tolist() == LOGP.tolist()
