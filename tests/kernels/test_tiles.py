"""Attention written out in tiles, against a float64 loop over queries that knows nothing of tiles."""

import numpy as np
import pytest
import torch

from prefiere.kernels import tiles
from prefiere.kernels.tiles import Tile, bucketed, fits, plan_tiles, tiled_attention
from prefiere.tokens.pack import Segment

SHORT = [Segment(0, 9, 0, 0), Segment(9, 14, 0, 4), Segment(14, 15, 14, 14), Segment(15, 16, 14, 15)]
LONG = [Segment(0, 300, 0, 0), Segment(300, 465, 0, 131), Segment(465, 520, 465, 465), Segment(520, 800, 465, 500)]


def loop(query, key, value, segments, scale, window=None) -> torch.Tensor:
    """Every query of every head on its own, in float64: its prompt and own tokens so far, at most a window of them."""
    q, k, v = (x.double() for x in (query, key, value))
    shared = q.shape[1] // k.shape[1]
    rows = [torch.zeros_like(q[0]) for _ in range(len(q))]
    for s in segments:
        for t in range(s.start, s.stop):
            seen = [*range(s.prefix_start, s.prefix_stop), *range(s.start, t + 1)][-(window or 0) :]
            heads = [
                torch.softmax(k[seen, h // shared] @ q[t, h] * scale, 0) @ v[seen, h // shared]
                for h in range(q.shape[1])
            ]
            rows[t] = torch.stack(heads)
    return torch.stack(rows)


def inputs(size, heads, key_heads, dtype, large=1.0):
    g = torch.Generator().manual_seed(0)
    made = [(large * torch.randn(size, n, 16, generator=g)).to(dtype) for n in (heads, key_heads, key_heads)]
    return [x.requires_grad_() for x in made]


@pytest.mark.parametrize("segments", [SHORT, LONG], ids=["short", "long"])
@pytest.mark.parametrize("heads", [(4, 4), (6, 2)], ids=["own keys", "shared keys"])
@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_forward_and_gradients(segments, heads, window, dtype) -> None:
    size = segments[-1].stop
    given = inputs(size, *heads, dtype)
    exact = [x.detach().double().requires_grad_() for x in given]
    out = tiled_attention(*given, plan_tiles(segments, size, *heads, window), 0.3)
    expected = loop(*exact, segments, 0.3, window)
    noise = 1e-6 if dtype == torch.float32 else 1e-2
    assert out.dtype == dtype
    assert (out.double() - expected).norm() <= noise * expected.norm()
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (out.double() * weights).sum().backward()
    (expected * weights).sum().backward()
    for mine, theirs in zip(given, exact, strict=True):
        assert (mine.grad.double() - theirs.grad).norm() <= noise * theirs.grad.norm()


def test_rows_without_a_tile_are_zero_and_give_no_gradient() -> None:
    """The last layer's plan: rows 4 and 5 attend, to rows 0 to 5; nobody asks for the others."""
    query, key, value = inputs(8, 2, 2, torch.float32)
    out = tiled_attention(query, key, value, plan_tiles([Segment(4, 6, 0, 4)], 8, 2, 2, None), 0.3)
    assert out[[0, 1, 2, 3, 6, 7]].abs().max() == 0
    out.sum().backward()
    assert query.grad[[0, 1, 2, 3, 6, 7]].abs().max() == 0
    assert query.grad[[4, 5]].abs().min() > 0
    assert value.grad[6:].abs().max() == 0


def test_bf16_has_the_fused_kernels_noise() -> None:
    """Large scores are where rounding them would show: several times the noise of PyTorch's kernel."""
    segments = [Segment(0, 60, 0, 0)]
    query, key, value = inputs(60, 2, 2, torch.bfloat16, large=3.0)
    expected = loop(query, key, value, segments, 0.125)
    heads_first = (x.transpose(0, 1)[None] for x in (query, key, value))
    fused = torch.nn.functional.scaled_dot_product_attention(*heads_first, is_causal=True, scale=0.125)
    with torch.autocast("cpu", torch.bfloat16):
        mine = tiled_attention(query, key, value, plan_tiles(segments, 60, 2, 2, None), 0.125)
    error, yardstick = ((x.double() - expected).norm() for x in (mine, fused[0].transpose(0, 1)))
    assert error <= 2 * yardstick


def test_tiles_by_hand() -> None:
    """A prompt of rows 0-2, completion 1 of rows 3-4, completion 2 of row 5; two query heads on one key head."""
    plan = plan_tiles([Segment(0, 5, 0, 0), Segment(5, 6, 0, 3)], 6, 2, 1, None)
    (bucket,) = plan.buckets
    # the smaller tile first: row 5 with keys 0, 1, 2, 5, padded to five queries and five keys
    assert plan.query_N.tolist() == [10, 11, *([0] * 8), 0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert plan.key_M.tolist() == [0, 1, 2, 5, 0, 0, 1, 2, 3, 4]
    assert plan.inverse.tolist() == [10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 0, 1]
    seen = bucket.hidden[:, 0, :, 0] == 0
    assert seen.sum(-1).tolist() == [[4, 5, 5, 5, 5], [1, 2, 3, 4, 5]]


def test_tiles_are_cut_along_queries_and_see_what_the_window_lets_them() -> None:
    (whole,) = tiles._cut(Segment(10, 20, 2, 5), None)
    assert whole.query_Q.tolist() == list(range(10, 20))
    assert whole.key_K.tolist() == [2, 3, 4, *range(10, 20)]
    first, second = tiles._cut(Segment(0, 256, 0, 0), 50)
    assert (first.key_K[0], first.key_K[-1]) == (0, 127)
    assert (second.key_K[0], second.key_K[-1]) == (128 - 49, 255)


def test_many_tiles_share_few_products_with_little_padding() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(5, 300, (60, 2))
    made = [Tile(np.arange(min(q, k)), np.arange(max(q, k))) for q, k in sizes]
    groups = bucketed(made)
    assert sorted(id(t) for g in groups for t in g) == sorted(map(id, made))
    area = sum(len(t.query_Q) * len(t.key_K) for t in made)
    padded = sum(len(g) * max(len(t.query_Q) for t in g) * max(len(t.key_K) for t in g) for g in groups)
    assert padded <= 1.4 * area
    assert len(groups) < len(made) / 1.5


def test_what_is_long_or_fp16_is_left_to_the_fused_kernel(monkeypatch) -> None:
    def asked(size: int = 8, **options) -> bool:
        return fits(SHORT, torch.zeros(1, 8, **options), torch.zeros(1, size, **options))

    assert asked(dtype=torch.bfloat16)
    assert not asked(dtype=torch.float16)
    assert not asked(device="meta")
    assert not asked(size=4), "values of another width than the queries (DeepSeek)"
    monkeypatch.setattr(tiles, "LARGEST", 80)
    assert not asked()
