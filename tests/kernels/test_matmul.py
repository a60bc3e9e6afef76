"""fp32 products through oneDNN against float64, and layers that go through it against plain ones."""

import copy

import pytest
import torch
from torch import nn

from prefiere.kernels import matmul
from prefiere.kernels.linear import through_onednn

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN")


@pytest.fixture(autouse=True)
def _onednn():
    matmul.use_onednn(True)
    yield
    matmul.use_onednn(False)


@pytest.mark.parametrize("transposed", [False, True])
def test_a_product_is_exact_whatever_the_strides(transposed: bool) -> None:
    torch.manual_seed(0)
    a, b = torch.randn(37, 64), torch.randn(64, 51)
    if transposed:
        a, b = torch.randn(64, 37).T, torch.randn(51, 64).T
    expected = a.double() @ b.double()
    torch.testing.assert_close(matmul.product(a, b).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(5, 16), (1, 7, 16), (2, 3, 4, 16)])
def test_a_layer_and_its_gradients_against_float64(bias: bool, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(16, 9, bias=bias)
    exact = copy.deepcopy(layer).double()
    through_onednn(layer)
    x = torch.randn(shape, requires_grad=True)
    y = x.detach().double().requires_grad_()
    one, two = layer(x), exact(y)
    assert type(one.grad_fn).__name__ != "ViewBackward0" or bias or one.shape == two.shape
    torch.testing.assert_close(one.double(), two, rtol=1e-5, atol=1e-6)
    weights = torch.randn_like(two)
    (one * weights.float()).sum().backward()
    (two * weights).sum().backward()
    torch.testing.assert_close(x.grad.double(), y.grad, rtol=1e-5, atol=1e-5)
    for p, q in zip(layer.parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(p.grad.double(), q.grad, rtol=1e-5, atol=1e-5)


def test_it_is_really_taken_and_can_be_switched_off(monkeypatch) -> None:
    taken = []
    real = matmul._onednn
    monkeypatch.setattr(matmul, "_onednn", lambda a, b: taken.append(a.shape) or real(a, b))
    layer = nn.Linear(8, 8)
    through_onednn(layer)
    x = torch.randn(4, 8, requires_grad=True)
    layer(x).sum().backward()
    assert len(taken) == 3, "one product forward and two back"
    matmul.use_onednn(False)
    layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        matmul.use_onednn(True)
        assert layer(x).dtype == torch.bfloat16
    assert len(taken) == 3


def test_a_frozen_layer_costs_no_gradient_of_its_weight(monkeypatch) -> None:
    layer = nn.Linear(8, 8, bias=False).requires_grad_(False)
    through_onednn(layer)
    taken = []
    real = matmul._onednn
    monkeypatch.setattr(matmul, "_onednn", lambda a, b: taken.append(0) or real(a, b))
    layer(torch.randn(4, 8, requires_grad=True)).sum().backward()
    assert len(taken) == 2


def test_a_copy_of_a_routed_layer_uses_its_own_weights() -> None:
    layer = nn.Sequential(nn.Linear(4, 4))
    through_onednn(layer)
    other = copy.deepcopy(layer)
    with torch.no_grad():
        other[0].weight.zero_()
        other[0].bias.zero_()
        assert other(torch.ones(1, 4)).abs().max() == 0
        assert layer(torch.ones(1, 4)).abs().max() > 0
    assert type(other[0]) is nn.Linear
    assert set(other.state_dict()) == {"0.weight", "0.bias"}
