import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import oracles
from prefiere.objectives import bradley_terry

scores = st.floats(-30, 30)


@given(scores, scores, st.floats(0, 1), st.one_of(st.floats(0, 5), st.just(math.nan)))
def test_loss_and_gradient_against_the_oracle(chosen: float, rejected: float, label: float, margin: float) -> None:
    x = torch.tensor([chosen, rejected], dtype=torch.float64, requires_grad=True)
    y = bradley_terry.bradley_terry(
        x[:1],
        x[1:],
        label_G=torch.tensor([label], dtype=torch.float64),
        margin_G=torch.tensor([margin], dtype=torch.float64),
    )
    assert y.shape == (1,)
    assert y.item() == pytest.approx(oracles.bradley_terry(chosen, rejected, label, margin), abs=1e-12)
    y.sum().backward()
    expected = oracles.slope(lambda v: oracles.bradley_terry(v[0], v[1], label, margin), [chosen, rejected], 1e-3)
    assert x.grad is not None
    assert x.grad.tolist() == pytest.approx(expected, abs=1e-8)


def test_by_hand() -> None:
    # Equal scores: ln 2. One apart: ln(1 + 1/e). A margin of 1 on scores one apart: ln 2 again.
    chosen, rejected = torch.tensor([0.0, 1.0, 1.0]), torch.zeros(3)
    y = bradley_terry.bradley_terry(chosen, rejected, margin_G=torch.tensor([math.nan, 0.0, 1.0]))
    torch.testing.assert_close(y, torch.tensor([math.log(2), math.log1p(math.exp(-1)), math.log(2)]))


def test_a_tie_pulls_scores_together_and_rests_there() -> None:
    gap = torch.tensor([3.0, 0.0, -3.0], requires_grad=True)
    bradley_terry.bradley_terry(gap, torch.zeros(3), label_G=torch.full((3,), 0.5)).sum().backward()
    assert gap.grad is not None
    assert gap.grad[0] > 0
    assert gap.grad[1] == 0
    assert gap.grad[2] < 0


@given(scores, scores, st.floats(0, 1), st.floats(0, 5))
def test_swapping_answers_and_label_changes_nothing(a: float, b: float, p: float, m: float) -> None:
    a_, b_, p_, m_ = (torch.tensor([v], dtype=torch.float64) for v in (a, b, p, m))
    one = bradley_terry.bradley_terry(a_, b_, label_G=p_, margin_G=m_)
    other = bradley_terry.bradley_terry(b_, a_, label_G=1 - p_, margin_G=m_)
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_scores_in_half_precision_are_subtracted_in_fp32() -> None:
    chosen, rejected = torch.tensor([512.0], dtype=torch.bfloat16), torch.tensor([1.0], dtype=torch.bfloat16)
    y = bradley_terry.bradley_terry(rejected, chosen)  # 511 is no bf16 number
    assert y.dtype == torch.float32
    assert y.item() == 511.0
    assert bradley_terry.centring(chosen, rejected).item() == 513.0**2


def test_extreme_scores_have_finite_gradients() -> None:
    x = torch.tensor([1e4, -1e4], requires_grad=True)
    y = bradley_terry.bradley_terry(x, -x, label_G=torch.tensor([0.3, 1.0]))
    y.sum().backward()
    assert y.isfinite().all()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_centring_fixes_the_offset_and_nothing_else() -> None:
    # (2 + 1)^2 = 9; its gradient 2 (r_w + r_l) = 6 is the same for both, so it moves the offset, not the difference.
    x = torch.tensor([2.0, 1.0], requires_grad=True)
    y = bradley_terry.centring(x[:1], x[1:])
    y.sum().backward()
    assert y.item() == 9.0
    assert x.grad is not None
    assert x.grad.tolist() == [6.0, 6.0]
