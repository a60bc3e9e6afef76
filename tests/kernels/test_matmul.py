"""fp32 products through oneDNN against float64, and layers that go through it against plain ones."""

import copy

import pytest
import torch
from torch import nn

from prefiere.kernels import matmul
from prefiere.kernels.linear import route, use_onednn
from prefiere.kernels.matmul import Products

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN")


def routed(layer: nn.Module) -> nn.Module:
    """The layer, its fp32 products through oneDNN."""
    route(layer)
    use_onednn(layer, True)
    return layer


@pytest.fixture
def taken(monkeypatch) -> list[torch.Size]:
    """The shapes that went through oneDNN."""
    shapes: list[torch.Size] = []
    real = matmul._onednn
    monkeypatch.setattr(matmul, "_onednn", lambda a, b: shapes.append(a.shape) or real(a, b))
    return shapes


@pytest.mark.parametrize("transposed", [False, True])
def test_a_product_is_exact_whatever_the_strides(transposed: bool, taken) -> None:
    torch.manual_seed(0)
    a, b = torch.randn(37, 64), torch.randn(64, 51)
    if transposed:
        a, b = torch.randn(64, 37).T, torch.randn(51, 64).T
    expected = a.double() @ b.double()
    torch.testing.assert_close(Products(onednn=True).matmul(a, b).double(), expected, rtol=1e-5, atol=1e-5)
    assert len(taken) == 1
    Products().matmul(a, b)
    assert len(taken) == 1


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(5, 16), (1, 7, 16), (2, 3, 4, 16)])
def test_a_layer_and_its_gradients_against_float64(bias: bool, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(16, 9, bias=bias)
    exact = copy.deepcopy(layer).double()
    routed(layer)
    x = torch.randn(shape, requires_grad=True)
    y = x.detach().double().requires_grad_()
    one, two = layer(x), exact(y)
    torch.testing.assert_close(one.double(), two, rtol=1e-5, atol=1e-6)
    weights = torch.randn_like(two)
    (one * weights.float()).sum().backward()
    (two * weights).sum().backward()
    torch.testing.assert_close(x.grad.double(), y.grad, rtol=1e-5, atol=1e-5)
    for p, q in zip(layer.parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(p.grad.double(), q.grad, rtol=1e-5, atol=1e-5)


def test_it_is_really_taken_and_can_be_switched_off(taken) -> None:
    layer = routed(nn.Linear(8, 8))
    x = torch.randn(4, 8, requires_grad=True)
    layer(x).sum().backward()
    assert len(taken) == 3, "one product forward and two back"
    use_onednn(layer, False)
    layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        use_onednn(layer, True)
        assert layer(x).dtype == torch.bfloat16
    assert len(taken) == 3


def test_a_frozen_layer_costs_no_gradient_of_its_weight(taken) -> None:
    layer = routed(nn.Linear(8, 8, bias=False).requires_grad_(False))
    layer(torch.randn(4, 8, requires_grad=True)).sum().backward()
    assert len(taken) == 2


def test_the_gain_is_that_of_one_thread_and_threads_stay() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        assert matmul.measure_onednn(size=32, rounds=2) > 0
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_measuring_takes_no_random_numbers() -> None:
    """What is measured is kept, and a later run does not measure again: what it draws must not depend on that."""
    before = torch.get_rng_state()
    matmul.measure_onednn(size=32, rounds=1)
    assert torch.equal(torch.get_rng_state(), before)
