"""Policy, reference, critic and reward model on one trunk: one base in memory, each gradient under its own adapter."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import quantized
import runs
from prefiere.algorithms.advantages import RewardScale
from prefiere.algorithms.on_policy import OnPolicy
from prefiere.algorithms.rollout import Rollout
from prefiere.console import Display
from prefiere.launch import launch
from prefiere.models.reward_model import RewardModel
from prefiere.models.trunk import CRITIC, POLICY, REFERENCE, REWARD
from prefiere.settings import Reward
from prefiere.tokens.groups import PromptGroup
from prefiere.tokens.pack import pack
from prefiere.train import checkpoint
from updates import assert_same, first_update, in_two_processes, kept_rollouts, method_of

QUIET = Display(quiet=True)


def starting_adapter(folder: Path, base: Path, dropout: float = 0.0) -> Path:
    """An adapter that is not the identity, as training leaves one."""
    torch.manual_seed(1)
    config = LoraConfig(r=4, lora_dropout=dropout, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.05)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


def reward_run(tmp: Path, **options: Any) -> Path:
    """A reward model trained on the policy's base for a few steps."""
    given = {"model": str(tmp / "model"), "max_steps": 6, "eval_size": 4, "learning_rate": 1e-2, **options}
    return launch(runs.settings(tmp, Reward, out=str(tmp / "reward"), **given), display=QUIET).run.folder


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder with a base, an adapter to start from and a reward model that is one; the options that name them."""
    tmp = tmp_path_factory.mktemp("four")
    runs.ragged_folder(tmp / "model", chat=False)
    reward = reward_run(tmp, lora=True, lora_dropout=0.3)
    start = starting_adapter(tmp / "start", tmp / "model", dropout=0.3)
    return tmp, {"model": str(start), "reward": str(reward)}


def copies_of(base: Path) -> dict[str, int]:
    """In how many places of memory each weight of a folder is held right now."""
    gc.collect()
    live = [x for x in gc.get_objects() if isinstance(x, torch.Tensor) and x.is_floating_point()]
    return {
        name: len({x.data_ptr() for x in live if x.shape == w.shape and torch.equal(x.float(), w)})
        for name, w in load_file(base / "model.safetensors").items()
        if w.ndim == 2
    }


def rollout_of(m: OnPolicy) -> Rollout:
    """The rollout of the first step, which is taken."""
    kept = kept_rollouts(m)
    m.step(0)
    return kept[0]


@pytest.mark.long
def test_the_base_is_in_memory_once(four) -> None:
    tmp, options = four
    m = method_of(tmp, **options)
    m.step(0)
    assert set(m.session.trunk.model.peft_config) == {POLICY, REFERENCE, CRITIC, REWARD}
    assert set(copies_of(tmp / "model").values()) == {1}
    del m
    full = method_of(tmp, reward=options["reward"], lora=False)
    assert max(copies_of(tmp / "model").values()) >= 3, "policy, reference and critic: the count does not count"
    del full


def test_a_step_moves_policy_and_critic_and_nothing_else(four) -> None:
    tmp, options = four
    m = method_of(tmp, learning_rate=1e-2, gradient_checkpointing=True, **options)
    trunk = m.session.trunk

    def state() -> dict[str, tuple[int, bool]]:
        return {n: (p.data_ptr(), p.requires_grad) for n, p in trunk.named_parameters()}

    before, values = state(), {n: p.detach().clone() for n, p in trunk.named_parameters()}
    seen = []
    for role in (POLICY, REFERENCE, CRITIC, REWARD, None):
        with trunk.role(role):
            seen.append(state())
    m.step(0)
    assert all(s == before for s in [*seen, state()])
    moved = {n for n, p in trunk.named_parameters() if not torch.equal(p, values[n])}
    trained = {n for n, p in trunk.named_parameters() if p.requires_grad}
    assert moved == trained
    roles = {r: [n for n in trained if f".{r}." in n] for r in (POLICY, CRITIC, REFERENCE, REWARD)}
    assert len(roles[POLICY]) == len([n for n in roles[CRITIC] if "lora" in n]) == 28
    assert len(trained) == 28 + 28 + 2, "the critic's head has a weight and a bias"
    assert not roles[REFERENCE]
    assert not roles[REWARD]


@pytest.mark.long
def test_checkpointing_microbatches_and_processes_change_no_gradient(four) -> None:
    tmp, options = four
    whole = first_update(tmp, "ppo", **options)
    for role in (POLICY, CRITIC):
        adapter = [g for n, g in whole["gradients"].items() if f".{role}." in n and "lora" in n]
        assert len(adapter) == 28
        assert all(float(g.norm()) > 0 for g in adapter)
    other = {**options, "gradient_checkpointing": True, "tokens_per_microbatch": 40}
    assert_same(whole, first_update(tmp, "ppo", **other))
    two = in_two_processes(tmp, {"roles": ("ppo", other)})["roles"]
    assert two["world"] == 2
    assert_same(whole, two)


@pytest.mark.parametrize("kind", ["mounted", "whole"])
def test_the_critic_begins_as_the_reward_model(tmp_path, monkeypatch, four, kind) -> None:
    """What it expects after t tokens is the reward model's own score of those t tokens, in scaled rewards; with its
    end token the answer's own score."""
    if kind == "mounted":
        tmp, options = four
    else:
        tmp = tmp_path
        runs.ragged_folder(tmp / "model", chat=False)
        options = {"reward": str(reward_run(tmp))}
    m = method_of(tmp, critic_warmup_steps=1, critic_learning_rate=1e-30, **options)

    def scaled(self: RewardScale, reward_C: np.ndarray, *_: Any) -> np.ndarray:
        self.std = 2.5
        return reward_C / 2.5

    monkeypatch.setattr(RewardScale, "__call__", scaled)
    rollout = rollout_of(m)
    said = [c for c in m.session.choices if c.name == "critic"]
    assert "begins as the reward model" in said[0].why
    alone = RewardModel.load(options["reward"])
    whole = [PromptGroup(g.prompt, (c,), (np.ones(len(c), bool),)) for g in rollout.store for c in g.completions]
    cut = [
        (c, t, PromptGroup(g.prompt, (g.completions[0][:t],), (np.ones(t, bool),)))
        for c, g in enumerate(whole)
        for t in range(1, len(g.completions[0]))
    ]
    expected = alone.score_groups([g for *_, g in cut])[:, 0] / 2.5
    values = [rollout.tokens["value"][rollout.first_C[c] + t] for c, t, _ in cut]
    np.testing.assert_allclose(values, expected, atol=2e-5)
    assert np.ptp(values) > 0.1

    trunk, batch = m.session.trunk, pack(whole)
    body = trunk.bodies[CRITIC] if kind == "whole" else trunk
    with torch.no_grad(), body.role(CRITIC):
        states = body.states(batch, batch.last_C, torch.arange(len(whole)))
        ends = trunk.number(states, CRITIC).numpy()
    np.testing.assert_allclose(ends, alone.score_groups(whole)[:, 0] / 2.5, atol=2e-5)
    texts = [m.session.decode(g.completions[0]) for g in whole]
    asked = [m.prompts.texts[0]] * len(whole)
    np.testing.assert_allclose(m.rewards(asked, texts), alone.score(asked, texts), atol=2e-5)


