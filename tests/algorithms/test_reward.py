"""Bradley-Terry training: the loss written out, however the update is cut, on decoders and encoders, and its runs."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl import RewardTrainer

import runs
import tiny
from prefiere.algorithms.reward import Scores
from prefiere.console import Display
from prefiere.launch import launch
from prefiere.models.adapter import Adapter
from prefiere.models.classifier import load_reward
from prefiere.models.load import load_policy
from prefiere.models.reward_model import RewardModel
from prefiere.models.score_head import Head, head_of
from prefiere.models.source import ModelError, find_model
from prefiere.models.trunk import POLICY
from prefiere.recipe import RecipeError, load
from prefiere.run import Run
from prefiere.settings import Reward
from prefiere.tokens.groups import GroupStore
from prefiere.train.engine import Engine
from prefiere.world import World, leave_group
from random_groups import store

QUIET = Display(quiet=True)
GOAL = {"centre": 0.02, "smoothing": 0.1}


def groups() -> GroupStore:
    """Plain pairs, ties, soft labels, margins and weights."""
    rng = np.random.default_rng(3)
    labels, margins = [1.0, 0.5, 0.8, 1.0], [math.nan, 0.7, math.nan, 1.5]
    made = [
        dataclasses.replace(g, label=labels[i % 4], margin=margins[int(rng.integers(4))])
        for i, g in enumerate(store(12, 2, vocab=60))
    ]
    return GroupStore.build(made, 2)


def classifier(family: Any = "llama") -> Any:
    """A decoder with a score head that is far from zero, in memory."""
    config = tiny.model(family, vocab_size=60).config
    config.num_labels = 1
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_config(config)
        torch.nn.init.normal_(model.score.weight, std=0.3)
    return model.eval()


def classifier_folder(folder: Path, family: Any = "llama") -> Path:
    if family == "bert":
        runs.encoder_folder(folder)
        model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
        torch.nn.init.normal_(model.classifier.weight, std=0.3)
    else:
        model = classifier(family)
    model.save_pretrained(folder)
    return folder


def engine(folder: Path, *, packed: bool | None = None, budget: int = 10_000, compute=None, adapter=None) -> Engine:
    trunk, _ = load_reward(
        find_model(folder), compute=compute or torch.float32, adapter=adapter, packed=packed, typed=True
    )
    optimizer = torch.optim.SGD([p for p in trunk.parameters() if p.requires_grad], lr=1.0)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    return Engine(
        trunk, optimizer, schedule, world=World.open(cpu=True), compute=compute,
        max_grad_norm=None, budget=budget, adapt=False,
    )  # fmt: skip


def step(e: Engine, pairs: GroupStore, **goal: float) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss of an update and its gradients, which SGD with rate 1 shows as changes."""
    before = {n: p.detach().clone() for n, p in e.trunk.model.named_parameters()}
    loss = e.update(pairs, np.arange(len(pairs)), Scores(**(goal or GOAL))).loss
    return loss, {n: before[n] - p.detach() for n, p in e.trunk.model.named_parameters()}


def assert_equal(one, two, tolerance: float = 1e-5) -> None:
    assert one[0] == pytest.approx(two[0], rel=tolerance)
    assert one[1].keys() == two[1].keys()
    whole = math.sqrt(sum(float(g.norm()) ** 2 for g in one[1].values()))
    for name, g in one[1].items():
        assert (g - two[1][name]).norm() <= tolerance * max(float(g.norm()), 0.01 * whole), name


