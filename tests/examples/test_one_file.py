"""The algorithms in one file each compute what prefiere computes, and learn."""

from __future__ import annotations

import importlib
import math
from copy import deepcopy
from importlib.resources import as_file, files
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import oracles
from prefiere.demo import corpus, judge
from prefiere.kernels import attention
from prefiere.models.reference import sequence_logps
from prefiere.models.trunk import Trunk
from prefiere.tokens.encoder import Encoder
from prefiere.tokens.groups import PromptGroup
from prefiere.tokens.truncation import EncodeReport

ROOT = Path(__file__).parents[2]


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    return importlib.import_module(f"{request.param}_in_one_file")


@pytest.fixture
def base() -> tuple[Any, Any]:
    with as_file(files("prefiere.demo").joinpath("assets/base")) as folder:
        return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def packed_logps(model: Any, groups: list[PromptGroup]) -> np.ndarray:
    """float32 [n, k]: log-probs of completions by packed rows, as training computes them."""
    packed = deepcopy(model)
    attention.register()
    packed.set_attn_implementation(attention.NAME)
    return sequence_logps(Trunk(packed), groups, budget=4096)


@pytest.mark.parametrize("example", ["dpo"], indirect=True)
def test_dpo_reads_pairs_and_measures_them_as_training_does(
    example: ModuleType, base: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ids against the encoder, log-probs against packed rows, the loss after an update against DPO by hand."""
    (model, tokenizer), pairs = base, corpus.preferences()[::50][:8]
    rows = example.rows_of(tokenizer, pairs)
    groups = list(Encoder(tokenizer, eos_ids=[tokenizer.eos_token_id]).encode(pairs, EncodeReport()))
    ids = [[*g.prompt, *c] for g in groups for c in g.completions]
    assert [row[: len(i)].tolist() for row, i in zip(rows.tokens_CL, ids, strict=True)] == ids
    assert rows.answer_CL.sum(1).tolist() == [len(c) for g in groups for c in g.completions]

    before = packed_logps(model, groups)
    monkeypatch.setattr(example, "PAIRS", len(pairs))
    (first,) = example.train(model, rows, steps=1, seed=0)
    assert first == pytest.approx(math.log(2), abs=1e-6)
    after = packed_logps(model, groups)
    with torch.no_grad():
        assert example.sequence_logps(model, rows).numpy() == pytest.approx(after.flatten(), rel=1e-4, abs=1e-3)
        batch = example.pair_batch(model, rows, torch.from_numpy(before.flatten()))
        losses = example.dpo_loss(batch, beta=example.BETA)
    by_hand = [oracles.dpo((*a, *b, 1, 1, 1.0)) for a, b in zip(after.tolist(), before.tolist(), strict=True)]
    assert losses.numpy() == pytest.approx(np.array(by_hand), abs=1e-3)
    assert np.mean(by_hand) < first - 0.01


@pytest.mark.long
@pytest.mark.parametrize("example", ["dpo"], indirect=True)
def test_dpo_learns(example: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    found = example.main(["--steps", "6", "--questions", "24"])
    assert found["losses"][0] == pytest.approx(math.log(2), abs=1e-6)
    assert found["losses"][-1] < 0.66
    assert found["accuracy"] > 0.9
    assert "0.6931 at first (ln 2)" in capsys.readouterr().out


@pytest.mark.parametrize("example", ["ppo"], indirect=True)
def test_ppo_credits_tokens_as_by_hand_and_starts_at_a_ratio_of_1(example: ModuleType, base: tuple[Any, Any]) -> None:
    model, tokenizer = base
    some = example.asked(tokenizer, [p.prompt for p in corpus.preferences()[::120]])
    ppo = example.PPO(model, tokenizer, seed=0)
    r = ppo.rollout(some)
    groups, scores = [], []
    for row, mask, prompt, text in zip(r.tokens_CL, r.written, some.ids, some.texts, strict=True):
        answer = row[1:][mask].numpy().astype(np.int32)
        groups.append(PromptGroup(prompt, (answer,), (np.ones(len(answer), bool),)))
        scores += judge.encyclopedic([text], [tokenizer.decode(answer, skip_special_tokens=True)])
    assert r.score_C.tolist() == scores
    assert {0.0, 1.0} == set(scores)
    logps = packed_logps(model, groups)[:, 0]
    assert (r.old_logp * r.written).sum(1).numpy() == pytest.approx(logps, rel=1e-4, abs=1e-3)
    torch.testing.assert_close(r.ref_logp, r.old_logp)
    assert not r.old_value.any(), "the critic begins at 0"

    advantages, returns = [], []
    for i, score in enumerate(scores):
        mask = r.written[i].tolist()
        rewards = oracles.token_rewards(score, (r.old_logp - r.ref_logp)[i].tolist(), mask, example.KL_COEF)
        advantage, back = oracles.gae(rewards, r.old_value[i].tolist(), mask, 1.0, 0.95)
        advantages += [a for a, m in zip(advantage, mask, strict=True) if m]
        returns += [b for b, m in zip(back, mask, strict=True) if m]
    whitened = (np.array(advantages) - np.mean(advantages)) / np.std(advantages)
    assert r.advantage[r.written].numpy() == pytest.approx(whitened, abs=1e-3)
    assert r.returns[r.written].numpy() == pytest.approx(np.array(returns), abs=1e-4)

    ratios = ppo.update(r)
    assert ratios[0] == pytest.approx(1.0, abs=1e-5)
    assert all(abs(ratio - 1) > 1e-5 for ratio in ratios[1:])


@pytest.mark.long
@pytest.mark.parametrize("example", ["ppo"], indirect=True)
def test_ppo_learns(example: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(example, "PROMPTS", 48)
    found = example.main(["--steps", "4", "--questions", "96"])
    assert found["after"]["reward"].low > found["before"]["reward"].high
    assert found["before"]["KL"].mean == pytest.approx(0, abs=1e-4)
    assert 0 < found["after"]["KL"].mean < 20
