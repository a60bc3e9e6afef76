"""Policy gradients end to end: the ratio is 1 where it must be, hardware changes nothing, and an update written out in
float64 from plain forwards has the same gradients."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaModel

import oracles
import rewarding
import runs
from prefiere.console import Display
from prefiere.launch import launch
from prefiere.run import Run
from prefiere.settings import PolicyGradient
from prefiere.train.engine import Engine
from updates import assert_same, first_update, in_two_processes, kept_rollouts, method_of, recorded

QUIET = Display(quiet=True)
METHODS = ("ppo", "rloo", "grpo", "reinforce")


def go(tmp: Path, method: str = "ppo", **options: Any) -> Run:
    return launch(runs.policy_settings(tmp, method, **options), display=QUIET).run


# -- whole runs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_each_method_runs_learns_and_leaves_a_model_that_transformers_loads(tmp_path, method) -> None:
    given = {"max_steps": 12, "learning_rate": 1e-2, "max_approx_kl": None, "temperature": 0.9, "sample_steps": 6,
             "batch_size": 12, "num_generations": 4, "warmup_steps": 0.0}  # fmt: skip
    run = go(tmp_path, method, **given)
    rows = run.metrics
    assert run.status["state"] == "finished"
    assert [r["step"] for r in rows] == list(range(13))
    assert np.mean([r["reward"] for r in rows[-3:]]) > np.mean([r["reward"] for r in rows[1:4]]) + 0.5
    needed = {
        "reward", "reward_std", "objective/kl", "objective/kl_k1", "kl", "entropy", "sampler_drift", "returns/mean",
        "advantages/mean", "advantages/std", "completions/mean_length", "completions/eos_rate", "loss/policy_avg",
        "policy/clipfrac_avg", "policy/approxkl_avg", "val/ratio", "time/sampling", "time/learning", "kl_coef",
        "episodes", "grad_norm", "learning_rate",
    }  # fmt: skip
    critic = {"loss/value_avg", "val/explained_variance"}
    assert needed <= rows[1].keys()
    assert runs.unknown_columns(rows) == set()
    assert critic <= rows[1].keys() if method == "ppo" else not critic & rows[1].keys()
    assert 1 < rows[1]["completions/mean_length"] < 8
    assert 0 < rows[1]["completions/eos_rate"] < 1
    assert rows[-1]["episodes"] == 48 * 12
    assert rows[1]["objective/kl"] == pytest.approx(0, abs=1e-6)
    assert rows[-1]["objective/kl"] > 0.01
    assert rows[1]["sampler_drift"] < 0.02
    assert {s["step"] for s in run.samples} == {0, 6, 12}
    assert all(s["reward"] is not None for s in run.samples)
    assert AutoModelForCausalLM.from_pretrained(run.model) is not None


@pytest.mark.parametrize(
    ("method", "options"),
    [
        *((m, {}) for m in METHODS),
        ("ppo", {"num_mini_batches": 3, "temperature": 0.7, "tokens_per_microbatch": 40}),
        pytest.param(
            "ppo",
            {"lora": True, "gradient_checkpointing": True, "tokens_per_microbatch": 40},
            marks=pytest.mark.long,
        ),
        ("ppo", {"attn": "padded", "share_critic": True}),
        ("rloo", {"temperature": 0.7, "tokens_per_microbatch": 60, "num_mini_batches": 2, "num_ppo_epochs": 2}),
    ],
)
def test_the_ratio_is_exactly_1_on_the_first_pass(tmp_path, monkeypatch, method, options) -> None:
    """To the last bit: not one token's ratio is 0.9999999."""
    done: list[tuple[int, dict[str, Any]]] = []
    real = Engine.update

    def update(self, *args):
        found = real(self, *args)
        done.append((self.scheduler.last_epoch, found.metrics))
        return found

    monkeypatch.setattr(Engine, "update", update)
    go(tmp_path, method, max_approx_kl=None, learning_rate=1e-2, **options)
    first = dict(reversed(done))
    assert sorted(first) == [0, 1, 2]
    for metrics in first.values():
        ratio = metrics["val/ratio"]
        assert ratio.count == ratio.total == ratio.squares > 0
        assert metrics["policy/approxkl_avg"].total == 0
        assert metrics["policy/clipfrac_avg"].total == 0
    later = [m["policy/approxkl_avg"].mean for step, m in done if m is not first[step]]
    assert all(kl > 0 for kl in later), "the policy did not move"
    assert bool(later) == (len(done) > 3)