# -- the loss ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral"])
def test_the_loss_written_out_in_float64(tmp_path, family) -> None:
    """Each answer alone in a plain forward; softplus by hand; the weighted mean; autograd."""
    pairs = groups()
    folder = classifier_folder(tmp_path / "model", family)
    model = AutoModelForSequenceClassification.from_pretrained(folder).double()
    total: Any = 0.0
    for g in pairs:
        a, b = (model(input_ids=torch.tensor([[*g.prompt, *c]])).logits[0, 0] for c in g.completions)
        p = 0.9 * g.label + 0.1 * (1 - g.label)
        m = 0.0 if math.isnan(g.margin) else g.margin
        loss = p * torch.log1p(torch.exp(b - a + m)) + (1 - p) * torch.log1p(torch.exp(a - b + m))
        total = total + g.weight * (loss + 0.02 * (a + b) ** 2)
    total = total / sum(g.weight for g in pairs)
    total.backward()
    expected = {n: p.grad.float() for n, p in model.named_parameters()}
    e = engine(folder)
    assert e.trunk.packed
    assert_equal((total.item(), expected), step(e, pairs), 2e-5)


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_trl_s_loss_on_a_padded_batch(tmp_path, family) -> None:
    """RewardTrainer's own compute_loss on the plain model, pad id 0 which no row contains."""
    pairs = GroupStore.build([dataclasses.replace(g, weight=1.0, label=1.0, margin=0.3) for g in groups()], 2)
    folder = classifier_folder(tmp_path / "model", family)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    rows = [torch.tensor([*g.prompt, *g.completions[i]]) for i in (0, 1) for g in pairs]
    types = [torch.tensor([0] * len(g.prompt) + [1] * len(g.completions[i])) for i in (0, 1) for g in pairs]
    ids, kinds = (torch.nn.utils.rnn.pad_sequence(x, batch_first=True) for x in (rows, types))
    inputs = {"input_ids": ids, "attention_mask": (ids > 0).long(), "margin": torch.full((len(pairs),), 0.3)}
    if family == "bert":
        inputs["token_type_ids"] = kinds
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True), accelerator=Accelerator(cpu=True),
        args=SimpleNamespace(center_rewards_coefficient=0.01), _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0, _tp_size=1,
    )  # fmt: skip

    def forward(use_cache, margin, **batch):
        return model(**batch)

    theirs = RewardTrainer.compute_loss(trainer, forward, inputs)
    theirs.backward()
    expected = {n: p.grad if p.grad is not None else torch.zeros_like(p) for n, p in model.named_parameters()}
    assert_equal((theirs.item(), expected), step(engine(folder), pairs, centre=0.01), 2e-5)


