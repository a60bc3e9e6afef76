"""How much of the machine's matrix-product peak a 60M bf16 DPO step reaches.

Counted are the products that a step cannot do without, each distinct token once: every linear layer at every token and
the head at answer tokens, forward and both gradients; attention scores and values at the pairs (query, key) that the
segments allow; of the last layer only keys and values where a token predicts nothing. Recomputation is not counted.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from benchmarks.common import Bench, Row, clock
from benchmarks.contenders import Ours
from benchmarks.workload import SHAPES, window
from prefiere.tokens.pack import PackedBatch, pack

QUICK = (256,)
"""Of a quick run: a processor without bfloat16 takes minutes for larger products."""


def rows(bench: Bench) -> Iterable[Row]:
    """One row: GF/s of the step beside GF/s of the fastest square product."""
    shape = "tiny" if bench.quick else "60m"
    steps = 1 if bench.quick else 4
    store = bench.store(SHAPES[shape].words)
    batches = window(store, steps, grouped=False)
    ours = Ours(bench.folder(shape), store, batches, lora=False)
    flops = sum(step_flops(ours.trunk.lm.config, pack([store[int(i)] for i in b])) for b in batches)
    peaks: list[float] = []

    def peak(_: int) -> float:
        peaks.append(matmul_peak(torch.bfloat16, sizes=QUICK if bench.quick else None))
        return 1.0

    s = bench.alternate({"peak": peak, "ours": ours.train}, steps)
    reached = [flops / t / 1e9 for t in s["ours"]]
    work = f"share of the matmul peak, DPO step, {SHAPES[shape].title}, bf16, full"
    yield Row.share(work, reached, peaks[1:], goal=0.5, unit="GF/s", note=f"{steps} steps; optimizer included")


def matmul_peak(dtype: torch.dtype, device: str = "cpu", sizes: tuple[int, ...] | None = None) -> float:
    """GF/s of the fastest of some square matrix products."""
    best = 0.0
    for n in sizes or ((1024, 2048, 4096) if device == "cpu" else (4096, 8192)):
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        for _ in range(4):
            began = clock()
            a @ b
            best = max(best, 2 * n**3 / (clock() - began) / 1e9)
    return best


def step_flops(config: Any, batch: PackedBatch, *, weights: bool = True, backward: bool = True) -> float:
    """Floating-point operations of the products that a step on a Llama-like model needs. weights: with the gradients
    of the weights (not under LoRA, whose own small products are left out). backward: False for a forward alone."""
    h, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    size = getattr(config, "head_dim", None) or h // config.num_attention_heads
    q, kv = config.num_attention_heads * size, config.num_key_value_heads * size
    passes, looked = (3 if weights else 2, 3) if backward else (1, 1)
    tokens, targets = len(batch.tokens_T), len(batch.predictor_N)
    predictors = len(batch.predictor_N.unique())
    layer_rest, layer_kv = 2 * h * q + 3 * h * inner, 2 * h * kv
    linear = (layers - 1) * tokens * (layer_rest + layer_kv) + tokens * layer_kv + predictors * layer_rest
    looks = sum(_looks(s.stop - s.start, s.prefix_stop - s.prefix_start) for s in batch.segments)
    last = looks * predictors / tokens
    attention = 2 * q * ((layers - 1) * looks + last)
    head = targets * h * config.vocab_size
    return 2.0 * (passes * (linear + head) + looked * attention)


def _looks(queries: int, prefix: int) -> float:
    """Pairs (query, key) of a causal segment."""
    return queries * prefix + queries * (queries + 1) / 2