@pytest.mark.parametrize("options", [{"lora": True}, {}, {"share_critic": True}])
def test_without_a_reward_model_the_critic_begins_from_the_policy(tmp_path, options) -> None:
    m = method_of(tmp_path, **options)
    trunk = m.session.trunk
    said = [c for c in m.session.choices if c.name == "critic"]
    own = not options
    assert said[0].value == ("a model of its own" if own else "on the policy's trunk")
    assert "begins from the policy" in said[0].why
    assert (CRITIC in trunk.bodies) == own
    head = trunk.heads[CRITIC].weight
    assert bool(head.any()) == ("lora" not in options)
    torch.rand(7)  # what else the process has drawn does not matter
    again = method_of(tmp_path, out=str(tmp_path / "again"), **options).session.trunk
    assert torch.equal(again.heads[CRITIC].weight, head)
    if own:
        ours = dict(trunk.decoder.named_parameters())
        theirs = dict(trunk.bodies[CRITIC].decoder.named_parameters())
        assert all(torch.equal(ours[n], theirs[n]) and ours[n] is not theirs[n] for n in ours)


def test_dropout_of_adapters_is_off_in_every_role(four) -> None:
    """The starting adapter and the reward model were trained with dropout: neither has any here."""
    tmp, options = four
    m = method_of(tmp, **options)
    assert json.loads((tmp / "start" / "adapter_config.json").read_text())["lora_dropout"] == 0.3
    m.session.trunk.train()
    update = m.step(0)
    assert m.settings.num_ppo_epochs == 2
    drops = [x for x in m.session.trunk.modules() if isinstance(x, torch.nn.Dropout)]
    assert drops
    assert all(x.p == 0 for x in drops)
    assert update.metrics["objective/kl"].total == 0


