"""Log-probs without logits, against float64 log-softmax over whole logits and its autograd."""

import pytest
import torch
from torch import nn

from prefiere.kernels.logprobs import LogitTransform, linear_logprobs, module_logprobs

TRANSFORMS = [LogitTransform(), LogitTransform(scale=0.3), LogitTransform(softcap=3.0), LogitTransform(0.5, 2.0, 0.7)]


def oracle(h, w, b, t, transform):
    """Written out in float64: z = cap(scale (h w + b)) / temperature, log-softmax, pick."""
    h, w = h.detach().double().requires_grad_(), w.detach().double().requires_grad_()
    b = None if b is None else b.detach().double().requires_grad_()
    z = torch.einsum("nh,vh->nv", h, w) + (0 if b is None else b)
    z = z * transform.scale
    if transform.softcap is not None:
        z = transform.softcap * torch.tanh(z / transform.softcap)
    z = z / transform.temperature
    return h, w, b, z, (z - z.exp().sum(-1, keepdim=True).log())[torch.arange(len(t)), t]


def inputs(n=37, d=8, v=50, bias=True):
    g = torch.Generator().manual_seed(0)
    h = torch.randn(n, d, generator=g, requires_grad=True)
    w = torch.randn(v, d, generator=g, requires_grad=True)
    b = torch.randn(v, generator=g, requires_grad=True) if bias else None
    return h, w, b, torch.randint(0, v, (n,), generator=g), torch.randn(n, generator=g)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("chunk_bytes", [1, 20 * 50 * 4, 10**9])
def test_values_and_gradients(transform, bias, chunk_bytes) -> None:
    h, w, b, t, up = inputs(bias=bias)
    out = linear_logprobs(h, w, t, bias_V=b, transform=transform, entropy=True, chunk_bytes=chunk_bytes)
    (out.logp_N * up).sum().backward()
    h64, w64, b64, z64, expected = oracle(h, w, b, t, transform)
    (expected * up).sum().backward()
    torch.testing.assert_close(out.logp_N.double(), expected, rtol=1e-5, atol=1e-5)
    p = torch.softmax(z64, -1)
    torch.testing.assert_close(out.entropy_N.double(), -(p * p.log()).sum(-1), rtol=1e-5, atol=1e-5)
    assert out.correct_N.tolist() == (z64.argmax(-1) == t).double().tolist()
    for mine, theirs in ((h, h64), (w, w64), *(((b, b64),) if bias else ())):
        torch.testing.assert_close(mine.grad.double(), theirs.grad, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_logits_too_many_to_keep_are_computed_again(monkeypatch, transform) -> None:
    monkeypatch.setattr("prefiere.kernels.logprobs.KEPT_BYTES", 37 * 50 * 4 - 1)
    test_values_and_gradients(transform, True, 20 * 50 * 4)


def test_a_frozen_head_gets_no_gradient() -> None:
    h, w, b, t, _ = inputs()
    w.requires_grad_(False)
    b.requires_grad_(False)
    linear_logprobs(h, w, t, bias_V=b).logp_N.sum().backward()
    assert w.grad is None
    assert b.grad is None
    assert h.grad is not None


def test_any_head_module_agrees_with_the_linear_one() -> None:
    h, w, b, t, up = inputs()
    head = nn.Linear(8, 50)
    head.weight.data, head.bias.data = w.data.clone(), b.data.clone()
    transform = LogitTransform(0.5, 2.0, 0.7)
    one = linear_logprobs(h, w, t, bias_V=b, transform=transform, entropy=True)
    (one.logp_N * up).sum().backward()
    h2 = h.detach().clone().requires_grad_()
    two = module_logprobs(head, h2, t, vocabulary=50, transform=transform, entropy=True, chunk_bytes=1)
    (two.logp_N * up).sum().backward()
    torch.testing.assert_close(one.logp_N, two.logp_N)
    torch.testing.assert_close(one.entropy_N, two.entropy_N)
    torch.testing.assert_close(h.grad, h2.grad)
    torch.testing.assert_close(w.grad, head.weight.grad)


def test_bf16_gradients_of_the_head_are_summed_in_fp32() -> None:
    """Many chunks of nearly equal contributions: a bf16 sum stalls, the fp32 one does not."""
    n, d, v = 16 * 400, 4, 8
    h = torch.ones(n, d, dtype=torch.bfloat16)
    w = torch.zeros(v, d, dtype=torch.bfloat16, requires_grad=True)
    t = torch.zeros(n, dtype=torch.long)
    linear_logprobs(h, w, t, chunk_bytes=1).logp_N.sum().backward()
    # d/dw_0 of sum log p(0) with p = 1/8 everywhere is n (1 - 1/8) in each component.
    assert w.grad[0, 0].item() == pytest.approx(n * 7 / 8, rel=1e-2)
    assert w.grad[3, 0].item() == pytest.approx(-n / 8, rel=1e-2)


def test_extreme_logits_stay_finite() -> None:
    h = torch.tensor([[1e4], [-1e4]], requires_grad=True)
    w = torch.tensor([[1.0], [-1.0], [0.0]], requires_grad=True)
    out = linear_logprobs(h, w, torch.tensor([1, 1]))
    out.logp_N.sum().backward()
    assert out.logp_N.tolist() == [-2e4, 0.0]
    assert torch.isfinite(h.grad).all()
    assert torch.isfinite(w.grad).all()
