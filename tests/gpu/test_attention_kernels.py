"""Attention of a packed row on a GPU, forward and backward, in each of its forms, against a float64 loop."""

from __future__ import annotations

import pytest
import torch

from prefiere.kernels import attention
from prefiere.kernels.fused import has_varlen
from prefiere.tokens.pack import Segment, pack
from random_groups import store

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]

SEGMENTS = (*pack(store(5, 3, prompt=60, completion=50, seed=3)).segments,)
SIZE = max(s.stop for s in SEGMENTS)
# Units in the last place are 2^-8 (bf16) and 2^-11 (fp16) of a number. The output is rounded once, and what it is a sum
# of once; a gradient goes through two more roundings of that kind. fp32 sums of some hundred terms lose a few 2^-24.
OUTPUT = {torch.bfloat16: 2**-7, torch.float16: 2**-10, torch.float32: 1e-5}
GRADIENT = {torch.bfloat16: 2**-6, torch.float16: 2**-9, torch.float32: 2e-5}


def loop(query, key, value, segments, window, scale, cap=None) -> torch.Tensor:
    """[T, heads, D]: every query on its own: its prompt, then its segment up to itself, the last ``window`` of them."""
    repeats = query.shape[1] // key.shape[1]
    rows = [torch.zeros_like(query[0])] * query.shape[0]
    for s in segments:
        for i in range(s.start, s.stop):
            seen = [*range(s.prefix_start, s.prefix_stop), *range(s.start, i + 1)]
            seen = seen if window is None else seen[-window:]
            k, v = (x[seen].repeat_interleave(repeats, 1) for x in (key, value))
            scores = torch.einsum("hd,khd->hk", query[i], k) * scale
            scores = scores if cap is None else cap * torch.tanh(scores / cap)
            rows[i] = torch.einsum("hk,khd->hd", torch.softmax(scores, -1), v)
    return torch.stack(rows)


def compared(dtype, width, heads, key_heads, window, *, reads=(), segments=SEGMENTS, cap=None) -> None:
    """One call of the attention function on a GPU against the loop: the output and the three gradients."""
    g = torch.Generator().manual_seed(width + heads)
    drawn = [torch.randn(SIZE, n, width, generator=g).to(dtype) for n in (heads, key_heads, key_heads)]
    weights = torch.randn(SIZE, heads, width, generator=g).to(dtype)
    exact = [x.double().requires_grad_() for x in drawn]
    mine = [x.cuda().requires_grad_() for x in drawn]
    plan = attention.plan_attention(segments, "cuda", reads)
    plan = plan.last or plan
    q, k, v = (x.transpose(0, 1)[None] for x in mine)
    out, _ = attention.segment_attention(
        torch.nn.Module(), q, k, v, None, segments=plan, sliding_window=window, softcap=cap
    )
    expected = loop(*exact, plan.segments, window, width**-0.5, cap)
    (out[0] * weights.cuda()).sum().backward()
    (expected * weights.double()).sum().backward()
    assert (out[0].double().cpu() - expected).norm() <= OUTPUT[dtype] * expected.norm()
    for name, a, b in zip("qkv", mine, exact, strict=True):
        off = (a.grad.double().cpu() - b.grad).norm() / b.grad.norm()
        assert off <= GRADIENT[dtype], f"{name}: {off:.2g}"


@pytest.fixture
def one_call(monkeypatch) -> list[int]:
    """The widths of heads that the variable-length kernel was called with."""
    if not has_varlen(torch.device("cuda")):
        pytest.skip("this device or PyTorch has no variable-length attention")
    calls: list[int] = []
    real = attention.varlen
    monkeypatch.setattr(attention, "varlen", lambda q, *a, **o: calls.append(q.shape[-1]) or real(q, *a, **o))
    return calls


@pytest.fixture
def in_buckets(monkeypatch) -> None:
    """The form of devices below sm80."""
    monkeypatch.setattr(attention, "has_varlen", lambda device: False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("width", [64, 80, 96, 128, 192, 256])
@pytest.mark.parametrize(("heads", "key_heads", "window"), [(4, 4, None), (8, 2, None), (4, 2, 7), (6, 1, 70)])
def test_the_variable_length_kernel(one_call, dtype, width, heads, key_heads, window) -> None:
    compared(dtype, width, heads, key_heads, window)
    assert one_call == [width]


@pytest.mark.parametrize("window", [None, 7])
def test_rows_that_are_not_read_are_zero(one_call, window) -> None:
    """The last layer's plan: half of each segment's queries."""
    reads = tuple(((s.start + s.stop) // 2, s.stop) for s in SEGMENTS)
    compared(torch.bfloat16, 64, 4, 2, window, reads=reads)
    assert one_call


def test_one_token_segments(one_call) -> None:
    segments = (Segment(0, 1, 0, 0), Segment(1, 2, 0, 1), Segment(2, SIZE, 0, 1))
    compared(torch.bfloat16, 64, 4, 2, None, segments=segments)
    assert one_call


@pytest.mark.parametrize("width", [12, 320])
def test_widths_that_the_kernel_does_not_take_go_another_way(one_call, width) -> None:
    compared(torch.bfloat16, width, 4, 2, 7)
    assert not one_call


@pytest.mark.usefixtures("in_buckets")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize(("heads", "key_heads", "window"), [(4, 4, None), (8, 2, None), (4, 2, 7), (6, 1, 70)])
def test_buckets(dtype, width, heads, key_heads, window) -> None:
    compared(dtype, width, heads, key_heads, window)


@pytest.mark.parametrize("window", [None, 7])
def test_scores_under_a_soft_cap(window) -> None:
    compared(torch.float32, 64, 4, 2, window, cap=2.0)