def test_a_critic_beside_an_adapter_that_rewrote_the_base_leaves_the_base_alone(tmp_path) -> None:
    peft = {"r": 4, "lora_alpha": 4, "target_modules": "all-linear", "init_lora_weights": "pissa"}
    weights = []
    for method in ("ppo", "rloo"):
        m = method_of(tmp_path, method, peft_config=peft)
        weights.append({n: p for n, p in m.session.trunk.named_parameters() if "base_layer" in n})
        update = m.step(0)
        assert update.metrics["objective/kl"].total == pytest.approx(0, abs=1e-6)
    assert weights[0].keys() == weights[1].keys()
    assert weights[0]
    for name, w in weights[0].items():
        torch.testing.assert_close(w, weights[1][name], rtol=1e-5, atol=1e-6)


@pytest.mark.long
def test_four_roles_killed_and_resumed_equal_uninterrupted(tmp_path, four) -> None:
    """The reward model is mounted anew, and the critic, which began as that, is what it was when the run was killed."""
    tmp, options = four
    given = {"max_steps": 5, "save_steps": 2, "target_kl": 0.01, "kl_horizon": 50, **options}
    whole = launch(runs.policy_settings(tmp, out=str(tmp_path / "whole"), **given), display=QUIET).run
    s = runs.policy_settings(tmp, out=str(tmp_path / "killed"), **given)
    runs.kill(s, 3)
    resumed = launch(s, display=QUIET).run
    a, b = (checkpoint.found(r.checkpoints)[-1] for r in (whole, resumed))
    assert a.name == b.name == "step-00000005"
    x, y = (load_file(p / "trained.safetensors") for p in (a, b))
    assert x.keys() == y.keys()
    assert any(f".{CRITIC}." in n for n in x)
    assert all(torch.equal(x[n], y[n]) for n in x)
    state, other = (json.loads((p / "state.json").read_text())["method"] for p in (a, b))
    assert state == other
    assert state["kl"]["coef"] != 0.05
    assert whole.samples == resumed.samples
    assert [r.get("reward") for r in whole.metrics] == [r.get("reward") for r in resumed.metrics]


@pytest.mark.long
@pytest.mark.parametrize("held", ["nf4", "gptq"])
def test_four_roles_on_a_base_in_few_bits(tmp_path, held) -> None:
    if held == "nf4":
        pytest.importorskip("bitsandbytes")
    dense = quantized.mistral(tmp_path / "model")
    options: dict[str, Any] = {"model": str(dense), "quantize": "nf4"}
    if held == "gptq":
        quantized.folder(dense, tmp_path / "gptq", "gptq")
        options = {"model": str(tmp_path / "gptq")}
    reward = reward_run(tmp_path, **options)
    run = launch(runs.policy_settings(tmp_path, reward=str(reward), max_steps=2, **options), display=QUIET).run
    assert run.status["state"] == "finished"
    choices = {c["name"]: c["value"] for c in run.environment["choices"]}
    assert choices["quantization"] == held
    assert choices["critic"] == "on the policy's trunk"
    m = method_of(tmp_path, reward=str(reward), out=str(tmp_path / "again"), **options)
    before = {n: x.clone() for n, x in m.session.trunk.named_buffers()}
    frozen = {n: p.clone() for n, p in m.session.trunk.named_parameters() if not p.requires_grad}
    update = m.step(0)
    assert set(m.session.trunk.model.peft_config) == {POLICY, CRITIC, REWARD}
    assert update.metrics["objective/kl"].total == 0
    assert update.metrics["sampler_drift"].mean < 0.05
    assert all(torch.equal(x, before[n]) for n, x in m.session.trunk.named_buffers())
    now = dict(m.session.trunk.named_parameters())
    assert all(torch.equal(now[n], p) for n, p in frozen.items())
