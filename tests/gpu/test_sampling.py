"""The sampler on a GPU: against plain forwards, and against the same draws on the processor."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

import tiny
from prefiere.sample.local import generate
from prefiere.sample.sampling import Sample, Sampling, Vocabulary

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]

FAMILIES = [("llama", None), ("mistral", 6), ("qwen3", None), ("gpt2", None), ("gemma2", 6)]


def prompts(n: int = 9, longest: int = 40) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(6, 400, rng.integers(1, longest + 1)).astype(np.int32) for _ in range(n)]


def plain(model, prompt: np.ndarray, sample: Sample) -> torch.Tensor:
    """Log-probs [L, V] that a forward over prompt and answer gives at each of the answer's tokens."""
    row = torch.tensor([*prompt, *sample.tokens], device=next(model.parameters()).device)[None].long()
    with torch.no_grad():
        return torch.log_softmax(model(row).logits[0, len(prompt) - 1 : -1].double(), -1).cpu()


@pytest.mark.parametrize(("family", "window"), FAMILIES)
@pytest.mark.parametrize("lora", [False, True])
def test_greedy_takes_what_a_plain_forward_likes_best(family, window, lora) -> None:
    model = tiny.model(family, sliding_window=window)
    if lora:
        torch.manual_seed(0)
        config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, fan_in_fan_out=family == "gpt2")
        model = get_peft_model(model, config).eval()
    model, asked, ends = model.cuda(), prompts(), Vocabulary((2, *range(40, 60)))
    made = generate(model, asked, Sampling(temperature=0.0, max_new_tokens=20), ends)
    for prompt, sample in zip(asked, made, strict=True):
        logp = plain(model, prompt, sample)
        assert sample.tokens.tolist() == logp.argmax(-1).tolist()
        said = [int(t) in ends.eos_ids for t in sample.tokens]
        assert not any(said[:-1])
        assert sample.ended == said[-1]
        assert sample.ended or len(sample.tokens) == 20
    assert len({len(s.tokens) for s in made}) > 1, "no row was dropped: the test does not test"


@pytest.mark.parametrize(("family", "window"), FAMILIES)
def test_log_probs_are_those_of_a_plain_forward(family, window) -> None:
    model, asked = tiny.model(family, sliding_window=window).cuda(), prompts()
    for sample in generate(model, asked, Sampling(3, max_new_tokens=21, seed=7), Vocabulary(tuple(range(2, 30)))):
        logp = plain(model, asked[sample.prompt], sample)[range(len(sample.tokens)), sample.tokens]
        np.testing.assert_allclose(sample.logp, logp, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("auto", [False, True])
def test_16_bits_are_within_the_noise_of_plain_forwards(dtype, auto) -> None:
    exact, asked = tiny.model("llama", hidden=128), prompts(24)
    model = tiny.model("llama", hidden=128).cuda()
    model = model if auto else model.to(dtype)
    errors = []
    with torch.autocast("cuda", dtype, enabled=auto):
        for s in generate(model, asked, Sampling(3, max_new_tokens=17), Vocabulary((2,))):
            at = range(len(s.tokens)), s.tokens
            true, theirs = plain(exact, asked[s.prompt], s)[at], plain(model, asked[s.prompt], s)[at]
            errors.append([float((x - true).square().mean()) for x in (torch.from_numpy(s.logp).double(), theirs)])
    mine, theirs = np.sqrt(np.mean(errors, 0))
    assert 0 < mine <= 1.3 * theirs


@pytest.mark.parametrize("options", [{}, {"temperature": 0.7, "top_p": 0.9}], ids=str)
def test_the_same_seed_draws_the_same_answers_as_on_a_processor(options) -> None:
    """In fp32. A draw is decided by a number that both devices share; logits differ in their last bits alone."""
    asked = prompts()
    how = Sampling(3, max_new_tokens=20, seed=7, **options), Vocabulary(tuple(range(2, 30)))
    here, there = (generate(tiny.model("llama").to(d), asked, *how) for d in ("cpu", "cuda"))
    for a, b in zip(here, there, strict=True):
        assert (a.prompt, a.sample, a.ended, a.tokens.tolist()) == (b.prompt, b.sample, b.ended, b.tokens.tolist())
        np.testing.assert_allclose(a.logp, b.logp, atol=1e-4)
    alone = generate(tiny.model("llama").cuda(), asked, *how, rows=1)
    assert [s.tokens.tolist() for s in alone] == [s.tokens.tolist() for s in there]
    assert {s.ended for s in there} == {True, False}


def test_weights_that_change_are_seen_by_the_next_call() -> None:
    model, how = tiny.model("llama").cuda(), (Sampling(temperature=0.0, max_new_tokens=20), Vocabulary((2,)))
    with torch.autocast("cuda", torch.bfloat16):
        before = generate(model, prompts(), *how)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p) * 0.3)
    with torch.autocast("cuda", torch.bfloat16):
        after = generate(model, prompts(), *how)
        again = generate(model, prompts(), *how)
    assert [s.tokens.tolist() for s in after] == [s.tokens.tolist() for s in again]
    assert all(a.tokens.tolist() != b.tokens.tolist() for a, b in zip(before, after, strict=True))


def test_forbidden_tokens_are_never_drawn() -> None:
    never = Vocabulary((2,), tuple(range(2, 300)))
    made = generate(tiny.model("llama").cuda(), prompts(), Sampling(max_new_tokens=20), never)
    assert min(int(s.tokens.min()) for s in made if 0 not in s.tokens and 1 not in s.tokens) >= 300
