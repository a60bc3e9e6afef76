"""Sampling against transformers' `generate`, whose rows stay until the last of them ends."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from benchmarks.common import Bench, Contender, Row, clock
from prefiere.sample.local import generate
from prefiere.sample.sampling import Sampling, Vocabulary

PROMPTS, TOKENS = 32, 64
GOALS = {1: 2.0, 4: 4.0}


def rows(bench: Bench) -> Iterable[Row]:
    """1 and 4 samples; answers of equal lengths, and answers that stop anywhere."""
    from transformers import AutoModelForCausalLM

    shape, device = "tiny" if bench.quick else "10m", "cuda" if torch.cuda.is_available() else "cpu"
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
    for name, dtype in list(dtypes.items())[: 1 if bench.quick else 2]:
        model = AutoModelForCausalLM.from_pretrained(bench.folder(shape), dtype=dtype).eval().to(device)
        vocabulary = model.config.vocab_size
        prompts = _prompts(bench, vocabulary)
        never = [vocabulary + 1]
        # Random weights draw nearly uniformly: so many end tokens stop an answer after 24 tokens on average.
        often = np.random.default_rng(1).choice(np.arange(6, vocabulary), vocabulary // 24, replace=False).tolist()
        for samples, goal in GOALS.items():
            for ends, kind in ((never, "equal lengths"), (often, "stopping anywhere")):
                work = f"sampling {PROMPTS} prompts x {TOKENS} tokens, {samples} each, {kind}, {shape} {name}"
                try:
                    t = bench.alternate(contenders(model, prompts, samples, ends), TOKENS)
                except RuntimeError as e:  # of a kernel, or memory: the other rows are still worth having
                    yield Row.missing(work, goal, f"failed: {str(e).splitlines()[0]}")
                    continue
                yield Row.faster(work, t["ours"], t["generate"], goal=goal, note="generate: one batch, left-padded")


def contenders(model: Any, prompts: list[np.ndarray], samples: int, ends: list[int]) -> dict[str, Contender]:
    """Both, for a number of new tokens."""
    return {"ours": _ours(model, prompts, samples, ends), "generate": _generate(model, prompts, samples, ends)}


def _prompts(bench: Bench, vocabulary: int) -> list[np.ndarray]:
    """Prompts of evenly spread ranks of length."""
    store = bench.store(min(vocabulary, 8192))
    order = np.argsort([len(g.prompt) for g in store], kind="stable")
    return [
        store[int(i)].prompt % vocabulary for i in order[np.linspace(0, len(order) - 1, PROMPTS + 2)[1:-1].astype(int)]
    ]


def _ours(model: Any, prompts: list[np.ndarray], samples: int, ends: list[int]) -> Contender:
    def run(tokens: int) -> float:
        began = clock()
        generate(model, prompts, Sampling(samples, max_new_tokens=tokens), Vocabulary(tuple(ends)))
        return clock() - began

    return run


def _generate(model: Any, prompts: list[np.ndarray], samples: int, ends: list[int]) -> Contender:
    longest = max(map(len, prompts))
    ids, mask = torch.zeros(2, len(prompts), longest, dtype=torch.long)
    for i, p in enumerate(prompts):
        ids[i, longest - len(p) :] = torch.from_numpy(p.astype(np.int64))
        mask[i, longest - len(p) :] = 1
    ids, mask = ids.to(model.device), mask.to(model.device)

    @torch.no_grad()
    def run(tokens: int) -> float:
        began = clock()
        model.generate(
            ids, attention_mask=mask, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=tokens,
            num_return_sequences=samples, eos_token_id=ends, pad_token_id=0,
        )  # fmt: skip
        return clock() - began

    return run
