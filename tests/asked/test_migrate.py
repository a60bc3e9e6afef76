"""Recipes from files of other tools: what is taken over, what differs, what has no counterpart; nothing is lost."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from prefiere import recipe
from prefiere.asked.migrate import TRL, Migration, migrate
from prefiere.cli.main import app
from prefiere.recipe import RecipeError

TRL_DPO = """
model_name_or_path: org/base
dataset_name: org/pairs
dataset_config: helpful
dataset_train_split: train_prefs
dataset_test_split: test_prefs
output_dir: runs/dpo
loss_type: [ipo]
beta: 0.05
learning_rate: 5.0e-7
per_device_train_batch_size: 2
gradient_accumulation_steps: 8
num_train_epochs: 1
max_length: 512
warmup_steps: 0.05
lr_scheduler_type: cosine
bf16: true
gradient_checkpointing: true
use_peft: true
lora_r: 32
lora_alpha: 16
eval_strategy: steps
eval_steps: 50
logging_steps: 25
report_to: [wandb]
run_name: first
push_to_hub: true
dataset_num_proc: 4
remove_unused_columns: false
"""
TRL_GRPO = """
model_name_or_path: org/base
dataset_name: org/prompts
output_dir: runs/grpo
reward_funcs: my.rewards.short
num_generations: 4
per_device_train_batch_size: 8
gradient_accumulation_steps: 2
max_completion_length: 64
beta: 0.02
epsilon: 0.1
temperature: 0.9
scale_rewards: group
loss_type: dapo
lora_dropout: 0.05
use_vllm: true
dtype: bfloat16
"""
TRL_SCRIPT = """#!/bin/sh
# the first is ours
accelerate launch --num_processes 1 trl/scripts/reward.py \\
    --model_name_or_path org/base \\
    --dataset_name org/pairs \\
    --output_dir 'runs/rm' \\
    --learning_rate 1.0e-5 \\
    --no_remove_unused_columns \\
    --gradient_checkpointing \\
    --center_rewards_coefficient 0.01 \\
    --eval_strategy epoch
trl dpo --model_name_or_path other
"""
LF_DPO = """
model_name_or_path: org/base
trust_remote_code: true
stage: dpo
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: q_proj,v_proj
pref_beta: 0.2
pref_loss: simpo
dataset: my_pairs
template: qwen
cutoff_len: 1024
max_samples: 1000
output_dir: saves/dpo
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 5.0e-6
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
val_size: 0.1
eval_strategy: steps
eval_steps: 500
report_to: none
plot_loss: true
overwrite_output_dir: true
resume_from_checkpoint: null
"""
LF_RM = """
model_name_or_path: org/base
stage: rm
finetuning_type: full
deepspeed: ds_z3_config.json
dataset: a,b
cutoff_len: 2048
output_dir: saves/rm
per_device_train_batch_size: 4
learning_rate: 1.0e-5
fp16: true
disable_gradient_checkpointing: true
"""
LF_SFT = """
model_name_or_path: org/base
adapter_name_or_path: saves/before
stage: sft
finetuning_type: lora
quantization_bit: 4
quantization_method: bnb
dataset: identity
output_dir: saves/sft
train_on_prompt: true
enable_thinking: false
lora_target: all
flash_attn: fa2
use_galore: true
neat_packing: true
"""
AX_DPO = """
base_model: org/base
load_in_8bit: true
load_in_4bit: false
rl: dpo
chat_template: llama3
datasets:
  - path: org/pairs
    name: helpful
    split: train
    type: chat_template.default
    field_messages: conversation
    field_chosen: better
    field_rejected: rejected
    roles: {user: [user]}
val_set_size: 0.05
output_dir: ./outputs/dpo
sequence_len: 4096
sample_packing: false
adapter: lora
lora_model_dir:
lora_r: 32
lora_alpha: 16
lora_dropout: 0.05
lora_target_linear: true
wandb_project: preferences
wandb_entity:
gradient_accumulation_steps: 4
micro_batch_size: 2
num_epochs: 4
optimizer: adamw_bnb_8bit
lr_scheduler: cosine
learning_rate: 0.0002
bf16: auto
tf32: false
warmup_steps: 10
evals_per_epoch: 4
weight_decay: 0.0
special_tokens: {pad_token: <pad>}
"""
AX_SFT = """
base_model: org/base
datasets:
  - path: org/alpaca
    type: alpaca
  - path: org/other
    type: alpaca
