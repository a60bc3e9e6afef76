"""A bandit whose optimum is known: answers of one token, the whole distribution read off the trained model.

REINFORCE, RLOO and PPO must end where reward and KL balance, pi* = pi_ref exp(r / beta) / Z; GRPO where its own
advantage and its own KL do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import oracles
import rewarding
import runs
import tiny
from prefiere.console import Display
from prefiere.launch import launch
from prefiere.sample.local import LocalRollouts
from prefiere.sample.sampling import Sample, Sampling
from prefiere.settings import PolicyGradient

WORDS = [f"w{i}" for i in range(12)]
BETA = 0.2
KL_LOSS = 1.0
K = 16


def world(folder: Path) -> None:
    """A model over 12 words, and each of them as a prompt."""
    entries = {t: i for i, t in enumerate(["<pad>", "<s>", "</s>", "<unk>", *WORDS])}
    made = Tokenizer(models.WordLevel(entries, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    tiny.model("llama", vocab_size=len(entries), layers=1).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "prompts.txt").write_text("\n".join(WORDS) + "\n")


def trained(tmp: Path, method: str, **options: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities [P, V] before and after a run, and the reward of each token [P, V]; padding is never sampled."""
    tmp.mkdir(exist_ok=True)
    world(tmp)
    given = {
        "max_new_tokens": 1, "batch_size": len(WORDS), "num_generations": K, "eval_size": 0, "sample_steps": 0,
        "missing_eos_penalty": 0.0, "scale_rewards": False, "reward_clip": None, "learning_rate": 1e-2,
        "max_steps": 80, "warmup_steps": 0.05, "save_steps": 1000,
    }  # fmt: skip
    s = runs.policy_settings(tmp, method, **{**given, **options})
    assert isinstance(s, PolicyGradient)
    run = launch(s, display=Display(quiet=True)).run
    assert run.status["state"] == "finished"
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp / "model")
    ids = torch.tensor([[tokenizer.convert_tokens_to_ids(w)] for w in WORDS])
    found = []
    for folder in (tmp / "model", run.model):
        with torch.no_grad():
            logits = AutoModelForCausalLM.from_pretrained(folder).double()(input_ids=ids).logits[:, -1]
        logits[:, tokenizer.pad_token_id] = -math.inf
        found.append(torch.softmax(logits, -1).numpy())
    texts = [tokenizer.decode([i], skip_special_tokens=True) for i in range(len(tokenizer))]
    name = getattr(rewarding, str(s.reward).removeprefix("rewarding:"))
    reward = np.asarray([name([w] * len(texts), texts) for w in WORDS])
    return found[0], found[1], reward


def kl(p_PV: np.ndarray, q_PV: np.ndarray) -> np.ndarray:
    """Nats per answer of each prompt [P]."""
    return np.where(p_PV > 0, p_PV * np.log(np.maximum(p_PV, 1e-300) / np.maximum(q_PV, 1e-300)), 0.0).sum(1)


def assert_reached(policy: np.ndarray, optimum: np.ndarray, reference: np.ndarray, reward: np.ndarray) -> None:
    """Mean reward and mean KL within 5% of the optimum's."""
    assert kl(optimum, reference).mean() > 0.2, "the optimum is where the policy began"
    assert (policy * reward).sum(1).mean() == pytest.approx((optimum * reward).sum(1).mean(), rel=0.05)
    assert kl(policy, reference).mean() == pytest.approx(kl(optimum, reference).mean(), rel=0.05)
    assert kl(policy, optimum).mean() < 0.05 * kl(optimum, reference).mean()


def tilted(reference: np.ndarray, reward: np.ndarray, beta: float) -> np.ndarray:
    """pi_ref exp(r / beta) / Z, prompt by prompt."""
    weight = reference * np.exp(reward / beta)
    return weight / weight.sum(1, keepdims=True)


@pytest.mark.long
@pytest.mark.parametrize("method", ["reinforce", "rloo", "ppo"])
def test_the_closed_form_is_reached(tmp_path, method) -> None:
    reference, policy, reward = trained(tmp_path, method, reward="rewarding:graded", kl_coef=BETA)
    assert_reached(policy, tilted(reference, reward, BETA), reference, reward)


