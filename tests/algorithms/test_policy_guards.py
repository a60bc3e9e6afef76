"""What stops a policy-gradient run, or a pass of it, and what it says; and mistakes, each in one line."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import runs
from prefiere import recipe
from prefiere.console import Display
from prefiere.launch import launch
from prefiere.models.critic import rescale_critic
from prefiere.models.trunk import CRITIC
from prefiere.recipe import RecipeError
from prefiere.run import Run, Stop
from prefiere.settings import Reward
from prefiere.train.engine import Engine
from updates import method_of

QUIET = Display(quiet=True)


def go(tmp: Path, method: str = "ppo", **options: Any) -> Run:
    return launch(runs.policy_settings(tmp, method, **options), display=QUIET).run


# -- guards -----------------------------------------------------------------------------------------------------------


def test_a_policy_that_is_far_from_its_rollout_makes_no_further_pass(tmp_path, monkeypatch) -> None:
    passes: list[int] = []
    real = Engine.update

    def update(self, *args):
        passes.append(self.scheduler.last_epoch)
        return real(self, *args)

    monkeypatch.setattr(Engine, "update", update)
    given = {"num_ppo_epochs": 6, "learning_rate": 1e-2, "warmup_steps": 0.0, "max_steps": 2}
    cut = go(tmp_path, max_approx_kl=0.02, out=str(tmp_path / "cut"), **given).metrics
    assert 2 <= passes.count(0) < 6, "the first pass is at a KL of 0"
    assert cut[1]["policy/early_stops"] == 1
    assert cut[1]["policy/approxkl_avg"] > 0
    passes.clear()
    free = go(tmp_path, max_approx_kl=None, out=str(tmp_path / "free"), **given).metrics
    assert passes == [0] * 6 + [1] * 6
    assert free[1]["policy/early_stops"] == 0


def test_a_spent_kl_budget_stops_the_run_and_says_so(tmp_path) -> None:
    given = {"learning_rate": 2e-2, "warmup_steps": 0.0, "max_steps": 30, "max_approx_kl": None, "kl_coef": 0.0}
    outcome = launch(runs.policy_settings(tmp_path, "rloo", max_kl=0.5, **given), display=QUIET)
    status = outcome.run.status
    assert status["state"] == "stopped"
    assert status["step"] < 30
    assert "max_kl allows 0.5" in status["reason"]
    assert outcome.stopped == Stop("kl_budget", status["reason"])
    assert status["stop"] == {"kind": "kl_budget", "text": status["reason"]}
    assert outcome.run.metrics[-1]["objective/kl_k1"] > 0.5
    assert all(r["objective/kl_k1"] <= 0.5 for r in outcome.run.metrics[1:-1])
    assert (outcome.run.model / "config.json").exists(), "the policy within the budget is what was asked for"
    unguarded = runs.policy_settings(tmp_path, "rloo", max_kl=0.5, guard=False, **given)
    again = launch(unguarded, display=QUIET)
    assert again.run.status["step"] == status["step"], "max_kl is no guard that guard=false takes away"


@pytest.mark.long
def test_a_reward_that_is_exploited_stops_the_run(tmp_path) -> None:
    """The judge wants consonants, the reward vowels."""
    runs.prompts_file(tmp_path / "prompts.txt", n=40)
    given = {"learning_rate": 5e-3, "max_steps": 40, "sample_steps": 4, "eval_size": 16, "sample_prompts": 16}
    given |= {"reward": "rewarding:vowels", "judge": "rewarding:consonants", "samples_per_prompt": 8, "batch_size": 12}
    outcome = launch(runs.policy_settings(tmp_path, "rloo", **given), display=QUIET)
    assert outcome.run.status["state"] == "stopped"
    assert "exploiting the reward" in outcome.run.status["reason"]
    assert outcome.stopped == Stop("exploited", outcome.run.status["reason"])
    assert not outcome.run.model.exists()
    first, last = outcome.run.metrics[0], outcome.run.metrics[-1]
    assert last["samples/reward"] > first["samples/reward"]
    assert last["samples/score"] < first["samples/score"]
    same = {
        **given,
        "judge": "rewarding:vowels",
        "max_steps": outcome.run.status["step"],
        "out": str(tmp_path / "same"),
    }
    assert go(tmp_path, "rloo", **same).status["state"] == "finished"


@pytest.mark.parametrize(("target", "sign"), [(1e-3, +1), (1e3, -1)])
def test_the_kl_coefficient_is_steered_and_logged(tmp_path, target, sign) -> None:
    given = {"target_kl": target, "kl_horizon": 100, "learning_rate": 1e-2, "max_steps": 5, "batch_size": 12}
    rows = go(tmp_path, "rloo", **given).metrics[1:]
    coefficients = [r["kl_coef"] for r in rows]
    assert coefficients[0] == 0.05
    assert coefficients[1] == pytest.approx(0.05 * (1 - 0.2 * 48 / 100)), "at the first rollout there is no KL"
    steps = np.diff(coefficients[2:])
    assert all(sign * d > 0 for d in steps)
    for before, now, row in zip(coefficients[1:], coefficients[2:], rows[1:], strict=False):
        error = min(max(row["objective/kl_k1"] / target - 1, -0.2), 0.2)
        assert now == pytest.approx(before * (1 + error * 48 / 100))


@pytest.mark.parametrize("far", [-1e4, -50.0, 50.0, 1e4])
def test_gradients_are_finite_where_the_policy_has_left_its_rollout(tmp_path, far) -> None:
    """Log-probs of the rollout shifted by thousands of nats: through the objectives and the engine."""
    given = {"kl_loss_coef": 0.1, "kl_rollout_coef": 0.1, "max_approx_kl": None}
    for dual_clip in (None, 3.0):
        m = method_of(tmp_path, dual_clip=dual_clip, **given)

        def shifted(reward_CL, rollout, real=m.estimate):
            found = real(reward_CL, rollout)
            rollout.tokens["logp"] = rollout.tokens["logp"] + np.float32(far)
            rollout.tokens["value"] = rollout.tokens["value"] + np.float32(far)
            return found

        m.estimate = shifted
        update = m.step(0)
        assert math.isfinite(update.grad_norm)
        assert math.isfinite(update.loss)
        assert all(bool(torch.isfinite(p).all()) for p in m.session.engine.parameters)


# -- mistakes ---------------------------------------------------------------------------------------------------------


def labelled(tmp: Path, labels: int) -> Path:
    """A classifier with so many labels."""
    folder = runs.ragged_folder(tmp / "model")
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=labels)
    model.save_pretrained(tmp / "labels")
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp / "labels")
    return tmp / "labels"


def assert_one_line(tmp: Path, error: BaseException, says: str) -> None:
    """And whatever the run has left can be read."""
    assert isinstance(error, ValueError)
    text = str(error)
    assert says in text, text
    assert "\n" not in text
    folder = tmp / "run"
    if folder.exists():
        run = Run.open(folder)
        assert run.status["state"] == "failed"
        assert says in run.status["reason"]
        assert isinstance(run.metrics, list)
        assert run.data["prompts"]["train"] > 0


@pytest.mark.parametrize(
    ("reward", "says"),
    [
        ("rewarding:nan", "rewarding:nan returned nan for an answer to"),
        ("rewarding:short", "rewarding:short returned"),
        ("rewarding:raises", "rewarding.py:28: ZeroDivisionError: division by zero"),
        ("rewarding:words", "rewarding:words returned list: it must return a list of numbers"),
        ("rewarding:missing", "has no function 'missing'"),
        ("no_such_module:f", "cannot import no_such_module"),
        ("no/such/folder", "no/such/folder"),
    ],
)
def test_a_reward_that_cannot_be_used(tmp_path, reward, says) -> None:
    with pytest.raises(ValueError) as e:
        go(tmp_path, reward=reward, sample_steps=0)
    assert_one_line(tmp_path, e.value, says)
    assert (tmp_path / "run").exists() == (reward.startswith("rewarding:") and "missing" not in reward)


def test_a_reward_model_with_several_labels(tmp_path) -> None:
    with pytest.raises(ValueError) as e:
        go(tmp_path, reward=str(labelled(tmp_path, 3)))
    assert_one_line(tmp_path, e.value, "has 3 labels: a reward model has one, the score")


def test_a_model_that_is_no_reward_model(tmp_path) -> None:
    runs.ragged_folder(tmp_path / "model")
    with pytest.raises(ValueError) as e:
        go(tmp_path, reward=str(tmp_path / "model"))
    assert_one_line(tmp_path, e.value, "is no reward model: it has no score head")


def test_a_reward_adapter_that_does_not_fit_its_base(tmp_path) -> None:
    runs.model_folder(tmp_path / "model")
    given = runs.settings(tmp_path, Reward, lora=True, max_steps=2, out=str(tmp_path / "reward"))
    reward = launch(given, display=QUIET).run
    runs.model_folder(tmp_path / "model", hidden=64)
    for lora in (True, False):
        with pytest.raises(ValueError) as e:
            go(tmp_path, reward=str(reward.folder), lora=lora)
        assert_one_line(tmp_path, e.value, "does not fit")


@pytest.mark.long
def test_prompts_longer_than_the_context(tmp_path) -> None:
    long = tmp_path / "prompts.txt"
    runs.prompts_file(long)
    long.write_text(long.read_text() + "el perro " * 400 + "\n")
    for options in ({}, {"max_length": 5000}, {"max_prompt_length": 5000}):
        with pytest.raises(ValueError) as e:
            go(tmp_path, **options)
        assert_one_line(tmp_path, e.value, "prompts.txt:17: a prompt of ")
        assert "leaves 504 (1 such prompt)" in str(e.value)
    with pytest.raises(ValueError, match=r"and max_prompt_length takes 3 \("):
        go(tmp_path, max_prompt_length=3)
    with pytest.raises(ValueError, match="max_new_tokens: 600 tokens of an answer leave no room"):
        go(tmp_path, max_new_tokens=600)
    run = go(tmp_path, on_bad="drop", max_steps=1)
    assert run.data["train"]["dropped"] == {"too_long": 1, "sources": [f"{long}:17"]}
    assert run.status["state"] == "finished"


@pytest.mark.parametrize(("text", "says"), [("", "prompts.txt"), ("\n\n", "prompts.txt")])
def test_an_empty_prompt_file(tmp_path, text, says) -> None:
    (tmp_path / "prompts.txt").write_text(text)
    with pytest.raises(ValueError) as e:
        go(tmp_path)
    assert_one_line(tmp_path, e.value, says)
    assert not (tmp_path / "run").exists()


def test_a_critic_is_not_shared_twice(tmp_path) -> None:
    with pytest.raises(ValueError, match="share_critic has no effect with an adapter"):
        go(tmp_path, lora=True, share_critic=True)


def given(method: str, *text: str) -> Any:
    return recipe.load(method, None, {"model": "m", "data": "d", "out": "o"}, text)


@pytest.mark.parametrize(
    ("method", "text", "says"),
    [
        ("rloo", ["reward=r:f", "num_generations=1"], "num_generations must be a whole number from 2, not 1"),
        ("grpo", ["reward=r:f", "num_generations=1"], "num_generations must be a whole number from 2, not 1"),
        ("ppo", [], "reward is missing: give --reward"),
        ("rloo", ["reward=r:f", "lam=0.9"], "lam is a setting of method ppo, not of rloo"),
        ("grpo", ["reward=r:f", "vf_coef=0.9"], "vf_coef is a setting of method ppo, not of grpo"),
        ("ppo", ["reward=r:f", "beta=0.1"], "beta"),
        ("ppo", ["reward=r:f", "target_kl=5", "kl_coef=0"], "target_kl steers kl_coef"),
        ("ppo", ["reward=r:f", "num_mini_batches=500"], "num_mini_batches must be at most batch_size=128"),
        ("ppo", ["reward=r:f", "temperature=0"], "temperature must be a number above 0"),
        ("ppo", ["reward=r:f", "lora_dropout=0.1"], "lora_dropout must be 0"),
    ],
)
def test_settings_that_do_not_go_together(method, text, says) -> None:
    with pytest.raises(RecipeError) as e:
        given(method, *text)
    assert says in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("key", "ours"),
    [
        ("reward_funcs", "reward"),
        ("max_completion_length", "max_new_tokens"),
        ("whiten_rewards", "scale_rewards"),
        ("normalize_advantages", "whiten_advantages"),
        ("total_episodes", "max_steps"),
        ("local_rollout_forward_batch_size", "tokens_per_microbatch"),
        ("kl_estimator", "nothing"),
        ("adap_kl_ctrl", "target_kl"),
        ("stop_token", "nothing"),
        ("sft_model_path", "model"),
        ("value_model_path", "nothing"),
        ("beta", "kl_loss_coef"),
        ("loss_type", "nothing"),
    ],
)
@pytest.mark.parametrize("method", ["ppo", "grpo"])
def test_a_key_of_another_tool_names_ours(method, key, ours) -> None:
    with pytest.raises(RecipeError) as e:
        given(method, "reward=r:f", f"{key}=1")
    assert ours in str(e.value)
    assert "Did you mean" not in str(e.value)


@pytest.mark.parametrize("method", ["ppo", "grpo"])
def test_a_key_of_another_tool_that_means_the_same_is_read(method) -> None:
    theirs = ["reward_model_path=r:f", "response_length=9", "init_kl_coef=0.3", "num_iterations=3", "epsilon=0.1",
              "rloo_k=5", "delta=2"]  # fmt: skip
    made = given(method, *theirs)
    assert (made.reward, made.max_new_tokens, made.kl_coef, made.num_ppo_epochs) == ("r:f", 9, 0.3, 3)
    assert (made.cliprange, made.num_generations, made.dual_clip) == (0.1, 5, 2)


# -- what a run remembers of its reward -------------------------------------------------------------------------------


def test_a_new_head_is_not_scaled_by_rewards_that_it_never_said(tmp_path) -> None:
    """Of a critic that begins from the policy; one that begins as the reward model is: see test_four_roles."""
    trunk = runs.policy_session(tmp_path, "ppo").trunk
    before = trunk.heads[CRITIC].weight.detach().clone()
    assert rescale_critic(trunk, 0.01) is False
    assert torch.equal(trunk.heads[CRITIC].weight, before)


def test_sampled_answers_can_name_the_best_model(tmp_path) -> None:
    run = go(tmp_path, "rloo", metric_for_best_model="samples/reward", sample_steps=1, save_steps=1, eval_steps=3)
    assert run.status["state"] == "finished"
    best = max(run.metrics[1:], key=lambda row: row["samples/reward"])["step"]
    assert best == 3 or f"best step, {best}" in run.status["reason"]


def test_an_unknown_best_metric_lists_what_is_measured(tmp_path) -> None:
    with pytest.raises(ValueError, match="samples/reward"):
        go(tmp_path, "rloo", metric_for_best_model="reward")


def test_a_reward_model_that_changed_is_noticed_on_resume(tmp_path) -> None:
    pairs = runs.pairs_file(tmp_path / "pairs.jsonl")
    runs.ragged_folder(tmp_path / "model")

    def reward(seed: int) -> str:
        options = {
            "model": str(tmp_path / "model"),
            "data": str(pairs),
            "out": str(tmp_path / "reward"),
            "template": "never",
        }
        made = Reward(**options, max_steps=2, eval_size=4, learning_rate=1e-2, seed=seed)
        return str(launch(made, fresh=True, display=QUIET).run.folder)

    settings = runs.policy_settings(tmp_path, "rloo", reward=reward(1), save_steps=1)
    run = launch(settings, display=QUIET).run
    run.status = {**run.status, "state": "stopped"}
    reward(2)
    with pytest.raises(ValueError, match=r"reward model .* has changed since this run began"):
        launch(settings, display=QUIET)