output_dir: ./outputs/sft
sequence_len: 2048
adapter: qlora
load_in_4bit: true
lora_target_modules: [q_proj, v_proj]
micro_batch_size: 1
learning_rate: 0.0001
optimizer: adamw_torch
train_on_inputs: true
val_set_size: 0.0
flash_attention: true
"""
AX_KTO = """
base_model: org/base
rl: kto
rl_beta: 0.3
kto_desirable_weight: 0.5
datasets:
  - path: org/votes
    type: llama3.ultra
output_dir: ./outputs/kto
sequence_len: 2048
micro_batch_size: 4
learning_rate: 0.0001
max_steps: 20
bf16: true
"""
EXPECTED: dict[str, tuple[str, str, dict[str, Any], set[str], set[str]]] = {
    "trl-dpo.yaml": (TRL_DPO, "TRL", {
        "method": "dpo", "model": "org/base", "data": "org/pairs:helpful", "data_split": "train_prefs",
        "eval_data": "org/pairs:helpful[test_prefs]", "out": "runs/dpo", "loss_type": "ipo", "beta": 0.05,
        "learning_rate": 5e-7, "batch_size": 16, "num_train_epochs": 1, "max_length": 512, "warmup_steps": 0.05,
        "lr_scheduler_type": "cosine", "dtype": "bfloat16", "gradient_checkpointing": True, "lora": True, "lora_r": 32,
        "lora_alpha": 16, "lora_dropout": 0.05, "eval_steps": 50, "logging_steps": 25, "report_to": ["wandb"],
        "run_name": "first",
    }, {"push_to_hub", "dataset_num_proc"}, {"lora_dropout"}),
    "trl-grpo.yaml": (TRL_GRPO, "TRL", {
        "method": "grpo", "model": "org/base", "data": "org/prompts", "out": "runs/grpo", "reward": "my.rewards:short",
        "num_generations": 4, "batch_size": 4, "max_new_tokens": 64, "kl_loss_coef": 0.02, "cliprange": 0.1,
        "temperature": 0.9, "dtype": "bfloat16", "learning_rate": 1e-6, "num_train_epochs": 3.0, "warmup_steps": 0.0,
        "lora": False,
    }, {"scale_rewards", "loss_type", "lora_dropout", "use_vllm"},
        {"learning_rate", "num_train_epochs", "warmup_steps", "lora"}),
    "trl.sh": (TRL_SCRIPT, "TRL", {
        "method": "reward", "model": "org/base", "data": "org/pairs", "out": "runs/rm", "learning_rate": 1e-5,
        "gradient_checkpointing": True, "center_rewards_coefficient": 0.01, "batch_size": 8, "num_train_epochs": 3.0,
        "warmup_steps": 0.0, "lora": False,
    }, {"eval_strategy", "further commands"}, {"batch_size", "num_train_epochs", "warmup_steps", "lora"}),
    "lf-dpo.yaml": (LF_DPO, "LLaMA-Factory", {
        "method": "dpo", "model": "org/base", "trust_remote_code": True, "lora": True, "lora_r": 8, "lora_alpha": 16.0,
        "lora_target_modules": ["q_proj", "v_proj"], "beta": 0.2, "loss_type": "simpo", "simpo_gamma": 0.5,
        "max_length": 1024, "out": "saves/dpo", "batch_size": 8, "learning_rate": 5e-6, "num_train_epochs": 3.0,
        "lr_scheduler_type": "cosine", "warmup_steps": 0.1, "dtype": "bfloat16", "eval_size": 0.1, "eval_steps": 500,
    }, {"dataset", "template", "max_samples", "plot_loss", "overwrite_output_dir"}, {"lora_alpha", "simpo_gamma"}),
    "lf-rm.yaml": (LF_RM, "LLaMA-Factory", {
        "method": "reward", "model": "org/base", "lora": False, "max_length": 2048, "out": "saves/rm", "batch_size": 4,
        "learning_rate": 1e-5, "dtype": "float16", "gradient_checkpointing": False, "num_train_epochs": 3.0,
        "warmup_steps": 0.0,
    }, {"deepspeed", "dataset"}, {"num_train_epochs", "warmup_steps"}),
    "lf-sft.yaml": (LF_SFT, "LLaMA-Factory", {
        "method": "sft", "model": "saves/before", "lora": True, "quantize": "nf4", "out": "saves/sft",
        "completion_only_loss": False, "template_kwargs": {"enable_thinking": False},
        "lora_target_modules": "all-linear", "learning_rate": 5e-5, "warmup_steps": 0.0, "max_length": 2048,
        "lr_scheduler_type": "linear", "batch_size": 8, "lora_r": 8, "lora_alpha": 16.0,
    }, {"dataset", "flash_attn", "use_galore", "neat_packing"},
        {"learning_rate", "warmup_steps", "max_length", "lr_scheduler_type", "batch_size", "lora_r", "lora_alpha"}),
    "ax-dpo.yaml": (AX_DPO, "Axolotl", {
        "method": "dpo", "model": "org/base", "quantize": "int8", "data": "org/pairs:helpful",
        "columns": {"prompt": "conversation", "chosen": "better"}, "eval_size": 0.05, "out": "./outputs/dpo",
        "max_length": 4096, "lora": True, "lora_r": 32, "lora_alpha": 16, "lora_dropout": 0.05,
        "lora_target_modules": "all-linear", "project": "preferences", "report_to": ["wandb"], "batch_size": 8,
        "num_train_epochs": 4, "lr_scheduler_type": "cosine", "learning_rate": 0.0002, "dtype": "auto",
        "warmup_steps": 10, "weight_decay": 0.0,
    }, {"chat_template", "optimizer", "evals_per_epoch", "special_tokens"}, set()),
    "ax-sft.yaml": (AX_SFT, "Axolotl", {
        "method": "sft", "model": "org/base", "out": "./outputs/sft", "max_length": 2048, "lora": True,
        "quantize": "nf4", "lora_target_modules": ["q_proj", "v_proj"], "batch_size": 1, "learning_rate": 0.0001,
        "completion_only_loss": False, "eval_size": 0.0, "num_train_epochs": 1.0,
    }, {"datasets", "flash_attention"}, {"num_train_epochs"}),
    "ax-kto.yaml": (AX_KTO, "Axolotl", {
        "method": "dpo", "loss_type": "kto", "model": "org/base", "beta": 0.3, "desirable_weight": 0.5,
        "data": "org/votes", "out": "./outputs/kto", "max_length": 2048, "batch_size": 4, "learning_rate": 0.0001,
        "max_steps": 20, "dtype": "bfloat16", "lr_scheduler_type": "cosine", "lora": False,
    }, set(), {"lr_scheduler_type", "lora"}),
}  # fmt: skip


def made(name: str, tmp_path: Path) -> Migration:
    (tmp_path / name).write_text(EXPECTED[name][0])
    return migrate(tmp_path / name)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_file_of_another_tool(name: str, tmp_path: Path) -> None:
    _, tool, settings, left, of_tool = EXPECTED[name]
    found = made(name, tmp_path)
    assert found.tool == tool
    assert found.settings == settings
    assert set(found.left) == left
    assert found.of_tool == of_tool


@pytest.mark.parametrize("name", EXPECTED)
def test_every_key_is_accounted_for(name: str, tmp_path: Path) -> None:
    found = made(name, tmp_path)
    says_the_method = {"stage", "rl", "trainer"}
    assert {*found.taken, *found.left, *found.idle} == found.values.keys() - says_the_method
    assert not set(found.taken) & {*found.left, *found.idle}
    told = "\n".join(found.lines())
    assert all(f"  {key}: " in told for key in (*found.left, *found.differs))


@pytest.mark.parametrize("name", EXPECTED)
def test_the_recipe_that_is_written_is_valid_and_says_what_it_lacks(name: str, tmp_path: Path) -> None:
    found, out = made(name, tmp_path), tmp_path / "ours.yaml"
    done = CliRunner().invoke(app, ["recipe", "from", str(tmp_path / name), "--out", str(out)])
    assert done.exit_code == 0, done.output
    checked = CliRunner().invoke(app, ["recipe", "validate", str(out)])
    assert checked.exit_code == 0, checked.output
    assert yaml.safe_load(out.read_text()) == found.settings
    for line in found.lines():
        assert f"# {line}" in out.read_text()
        assert line in done.stderr
    printed = CliRunner().invoke(app, ["recipe", "from", str(tmp_path / name)])
    assert printed.stdout == out.read_text()
    again = CliRunner().invoke(app, ["recipe", "from", str(tmp_path / name), "--out", str(out)])
    assert (again.exit_code, again.stderr.count("\n")) == (2, 1)
    assert "is there already" in again.stderr


def test_such_a_file_given_as_a_recipe_is_answered_at_once_with_what_translates_it(tmp_path: Path) -> None:
    (tmp_path / "trl.yaml").write_text(TRL_DPO)
    with pytest.raises(RecipeError) as e:
        recipe.load("dpo", tmp_path / "trl.yaml")
    lines = str(e.value).splitlines()
    assert lines[0] == "8 settings to put right:"
    assert [line.split(":")[2].split()[0] for line in lines[1:-1]] == [
        "dataset_config", "dataset_test_split", "per_device_train_batch_size", "gradient_accumulation_steps", "bf16",
        "push_to_hub", "dataset_num_proc", "remove_unused_columns",
    ]  # fmt: skip
    assert (
        lines[-1] == f"`prefiere recipe from {tmp_path / 'trl.yaml'}` writes a recipe of ours from another tool's file."
    )


def test_what_differs_is_said(tmp_path: Path) -> None:
    said = made("trl-dpo.yaml", tmp_path).differs
    assert said["per_device_train_batch_size"].startswith(
        "per_device_train_batch_size 2 x gradient_accumulation_steps 8, of one process"
    )
    assert said["bf16"] == "of products; what is trained is held in fp32"
    assert "all-linear" in said["use_peft"]


@pytest.mark.parametrize(
    ("text", "model", "left"),
    [
        ("base_model: org/base\nrevision_of_model: v1\nmicro_batch_size: 1\n", "org/base@v1", set()),
        ("model_name_or_path: org/base\nmodel_revision: 12\nbeta: 0.1\ndataset_name: d\n", "org/base@12", set()),
        ("model_name_or_path: org/base\nmodel_revision: main\nbeta: 0.1\ndataset_name: d\n", "org/base", set()),
        ("model_name_or_path: ./here\nmodel_revision: v1\nbeta: 0.1\ndataset_name: d\n", "./here", {"model_revision"}),
        ("model_name_or_path: b\nmodel_revision: v1\nadapter_name_or_path: ./a\nstage: dpo\ncutoff_len: 8\n", "./a",
         {"model_revision"}),
    ],
)  # fmt: skip
def test_the_revision_of_a_model_of_the_hub_is_taken_over(
    text: str, model: str, left: set[str], tmp_path: Path
) -> None:
    (tmp_path / "f.yaml").write_text(text)
    found = migrate(tmp_path / "f.yaml")
    assert (found.settings["model"], set(found.left)) == (model, left)


@pytest.mark.parametrize(
    ("said", "differs", "setting"),
    [
        ("packing: true", True, None),
        ("assistant_only_loss: false", True, None),
        ("assistant_only_loss: true", False, True),
        ("completion_only_loss: false", False, False),
    ],
)
def test_what_imitation_learns_of_a_conversation_is_said(
    said: str, differs: bool, setting: bool | None, tmp_path: Path
) -> None:
    (tmp_path / "f.yaml").write_text(f"model_name_or_path: m\ndataset_name: d\nmax_length: 8\n{said}\n")
    found = migrate(tmp_path / "f.yaml", method="sft")
    assert ("theirs learns every turn" in found.differs.get("dataset_name", "")) is differs
    assert found.settings.get("completion_only_loss") is setting


SECRETS = """
model_name_or_path: m
dataset_name: d
beta: 0.1
hub_token: hf_mine
hf_hub_token: hf_mine
pad_token: <pad>
added_tokens: [<a>]
env: {WANDB_API_KEY: hf_mine, NUMBER: "0", nested: [{db_password: hf_mine}]}
webhook: https://ana:hf_mine@host/x?token=hf_mine&y=1
more: [HF_TOKEN=hf_mine]
headers: {Authorization: Bearer hf_mine}
wandb_api_key: 4815162342
db: {password: 2342-08-15, keys: [4815162342.5, -4815162342]}
push_token: true
num_key_value_heads: 8
"""


def test_secrets_are_not_shown(tmp_path: Path) -> None:
    (tmp_path / "f.yaml").write_text(SECRETS)
    done = CliRunner().invoke(app, ["recipe", "from", str(tmp_path / "f.yaml")])
    assert done.exit_code == 0, done.output
    for secret in ("hf_mine", "4815162342", "2342"):
        assert secret not in done.output
    for line in (
        "hub_token: '***':",
        "hf_hub_token: '***':",
        "pad_token: <pad>:",
        "added_tokens: [<a>]:",
        "env: {NUMBER: '0', WANDB_API_KEY: '***', nested: [{db_password: '***'}]}:",
        "webhook: https://ana:***@host/x?token=***&y=1:",
        "more: [HF_TOKEN=***]:",
        "headers: {Authorization: '***'}:",
        "wandb_api_key: '***':",
        "db: {keys: ['***', '***'], password: '***'}:",
        "push_token: true:",
        "num_key_value_heads: 8:",
    ):
        assert f"#   {line}" in done.stdout, line


@pytest.mark.parametrize(
    ("typed", "options"),
    [
        ("trl dpo --beta 0.2 && echo 'done", {"beta": 0.2}),
        ("trl dpo --beta 0.2 2>&1 | tee it's.log", {"beta": 0.2}),
        ("trl dpo --beta 0.2  # don't", {"beta": 0.2}),
        ("trl dpo --beta 0.2; trl", {"beta": 0.2}),
        ("`trl dpo --beta 0.2`", {"beta": 0.2}),
        ("trl dpo \\\n  --beta 0.2 \\\n  --bf16", {"beta": 0.2, "bf16": True}),
        ("trl dpo --run_name try#3 --x '#3' --y \"a b\"", {"run_name": "try#3", "x": "#3", "y": "a b"}),
        ("trl dpo --x @file --out $(date) --lr 1e-6", {"x": "@file", "out": "$(date)", "lr": 1e-6}),
        ("trl dpo --x '{\"a\": [1]}' --y -1", {"x": {"a": [1]}, "y": -1}),
        ("trl dpo --x a b", {"x": ["a", "b"]}),
    ],
)
def test_a_command_ends_where_a_shell_ends_it(typed: str, options: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "f.sh").write_text(f"{typed}\n")
    (tmp_path / "f.ipynb").write_text(
        json.dumps(
            {
                "cells": [
                    {"cell_type": "markdown", "source": "trl sft --beta 9"},
                    {"cell_type": "code", "source": ["x = 1\n", f"!{typed}\n"]},
                    {"cell_type": "code", "source": "y = 2"},
                ]
            }
        )
    )
    for name in ("f.sh", "f.ipynb"):
        found = migrate(tmp_path / name)
        assert found.settings["method"] == "dpo"
        assert found.values == {"trainer": "dpo", **options}


def test_a_loss_that_is_not_there_is_left_out_and_the_default_named(tmp_path: Path) -> None:
    (tmp_path / "f.yaml").write_text("model_name_or_path: m\ndataset_name: d\nloss_type: exo_pair\nbeta: 0.1\n")
    found = migrate(tmp_path / "f.yaml")
    assert "loss_type" not in found.settings
    assert found.left["loss_type"].startswith("loss_type must be sigmoid, ipo")
    assert found.left["loss_type"].endswith("not 'exo_pair'; sigmoid, the default, stands in its place")


def test_two_keys_that_say_different_things_are_not_lost(tmp_path: Path) -> None:
    (tmp_path / "f.yaml").write_text(
        "model_name_or_path: a\nsft_model_path: b\nreward_model_path: r\ndataset_name: d\n"
    )
    found = migrate(tmp_path / "f.yaml")
    assert (found.settings["method"], found.settings["model"], found.settings["reward"]) == ("ppo", "a", "r")
    assert found.left["sft_model_path"] == "model is a already, by another key"


def test_the_method_of_a_file_of_trl_may_have_to_be_named(tmp_path: Path) -> None:
    (tmp_path / "f.yaml").write_text("model_name_or_path: m\ndataset_name: d\nlearning_rate: 0.0001\n")
    with pytest.raises(RecipeError, match="do not say which trainer it is for: add --method dpo"):
        migrate(tmp_path / "f.yaml")
    assert migrate(tmp_path / "f.yaml", method="sft").settings["method"] == "sft"
    assert migrate(tmp_path / "f.yaml", method="kto").settings["loss_type"] == "kto"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("f.yaml", "learning_rate: 1\n", "do not say whose file it is: add --tool trl or llama-factory or axolotl"),
        ("f.yaml", "- 1\n", "a recipe is lines of"),
        ("f.txt", "nothing here\n", "no command such as `trl dpo"),
        ("f.yaml", "a: b: c\n", "not valid YAML"),
        ("f.sh", "trl dpo --run_name 'first --beta 0.2\n", "f.sh: a quote of the command trl dpo is not closed"),
        ("f.ipynb", '{"cells": 3}', "f.ipynb: no notebook"),
        ("f.ipynb", "no JSON", "f.ipynb: no notebook"),
    ],
)
def test_what_is_no_such_file_is_one_line(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    done = CliRunner().invoke(app, ["recipe", "from", str(tmp_path / name)])
    assert (done.exit_code, done.stderr.count("\n"), done.stdout) == (2, 1, "")
    assert message in done.stderr


def test_hostile_values_stay_in_their_comment(tmp_path: Path) -> None:
    key = '"evil\\nmodel"'
    (tmp_path / "f.yaml").write_text(
        f'stage: dpo\ncutoff_len: 8\n{key}: "x\\nmodel: theirs\\e[2J"\ntemplate: "a\\nb: c"\n'
    )
    found = migrate(tmp_path / "f.yaml")
    assert "\x1b" not in found.text()
    assert yaml.safe_load(found.text()) == found.settings
    assert "model" not in found.settings


@pytest.mark.parametrize(
    ("trainer", "config"), [("dpo", "DPOConfig"), ("sft", "SFTConfig"), ("reward", "RewardConfig"),
                            ("grpo", "GRPOConfig"), ("rloo", "RLOOConfig")]
)  # fmt: skip
def test_the_defaults_of_trl_are_those_of_its_own_classes(trainer: str, config: str) -> None:
    import trl

    theirs = {f.name: f.default for f in dataclasses.fields(getattr(trl, config))}
    of_model = {f.name: f.default for f in dataclasses.fields(trl.ModelConfig)}
    found = TRL.defaults(trainer, {"use_peft": True})
    for key in ("learning_rate", "num_train_epochs", "lr_scheduler_type", "warmup_steps"):
        assert found[key] == theirs[key], key
    for key in ("lora_r", "lora_alpha", "lora_dropout"):
        assert found[key] == of_model[key], key
    several = theirs.get("num_generations", 1)
    assert (
        found["batch_size"] == theirs["per_device_train_batch_size"] * theirs["gradient_accumulation_steps"] // several
    )
    if trainer in ("grpo", "rloo"):
        assert found["num_generations"] == several
        assert found["max_new_tokens"] == theirs["max_completion_length"]
        assert found["kl_loss_coef" if trainer == "grpo" else "kl_coef"] == theirs["beta"]


def test_no_setting_of_ours_is_taken_for_another_tools(tmp_path: Path) -> None:
    """A recipe of ours is no file of theirs: it is checked, not translated."""
    assert recipe.validate(made_recipe(tmp_path)).beta == 0.3  # type: ignore[attr-defined]


def made_recipe(tmp_path: Path) -> Path:
    (tmp_path / "ours.yaml").write_text("method: dpo\nbeta: 0.3\n")
    return tmp_path / "ours.yaml"