# -- hardware changes nothing -----------------------------------------------------------------------------------------


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "ppo": ("ppo", {}),
    "shared": ("ppo", {"share_critic": True, "temperature": 0.7}),
    "rloo": ("rloo", {"temperature": 0.7}),
    "reinforce": ("reinforce", {}),
    "one prompt": ("rloo", {"batch_size": 1}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("how", [{"attn": "padded"}, {"tokens_per_microbatch": 40}, {"gradient_checkpointing": True}])
def test_rows_and_microbatches_change_nothing(tmp_path, case, how) -> None:
    method, options = CASES[case]
    whole = first_update(tmp_path, method, **options)
    assert len(set(map(len, whole["tokens"]))) > 1, "all answers are equally long"
    assert all(float(g.norm()) > 0 for g in whole["gradients"].values())
    assert_same(whole, first_update(tmp_path, method, **{**options, **how}))


@pytest.mark.long
def test_two_processes_equal_one(tmp_path) -> None:
    one = {name: first_update(tmp_path, method, **options) for name, (method, options) in CASES.items()}
    cut = {n: (m, {**o, "tokens_per_microbatch": 40}) for n, (m, o) in CASES.items()}
    for name, two in in_two_processes(tmp_path, cut).items():
        assert two["world"] == 2
        assert_same(one[name], two)


@pytest.mark.long
def test_torchrun_gives_the_run_of_one_process(tmp_path) -> None:
    one = go(tmp_path, out=str(tmp_path / "one"))
    s = runs.policy_settings(tmp_path, out=str(tmp_path / "two"), tokens_per_microbatch=60)
    given = [f"{k}={v}" for k, v in s.model_dump(exclude_unset=True).items() if k != "method"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "prefiere"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [*command, "ppo", *given], env=env, capture_output=True, text=True, timeout=150, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-9000:]
    two = Run.open(s.out)
    assert two.environment["world_size"] == 2
    for a, b in zip(one.metrics, two.metrics, strict=True):
        for name in ("reward", "objective/kl", "loss/policy_avg", "loss/value_avg", "grad_norm", "val/ratio"):
            if name in a:
                assert a[name] == pytest.approx(b[name], rel=1e-3, abs=1e-5), name
    assert [r["completion"] for r in one.samples] == [r["completion"] for r in two.samples]


# -- an update written out --------------------------------------------------------------------------------------------


class Plain:
    """Policy, reference and critic as plain transformers in float64, one answer at a time."""

    def __init__(self, folder: Path, parameters: dict[str, torch.Tensor], temperature: float):
        self.policy = AutoModelForCausalLM.from_pretrained(folder).double()
        self.policy.load_state_dict(
            {n.removeprefix("model."): p.double() for n, p in parameters.items() if n.startswith("model.")}
        )
        self.reference = AutoModelForCausalLM.from_pretrained(folder).double()
        self.temperature = temperature
        prefix = "bodies.critic.model."
        body = {n.removeprefix(prefix): p.double() for n, p in parameters.items() if n.startswith(prefix)}
        if "heads.critic.weight" in parameters:
            self.critic = LlamaModel(self.policy.config).double() if body else self.policy.model
            if body:
                self.critic.load_state_dict(body)
            self.weight = parameters["heads.critic.weight"].double().requires_grad_(True)
            self.bias = parameters["heads.critic.bias"].double().requires_grad_(True)

    def logps(self, model: Any, prompt: Sequence[int], answer: Sequence[int]) -> torch.Tensor:
        logits = model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
        return torch.log_softmax(logits / self.temperature, -1)[torch.arange(len(answer)), torch.tensor(answer)]

    def values(self, prompt: Sequence[int], answer: Sequence[int]) -> torch.Tensor:
        states = self.critic(input_ids=torch.tensor([[*prompt, *answer]])).last_hidden_state[0, len(prompt) - 1 : -1]
        return states @ self.weight[0] + self.bias[0]

    def gradients(self) -> dict[str, torch.Tensor]:
        found = {f"model.{n}": p.grad for n, p in self.policy.named_parameters()}
        if hasattr(self, "critic"):
            if self.critic is not self.policy.model:
                found |= {f"bodies.critic.model.{n}": p.grad for n, p in self.critic.named_parameters()}
            found |= {"heads.critic.weight": self.weight.grad, "heads.critic.bias": self.bias.grad}
        return {n: g for n, g in found.items() if g is not None}


Answer = tuple[list[int], list[int]]


def advantages_of(
    s: PolicyGradient, scores: Sequence[float], kl: list[list[float]], values: list[list[float]]
) -> tuple[list[list[float]], list[list[float]]]:
    """Advantages and returns of each token, by the formulas, in Python floats."""
    advantages, returns = [], []
    for i, score in enumerate(scores):
        mask = [True] * len(kl[i])
        reward = oracles.token_rewards(score, kl[i], mask, s.kl_coef)
        if s.method == "ppo":
            a, r = oracles.gae(reward, values[i], mask, s.gamma, s.lam)
        else:
            a = r = oracles.discounted_returns(reward, mask, s.gamma)
        advantages.append(a)
        returns.append(r)
    whole, k = [r[0] for r in returns], s.num_generations
    if s.method == "reinforce":
        others = [(math.fsum(whole) - w) / (len(whole) - 1) for w in whole]
        advantages = [[x - others[i] for x in r] for i, r in enumerate(returns)]
    if s.method in ("rloo", "grpo"):
        credit = {"rloo": oracles.rloo, "grpo": oracles.grpo}[s.method]
        each = [a for g in range(0, len(whole), k) for a in credit(whole[g : g + k])]
        advantages = [[each[i]] * len(r) for i, r in enumerate(returns)]
    if s.whiten_advantages:
        flat = [a for row in advantages for a in row]
        mean = math.fsum(flat) / len(flat)
        std = math.sqrt(math.fsum((a - mean) ** 2 for a in flat) / len(flat))
        advantages = [[(a - mean) / std for a in row] for row in advantages]
    return advantages, returns


def written_out(
    s: PolicyGradient, rollout: Plain, now: Plain, answers: Sequence[Answer], scores: Sequence[float]
) -> float:
    """Leaves gradients in ``now`` of the loss on a rollout that ``rollout`` sampled; returns the loss."""
    with torch.no_grad():
        old = [rollout.logps(rollout.policy, *a).tolist() for a in answers]
        ref = [rollout.logps(rollout.reference, *a).tolist() for a in answers]
        values = [rollout.values(*a).tolist() for a in answers] if s.method == "ppo" else []
    kl = [[p - q for p, q in zip(one, two, strict=True)] for one, two in zip(old, ref, strict=True)]
    advantages, returns = advantages_of(s, scores, kl, values)
    terms = []
    for i, answer in enumerate(answers):
        logp = now.logps(now.policy, *answer)
        for t, x in enumerate(logp):
            ratio, a = torch.exp(x - old[i][t]), advantages[i][t]
            gain = min(ratio * a, min(max(ratio, torch.tensor(1 - s.cliprange)), torch.tensor(1 + s.cliprange)) * a)
            if a < 0 and s.dual_clip is not None:
                gain = max(gain, torch.tensor(s.dual_clip * a))
            loss = -gain
            if s.kl_loss_coef:
                loss = loss + s.kl_loss_coef * (x - ref[i][t]) ** 2 / 2
            if s.kl_rollout_coef:
                loss = loss + s.kl_rollout_coef * (torch.exp(x - old[i][t]) - 1 - (x - old[i][t]))
            terms.append(loss)
        if s.method == "ppo":
            for t, v in enumerate(now.values(*answer)):
                low, high = values[i][t] - s.cliprange_value, values[i][t] + s.cliprange_value
                near = min(max(v, torch.tensor(low)), torch.tensor(high))
                terms.append(s.vf_coef * max((v - returns[i][t]) ** 2, (near - returns[i][t]) ** 2) / 2)
    loss = torch.stack(terms).sum() / sum(len(a) for _, a in answers)
    loss.backward()
    return float(loss.detach())


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("ppo", {"temperature": 0.7, "cliprange": 0.05, "cliprange_value": 0.02}),
        ("ppo", {"kl_rollout_coef": 0.3, "lam": 0.5, "gamma": 0.9, "whiten_advantages": False, "dual_clip": 1.05}),
        ("ppo", {"share_critic": True, "kl_coef": 0.5}),
        ("rloo", {"kl_coef": 0.5}),
        ("grpo", {"kl_loss_coef": 0.5}),
        ("reinforce", {"gamma": 0.8, "kl_loss_coef": 0.3}),
    ],
)
def test_updates_written_out_in_float64(tmp_path, monkeypatch, method, options) -> None:
    """Two rollouts, two passes over each: at the second rollout there is a KL, at each second pass a ratio."""
    m = method_of(tmp_path, method, num_ppo_epochs=2, max_grad_norm=None, max_approx_kl=None, **options)
    s = m.settings
    recorder, rollouts, losses = recorded(m, lr=0.2), kept_rollouts(m), list[float]()
    update = Engine.update

    def noted(self, *args):
        found = update(self, *args)
        losses.append(found.loss)
        return found

    monkeypatch.setattr(Engine, "update", noted)
    for step in range(2):
        m.step(step)
    scale, clips = 0.0, 0
    for at, (parameters, gradients) in enumerate(recorder.seen):
        rollout = rollouts[at // 2]
        answers = [(g.prompt.tolist(), c.tolist()) for g in rollout.store for c in g.completions]
        texts = [m.session.decode(np.asarray(a)) for _, a in answers]
        rewards = rewarding.letters([], texts)
        scale = scale or float(np.std(rewards))
        scores = [min(max(r / scale, -10), 10) - (a[-1] not in m.session.eos_ids) for r, (_, a) in
                  zip(rewards, answers, strict=True)]  # fmt: skip
        began = Plain(tmp_path / "model", recorder.seen[at // 2 * 2][0], s.temperature)
        now = Plain(tmp_path / "model", parameters, s.temperature)
        loss = written_out(s, began, now, answers, scores)
        expected = now.gradients()
        assert gradients.keys() == expected.keys()
        assert losses[at] == pytest.approx(loss, rel=1e-4, abs=1e-6)
        norm = math.sqrt(sum(float(g.norm()) ** 2 for g in expected.values()))
        for name, g in expected.items():
            assert (gradients[name].double() - g).norm() < 2e-4 * max(float(g.norm()), 0.01 * norm), (at, name)
        clips += at % 2
    assert len(recorder.seen) == 4
    assert clips == 2