TILT = 0.3


def tilting(
    self: Any, prompts: Sequence[np.ndarray], sampling: Sampling, *, version: int, numbers: Sequence[int], **_: Any
) -> list[Sample]:
    """Answers of a sampler whose logits are `TILT` higher for every other token, and lower for the rest: what training
    thinks of a token is then at most exp(2 TILT) = 1.8 times what the sampler did."""
    found = []
    for i, prompt in enumerate(prompts):
        with torch.no_grad():
            logits = self._model(input_ids=torch.from_numpy(prompt).long()[None]).logits[0, -1].double()
        logits[list(self._vocabulary.forbidden)] = -math.inf
        logp = torch.log_softmax(logits + TILT * (1 - 2 * (torch.arange(len(logits)) % 2)), -1).numpy()
        drawn = np.random.default_rng([sampling.seed, numbers[i]]).choice(len(logp), sampling.samples, p=np.exp(logp))
        for j, t in enumerate(drawn.tolist()):
            ended = t in self._vocabulary.eos_ids
            found.append(Sample(i, j, np.asarray([t], np.int32), logp[[t]].astype(np.float32), ended, version))
    return found


@pytest.mark.long
def test_importance_weights_undo_a_sampler_that_is_off(tmp_path, monkeypatch) -> None:
    """Without a baseline a wrong sampler moves the optimum: where E_mu[R grad log pi] = 0 is another place than where
    E_pi[R grad log pi] is."""
    monkeypatch.setattr(LocalRollouts, "sample", tilting)
    options = {"reward": "rewarding:lowered", "kl_coef": BETA, "baseline": "none", "num_generations": 64}
    options |= {"whiten_advantages": False}  # which takes a baseline as well
    ends = []
    for name, limit in (("weighted", 1.0), ("plain", None)):
        monkeypatch.setattr(LocalRollouts, "limit", limit)
        reference, policy, reward = trained(tmp_path / name, "reinforce", **options)
        ends.append(policy)
    optimum = tilted(reference, reward, BETA)
    assert_reached(ends[0], optimum, reference, reward)
    assert kl(ends[1], optimum).mean() > 0.2 * kl(optimum, reference).mean(), "it reaches it without them"


def grpo_shift(p: float) -> float:
    """E[A | a right answer] - E[A | a wrong one] among K answers that are right with probability p: by enumeration of
    how many of the K - 1 others are right."""
    found = 0.0
    for m in range(K):
        chance = math.comb(K - 1, m) * p**m * (1 - p) ** (K - 1 - m)
        found += chance * oracles.grpo([1.0] * (m + 1) + [0.0] * (K - 1 - m))[0]
        found -= chance * oracles.grpo([1.0] * m + [0.0] * (K - m))[-1]
    return found


def grpo_optimum(reference: np.ndarray, reward: np.ndarray) -> np.ndarray:
    """Where log-odds of a right answer have moved by `grpo_shift` / kl_loss_coef; among right ones, and among wrong
    ones, nothing moves."""
    out = np.empty_like(reference)
    for i, (row, r) in enumerate(zip(reference, reward, strict=True)):
        before = float(row[r == 1].sum())

        def off(p: float, before: float = before) -> float:
            return math.log(p / (1 - p)) - math.log(before / (1 - before)) - grpo_shift(p) / KL_LOSS

        p = brentq(off, 1e-6, 1 - 1e-6)
        out[i] = np.where(r == 1, row * p / before, row * (1 - p) / (1 - before))
    return out


@pytest.mark.long
def test_grpo_reaches_an_optimum_of_its_own(tmp_path) -> None:
    reference, policy, reward = trained(tmp_path, "grpo", reward="rewarding:right", kl_loss_coef=KL_LOSS)
    optimum = grpo_optimum(reference, reward)
    assert_reached(policy, optimum, reference, reward)
    other = tilted(reference, reward, KL_LOSS)
    assert (optimum * reward).sum(1).mean() > 1.2 * (other * reward).sum(1).mean(), "it is no optimum of its own"
