"""The plain ways to decode draw what the prepared cache draws, and hybrid and recurrent models draw rightly."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import tiny
import zoo
from prefiere.kernels import attention
from prefiere.models.check.trial import try_policy
from prefiere.models.trunk import Trunk
from prefiere.sample import plain
from prefiere.sample.local import generate
from prefiere.sample.plain import set_way
from prefiere.sample.sampling import Sampling, Vocabulary

attention.register()
PROMPTS = [np.arange(20, 20 + n, dtype=np.int32) for n in (3, 11, 6)]
ENDS = Vocabulary(tuple(range(10, 400, 5)), (0,))
ASKED = Sampling(samples=3, max_new_tokens=9, temperature=0.8, seed=3)


@pytest.mark.parametrize("way", ["cache", "anew"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral"])
def test_every_way_draws_the_same(family, way, monkeypatch) -> None:
    model = tiny.model(family, sliding_window=8 if family == "mistral" else None)
    right = generate(model, PROMPTS, ASKED, ENDS)
    assert len({len(s.tokens) for s in right}) > 2, "no row ends early"
    set_way(model, way)
    monkeypatch.setattr(plain, "LOGITS_AT_ONCE", 4000)
    found = generate(model, PROMPTS, ASKED, ENDS)
    for a, b in zip(found, right, strict=True):
        assert (a.prompt, a.sample, a.ended, a.tokens.tolist()) == (b.prompt, b.sample, b.ended, b.tokens.tolist())
        np.testing.assert_allclose(a.logp, b.logp, atol=1e-5)


HOW = {
    "qwen3_next": "cache", "lfm2": "cache", "granitemoehybrid": "cache", "jamba": "cache", "mamba": "cache",
    "falcon_h1": "cache", "recurrent_gemma": "anew", "deepseek_v3": "prepared", "minicpm3": "prepared",
    "diffllama": "cache", "rwkv": "anew",
}  # fmt: skip


@pytest.mark.parametrize("name", HOW)
def test_models_that_the_prepared_cache_does_not_suit(name) -> None:
    model = zoo.build(name)
    assert try_policy(Trunk(model, packed=False), name, learns=False).way == HOW[name]
    for s in generate(model, PROMPTS, ASKED, ENDS):
        ids = torch.from_numpy(np.concatenate([PROMPTS[s.prompt], s.tokens]).astype(np.int64))[None]
        with torch.no_grad():
            z = model(input_ids=ids).logits[0, len(PROMPTS[s.prompt]) - 1 : -1] / 0.8
        z[:, 0] = float("-inf")
        logp = torch.log_softmax(z, -1).gather(-1, torch.from_numpy(s.tokens.astype(np.int64))[:, None])[:, 0]
        np.testing.assert_allclose(s.logp, logp.numpy(), atol=1e-4)
