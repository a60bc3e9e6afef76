"""Each form of attention against a float64 loop over queries."""

import pytest
import torch

from prefiere.kernels import fused

SHAPES = [(1, 4, 4, 9, 9), (3, 4, 2, 5, 11), (2, 6, 1, 1, 7), (2, 2, 2, 13, 13), (1, 4, 2, 40, 40)]


def loop(query, key, value, mask, scale) -> torch.Tensor:
    """Every query on its own, in float64."""
    q, k, v = (x.double() for x in (query, key, value))
    repeats = q.shape[1] // k.shape[1]
    out = torch.zeros_like(q)
    for s in range(q.shape[0]):
        for h in range(q.shape[1]):
            for i in range(q.shape[2]):
                seen = mask[s % mask.shape[0], 0, i]
                scores = k[s, h // repeats][seen] @ q[s, h, i] * scale
                out[s, h, i] = torch.softmax(scores, 0) @ v[s, h // repeats][seen]
    return out


def inputs(shape, dtype, seed=0):
    s, heads, kv, q, k = shape
    g = torch.Generator().manual_seed(seed)
    made = [torch.randn(s, n, length, 16, generator=g).to(dtype) for n, length in ((heads, q), (kv, k), (kv, k))]
    return [x.requires_grad_() for x in made]


def mask_of(shape, causal: bool):
    s, _, _, q, k = shape
    if causal:
        return torch.ones(1, 1, q, k, dtype=torch.bool).tril(k - q)
    mask = torch.rand(s, 1, q, k, generator=torch.Generator().manual_seed(1)) < 0.5
    mask[..., 0] = True
    return mask


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_forward_and_gradients(shape, causal, dtype) -> None:
    if causal and shape[3] != shape[4]:
        pytest.skip("causal segments have as many keys as queries")
    query, key, value = inputs(shape, dtype)
    exact = [x.detach().double().requires_grad_() for x in (query, key, value)]
    mask = mask_of(shape, causal)
    out = fused.fused_attention(query, key, value, None if causal else mask, 0.3, None)
    expected = loop(*exact, mask, 0.3)
    noise = 1e-5 if dtype == torch.float32 else 2e-2
    assert (out.double() - expected).norm() <= noise * expected.norm()
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (out.double() * weights).sum().backward()
    (expected * weights).sum().backward()
    for mine, theirs in zip((query, key, value), exact, strict=True):
        assert (mine.grad.double() - theirs.grad).norm() <= noise * theirs.grad.norm()