@pytest.mark.parametrize("family", ["llama", "bert"])
@pytest.mark.parametrize("budget", [1, 60, 200])
def test_microbatches_change_nothing(tmp_path, family, budget) -> None:
    folder = classifier_folder(tmp_path / "model", family)
    assert_equal(step(engine(folder), groups()), step(engine(folder, budget=budget), groups()), 2e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_packed_equals_padded(tmp_path, family) -> None:
    folder = classifier_folder(tmp_path / "model", family)
    packed, padded = engine(folder, packed=True), engine(folder, packed=False)
    assert_equal(step(packed, groups()), step(padded, groups()))


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_checkpointed_gradients_are_the_same(tmp_path, family) -> None:
    folder = classifier_folder(tmp_path / "model", family)
    plain, again = engine(folder), engine(folder)
    again.trunk.checkpoint_gradients()
    assert_equal(step(plain, groups()), step(again, groups()))


@pytest.mark.long
def test_two_processes_equal_one(tmp_path) -> None:
    folder = classifier_folder(tmp_path / "model")
    one = step(engine(folder, budget=100), groups())
    env = {**os.environ, "PYTHONPATH": f"{Path(__file__).parents[1]}:{os.environ.get('PYTHONPATH', '')}"}
    env |= {"OUT": str(tmp_path / "two.pt"), "MODEL": str(folder)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    two = torch.load(tmp_path / "two.pt", weights_only=True)
    assert two["world_size"] == 2
    assert_equal(one, (two["loss"], two["gradients"]), 2e-5)


def _in_a_process_group() -> None:
    e = engine(Path(os.environ["MODEL"]), budget=100)
    loss, gradients = step(e, groups())
    if e.world.main:
        torch.save({"loss": loss, "gradients": gradients, "world_size": e.world.size}, os.environ["OUT"])
    leave_group()


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_scores_are_never_rounded_below_fp32(tmp_path, family) -> None:
    folder = classifier_folder(tmp_path / "model", family)
    e = engine(folder, compute=torch.bfloat16)
    with e.autocast():
        scores = e.trunk.scores(e.pack(groups(), np.arange(12)), POLICY)
    assert scores.dtype == torch.float32
    assert (scores != scores.bfloat16().float()).float().mean() > 0.9, "every score is a bf16 number"


# -- what is trained --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "bert"])
@pytest.mark.parametrize(
    "config",
    [
        {"r": 2, "target_modules": "all-linear"},
        {"r": 2, "target_modules": "all-linear", "task_type": "CAUSAL_LM", "modules_to_save": []},
        {"r": 2, "target_modules": ["query", "q_proj"], "task_type": None},
        {"peft_type": "IA3", "target_modules": ["key", "k_proj"], "feedforward_modules": []},
    ],
)
def test_the_head_is_trained_whatever_the_adapter(tmp_path, family, config) -> None:
    folder = runs.encoder_folder(tmp_path / "base") if family == "bert" else runs.model_folder(tmp_path / "base")
    e = engine(folder, adapter=Adapter.of(config))
    head = head_of(e.trunk)
    assert head.weight.requires_grad
    assert torch.equal(head.weight, torch.zeros_like(head.weight))
    loss, gradients = step(e, store(12, 2, vocab=60), centre=0.0)
    assert loss == pytest.approx(math.log(2), abs=1e-6)
    assert head.weight.abs().max() > 0
    assert {n for n, g in gradients.items() if g.abs().max() > 0} <= {
        n for n, p in e.trunk.model.named_parameters() if p.requires_grad
    }
    config = e.trunk.model.peft_config[POLICY]
    assert config.task_type == "SEQ_CLS"
    assert {"score", "classifier"} & set(config.modules_to_save)


def test_an_adapter_that_does_not_fit_is_named(tmp_path) -> None:
    folder = runs.model_folder(tmp_path / "base")
    with pytest.raises(ModelError, match="does not fit"):
        engine(folder, adapter=Adapter.of({"peft_type": "LN_TUNING", "target_modules": ["no_such_layer"]}))


def test_an_sft_adapter_goes_on_as_a_reward_adapter(tmp_path) -> None:
    base = runs.model_folder(tmp_path / "model")
    torch.manual_seed(1)
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(tmp_path / "sft")
    policy, _ = load_policy(find_model(tmp_path / "sft"), compute=torch.float32, adapter=None)
    reward, _ = load_reward(find_model(tmp_path / "sft"), compute=torch.float32, adapter=None)
    batch = Engine.pack(SimpleNamespace(trunk=policy), groups(), np.arange(12))
    with torch.no_grad():
        own = torch.arange(batch.completions)
        mine, theirs = (t.states(batch, batch.last_C, own) for t in (reward, policy))
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
    assert all(p.requires_grad == ("lora" in n or "modules_to_save" in n) for n, p in reward.model.named_parameters())
    run = launch(runs.settings(tmp_path, Reward, model=str(tmp_path / "sft")), display=QUIET).run
    saved = json.loads((run.model / "adapter_config.json").read_text())
    assert saved["base_model_name_or_path"] == str(base)
    assert RewardModel.load(run.folder).score(["a"], ["b"]).shape == (1,)


def test_training_on_begins_where_the_scale_was_log_odds(tmp_path) -> None:
    first = launch(runs.settings(tmp_path, Reward, max_steps=8), display=QUIET).run
    s = runs.settings(tmp_path, Reward, max_steps=1, model=str(first.model), out=str(tmp_path / "more"))
    more = launch(s, display=QUIET).run
    before, after = first.metrics[-1], more.metrics[0]
    assert first.calibration["normalisation"]["std"] != pytest.approx(1, abs=0.05)
    assert after["eval_loss"] == pytest.approx(before["eval_loss"], abs=1e-5)
    assert after["eval_rewards/margins"] == pytest.approx(before["eval_rewards/margins"], abs=1e-5)


# -- runs -------------------------------------------------------------------------------------------------------------


def test_a_run_begins_at_chance_and_learns(tmp_path) -> None:
    runs.pairs_file(tmp_path / "pairs.jsonl", n=160)
    s = runs.settings(tmp_path, Reward, max_steps=60, learning_rate=3e-3, eval_size=30)
    run = launch(s, display=QUIET).run
    first, last = run.metrics[0], run.metrics[-1]
    assert first["loss"] == first["eval_loss"] == pytest.approx(math.log(2))
    assert first["rewards/accuracies"] == first["eval_rewards/accuracies"] == 0.5
    assert last["eval_rewards/accuracies"] == 1
    assert last["eval_loss"] < 0.1
    for name in ("loss", *(f"rewards/{n}" for n in ("chosen", "rejected", "margins", "accuracies", "mean", "std"))):
        assert name in last
        assert f"eval_{name}" in last
    assert not any("square" in name for name in last)
    assert run.samples == []
    spread = (last["eval_rewards/chosen"] - last["eval_rewards/rejected"]) / 2
    assert last["eval_rewards/std"] >= spread  # of all scores, both kinds together
    found = run.calibration
    assert found["n"] == 30
    assert found["accuracy"][0] == 1
    assert found["log_loss"][0] == pytest.approx(last["eval_loss"], rel=1e-5)
    assert set(found["normalisation"]) == {"mean", "std"}
    assert (run.folder / "report.html").exists() is False  # the command writes it, not the loop


def test_an_encoder_learns_and_plain_transformers_agrees(tmp_path) -> None:
    runs.encoder_folder(tmp_path / "model")
    run = launch(runs.settings(tmp_path, Reward, max_steps=30, learning_rate=3e-3), display=QUIET).run
    assert run.metrics[-1]["eval_rewards/accuracies"] == 1
    assert next(c["value"] for c in run.environment["choices"] if c["name"] == "rows") == "padded"
    asked, said = ["12 dog?", "what is the house"], ["perro un animal.", "pan"]
    tokenizer = AutoTokenizer.from_pretrained(run.model)
    model = AutoModelForSequenceClassification.from_pretrained(run.model).eval()
    with torch.no_grad():
        logits = model(**tokenizer(asked, said, padding=True, return_tensors="pt")).logits[:, 0].double().numpy()
    scores = RewardModel.load(run.folder).score(asked, said)
    assert abs(scores[0] - scores[1]) > 0.5
    np.testing.assert_allclose(scores, logits - model.config.prefiere_reward["mean"], atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("llama", {}),
        ("llama", {"lora": True, "lora_dropout": 0.2, "gradient_checkpointing": True}),
        ("llama", {"metric_for_best_model": "eval_loss", "save_steps": 100}),
        ("bert", {"center_rewards_coefficient": 0.1}),
    ],
)
def test_killed_and_resumed_equals_uninterrupted(tmp_path, kind, options) -> None:
    if kind == "bert":
        runs.encoder_folder(tmp_path / "model")
    options = {"max_steps": 6, "save_steps": 2, "eval_steps": 3, **options}
    whole = launch(runs.settings(tmp_path, Reward, out=str(tmp_path / "whole"), **options), display=QUIET).run
    s = runs.settings(tmp_path, Reward, out=str(tmp_path / "killed"), **options)
    for fatal in (3, 5):
        runs.kill(s, fatal)
    resumed = launch(s, display=QUIET).run
    name = "adapter_model.safetensors" if options.get("lora") else "model.safetensors"
    one, two = load_file(whole.model / name), load_file(resumed.model / name)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[n], two[n]) for n in one)
    assert whole.calibration == resumed.calibration
    clock = ("seconds", "tokens_per_second", "peak_memory_mb")
    rows = [[{k: v for k, v in r.items() if k not in clock} for r in run.metrics] for run in (whole, resumed)]
    assert rows[0] == rows[1]


