import math
import statistics

import torch
from hypothesis import given
from hypothesis import strategies as st

from prefiere.objectives import masked


def test_segment_sum_by_hand() -> None:
    # Segment 1 has no values; segment 2 comes in two pieces.
    y = masked.segment_sum(torch.tensor([1.0, 10.0, 100.0, 1000.0]), torch.tensor([2, 0, 2, 3]), 4)
    assert y.tolist() == [10.0, 0.0, 101.0, 1000.0]
    assert y.dtype == torch.float32


def test_segment_sum_gradient() -> None:
    x = torch.randn(7, dtype=torch.float64, requires_grad=True)
    segment = torch.tensor([0, 0, 3, 1, 1, 1, 0])
    assert torch.autograd.gradcheck(lambda v: masked.segment_sum(v, segment, 4), x)


def test_segment_sum_is_exact_to_one_rounding_whatever_else_is_in_the_row() -> None:
    torch.manual_seed(0)
    parts = [-8 * torch.rand(n) for n in (5000, 1, 777)]
    alone = [masked.segment_sum(p, torch.zeros(len(p), dtype=torch.long), 1)[0] for p in parts]
    owner = torch.cat([torch.full((len(p),), i) for i, p in enumerate(parts)])
    order = torch.randperm(len(owner))
    together = masked.segment_sum(torch.cat(parts)[order], owner[order], 3)
    for part, one, packed in zip(parts, alone, together, strict=True):
        exact = torch.tensor(math.fsum(part.tolist())).float()
        assert one == packed == exact


def test_segment_sum_of_half_precision_is_fp32() -> None:
    x = torch.full((4096,), 1 / 256, dtype=torch.bfloat16)  # in bf16 the running sum would stick at 1
    y = masked.segment_sum(x, torch.zeros(4096, dtype=torch.long), 1)
    assert y.dtype == torch.float32
    assert y.item() == 16.0


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=30), st.integers(1, 29))
def test_moments_of_parts_add_up(values: list[float], cut: int) -> None:
    x = torch.tensor(values, dtype=torch.float64)
    parts = masked.masked_moments(x[:cut]) + masked.masked_moments(x[cut:])
    mean, variance = masked.mean_and_variance(parts)
    assert math.isclose(mean.item(), statistics.fmean(values), rel_tol=1e-9, abs_tol=1e-9)
    assert math.isclose(variance.item(), statistics.pvariance(values), rel_tol=1e-9, abs_tol=1e-9)


def test_whitening_by_hand() -> None:
    # Unmasked: 1, 2, 6. Mean 3, population variance (4 + 1 + 9) / 3 = 14/3, so 6 becomes 3 / sqrt(14/3) = 1.38873.
    x = torch.tensor([[1.0, math.nan], [2.0, 6.0]])
    mask = torch.tensor([[True, False], [True, True]])
    moments = masked.masked_moments(x, mask)
    assert moments.tolist() == [3.0, 9.0, 41.0]
    white = masked.whiten(x, moments)
    assert white.dtype == torch.float32
    torch.testing.assert_close(white[mask], torch.tensor([-2.0, -1.0, 3.0]) / math.sqrt(14 / 3))
    # With the mean left in, only the scale changes.
    torch.testing.assert_close(
        masked.whiten(x, moments, shift_mean=False)[mask], torch.tensor([1.0, 2.0, 6.0]) / math.sqrt(14 / 3)
    )


def test_whitening_does_not_depend_on_how_the_update_is_cut() -> None:
    torch.manual_seed(1)
    x, mask = torch.randn(12, 5) * 3 + 1, torch.rand(12, 5) < 0.7
    whole = masked.whiten(x, masked.masked_moments(x, mask))
    for cut in (1, 5, 11):
        moments = masked.masked_moments(x[:cut], mask[:cut]) + masked.masked_moments(x[cut:], mask[cut:])
        pieces = torch.cat([masked.whiten(x[:cut], moments), masked.whiten(x[cut:], moments)])
        torch.testing.assert_close(pieces, whole, rtol=0, atol=1e-6)
    assert abs(whole[mask].mean().item()) < 1e-6
    assert abs(whole[mask].std(correction=0).item() - 1) < 1e-5


def test_whitening_equal_values_gives_zeros() -> None:
    x = torch.full((4,), 0.3)
    assert masked.whiten(x, masked.masked_moments(x)).abs().max() < 1e-3
