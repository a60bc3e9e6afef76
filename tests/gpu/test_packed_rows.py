"""Packed rows on a GPU against plain padded ones: exact in fp32, and in 16 bits no noisier than they are."""

from __future__ import annotations

import pytest
import torch

import tiny
from prefiere.kernels import attention
from prefiere.kernels.fused import has_varlen
from prefiere.models.check.rows import probe
from prefiere.models.trunk import Trunk
from prefiere.tokens.pack import pack, unpack
from random_groups import store

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]

FAMILIES = [("llama", None), ("mistral", 7), ("qwen2", 7), ("gemma2", 7), ("gpt2", None)]
BATCH = pack(store(24, 2, prompt=60, completion=40, seed=5, partly=True))
WEIGHTS = torch.linspace(-1, 1, len(BATCH.target_N), dtype=torch.float64)

attention.register()


def gradients(model, loss) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {n: p.grad.double().cpu() for n, p in model.named_parameters() if p.grad is not None}


def exact(family, window, **options) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Log-probs and gradients in float64 on the processor: transformers' eager attention, each answer on its own."""
    model = tiny.model(family, sliding_window=window, **options).double()
    model.set_attn_implementation("eager")
    ends, parts = unpack(BATCH), []
    for c, (ids, mask) in enumerate(zip(ends.ids_CL, ends.mask_CL, strict=True)):
        own = BATCH.owner_N == c
        logits = model(input_ids=ids[mask.bool()][None]).logits[0, ends.column_N[own]]
        parts.append(torch.log_softmax(logits, -1).gather(-1, BATCH.target_N[own, None])[:, 0])
    logp = torch.cat(parts)
    return logp.detach(), gradients(model, (logp * WEIGHTS).sum())


def on_gpu(family, window, dtype, packed, **options) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The same by a trunk on the GPU, under autocast where the dtype is of 16 bits."""
    model = tiny.model(family, sliding_window=window, **options).cuda()
    model.set_attn_implementation(attention.NAME if packed else "sdpa")
    with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
        logp = Trunk(model, packed=packed)(BATCH.to("cuda")).logp_N.double()
    # fp16 gradients are scaled as a run scales them, so that small ones are not lost.
    scale = 2.0**8 if dtype == torch.float16 else 1.0
    found = gradients(model, (logp * WEIGHTS.cuda()).sum() * scale)
    return logp.detach().cpu(), {n: g / scale for n, g in found.items()}


@pytest.mark.parametrize(("family", "window"), FAMILIES)
def test_fp32_is_exact(family, window) -> None:
    expected, reference = exact(family, window)
    actual, mine = on_gpu(family, window, torch.float32, packed=True)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=5e-5)
    largest = max(g.norm() for g in reference.values())
    assert mine.keys() == reference.keys()
    for name, g in reference.items():
        assert (mine[name] - g).norm() <= 5e-5 * max(g.norm(), 1e-2 * largest), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("family", "window"), [("llama", None), ("mistral", 7), ("qwen2", 7)])
def test_16_bits_are_within_the_noise_of_padded_rows(monkeypatch, family, window, dtype) -> None:
    """Both paths round in different places; each is measured against float64. 1.5: noise is random."""
    calls = []
    real = attention.varlen
    monkeypatch.setattr(attention, "varlen", lambda *a, **o: calls.append(1) or real(*a, **o))
    expected, reference = exact(family, window, hidden=256)

    def errors(packed: bool) -> tuple[float, float]:
        actual, mine = on_gpu(family, window, dtype, packed, hidden=256)
        off = sum(float((mine[n] - g).norm()) ** 2 for n, g in reference.items()) ** 0.5
        return float((actual - expected).norm()), off

    packed, padded = errors(True), errors(False)
    assert len(calls) == (2 if has_varlen(torch.device("cuda")) else 0), "one call a layer"
    assert packed[0] <= 1.5 * padded[0]
    assert packed[1] <= 1.5 * padded[1]
    whole = sum(float(g.norm()) ** 2 for g in reference.values()) ** 0.5
    assert padded[1] < 0.5 * whole, "noise drowns the gradient: the test does not test"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("family", "window"), FAMILIES)
def test_the_probe_trusts_what_is_exact(family, window, dtype) -> None:
    model = tiny.model(family, sliding_window=window, hidden=64, dtype=dtype).cuda()
    assert probe(model, max_length=256) is None


def test_the_probe_catches_a_lost_prefix(monkeypatch) -> None:
    real = attention.plan_attention

    def forgetful(segments, *how):
        return real([s._replace(prefix_start=s.prefix_stop) for s in segments], *how)

    monkeypatch.setattr("prefiere.models.trunk.plan_attention", forgetful)
    assert "differ" in probe(tiny.model("llama", dtype=torch.bfloat16).cuda(), max_length=256)