@pytest.mark.parametrize(("put_back", "times"), [(False, 3), (True, 4)])
def test_held_out_pairs_are_scored_once_more_only_for_weights_that_were_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, put_back: bool, times: int
) -> None:
    """Before training, at step 2 and at step 4. Scores spread as they are learnt: where the narrowest are the best,
    those of step 2 are."""
    seen: list[int] = []
    measure = Engine.measure

    def counted(self: Engine, store: GroupStore, *args: Any, **options: Any) -> Any:
        seen.append(len(store))
        return measure(self, store, *args, **options)

    monkeypatch.setattr(Engine, "measure", counted)
    options: dict[str, Any] = {"max_steps": 4, "eval_steps": 2}
    if put_back:
        options |= {"metric_for_best_model": "eval_rewards/std", "greater_is_better": False}
    run = launch(runs.settings(tmp_path, Reward, **options), display=QUIET).run
    assert ("best step, 2" in (run.status["reason"] or "")) == put_back
    assert seen.count(6) == times
    held = next(r for r in reversed(run.metrics) if r["step"] == (2 if put_back else 4))
    assert run.calibration["log_loss"][0] == pytest.approx(held["eval_loss"], rel=1e-4)


@pytest.mark.long
def test_torchrun_gives_the_run_of_one_process(tmp_path: Path) -> None:
    options = {"max_steps": 3, "tokens_per_microbatch": 120}
    one = launch(runs.settings(tmp_path, Reward, out=str(tmp_path / "one"), **options), display=QUIET).run
    s = runs.settings(tmp_path, Reward, out=str(tmp_path / "two"), **options)
    given = [f"{k}={v}" for k, v in s.model_dump(exclude_unset=True).items()]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "prefiere"]
    done = subprocess.run([*command, "reward", *given], capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    two = Run.open(s.out)
    assert two.environment["world_size"] == 2
    for a, b in zip(one.metrics, two.metrics, strict=True):
        for name in ("loss", "eval_loss", "rewards/std", "eval_rewards/margins", "grad_norm"):
            if name in a:
                assert a[name] == pytest.approx(b[name], rel=1e-4, abs=1e-5), name
    for part in ("mean", "std"):
        assert one.calibration["normalisation"][part] == pytest.approx(two.calibration["normalisation"][part], rel=1e-3)


def test_ranked_answers_give_every_ordered_pair_or_the_extremes(tmp_path) -> None:
    rows = [
        {
            "prompt": f"\n\nHuman: {i} dog?\n\nAssistant:",
            "answers": [{"answer": w, "rank": r} for r, w in enumerate("abc", 1)],
        }
        for i in range(8)
    ]
    (tmp_path / "ranked.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    seen = {}
    for way in ("all", "best_worst"):
        s = runs.settings(
            tmp_path, Reward, data=str(tmp_path / "ranked.jsonl"), out=str(tmp_path / way), pairs_per_prompt=way,
            eval_size=2, max_steps=1,
        )  # fmt: skip
        seen[way] = launch(s, display=QUIET).run.data["examples"]
    assert seen["all"]["train"] + seen["all"]["eval"] == 24
    assert seen["best_worst"]["train"] + seen["best_worst"]["eval"] == 8


@pytest.mark.parametrize("text", ["sample_steps=5", "judge=a:b", "max_new_tokens=5", "samples_per_prompt=2"])
def test_settings_of_sampled_answers_are_refused(text) -> None:
    with pytest.raises(RecipeError, match="a reward model answers nothing"):
        load("reward", None, {"model": "m", "data": "d", "out": "o"}, [text])


def test_heads_stand_where_transformers_puts_them(tmp_path) -> None:
    for family, name in (("llama", "score"), ("bert", "classifier")):
        folder = runs.encoder_folder(tmp_path / family) if family == "bert" else runs.model_folder(tmp_path / family)
        trunk, _ = load_reward(find_model(folder), compute=torch.float32, adapter=None)
        assert type(trunk.lm.get_submodule(name)) is Head
        assert trunk.lm.get_submodule(name) is head_of(trunk)


if __name__ == "__main__":
    _in_a_process_group()
