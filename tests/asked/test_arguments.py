"""The words after a command: every form of a setting says the same, and a misleading one is explained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prefiere.asked.arguments import as_settings, one_dash, settings_of
from prefiere.recipe import RecipeError

FLAGS = {"model": "m", "data": "d", "out": "o"}


def dpo(*words: str) -> Any:
    return settings_of("dpo", words, FLAGS)


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        (["--beta", "0.2"], "beta", 0.2),
        (["--beta=0.2"], "beta", 0.2),
        (["beta=0.2"], "beta", 0.2),
        (["--learning-rate", "1e-5"], "learning_rate", 1e-5),
        (["--learning_rate=1e-5"], "learning_rate", 1e-5),
        (["learning-rate=1e-5"], "learning_rate", 1e-5),
        (["--lora"], "lora", True),
        (["--no-lora"], "lora", False),
        (["--no_lora"], "lora", False),
        (["--lora", "true"], "lora", True),
        (["--lora", "False"], "lora", False),
        (["--lora", "auto"], "lora", "auto"),
        (["--lora=false"], "lora", False),
        (["--use_peft"], "lora", True),
        (["--no_use_peft"], "lora", False),
        (["--report_to", "wandb", "mlflow"], "report_to", ["wandb", "mlflow"]),
        (["--report_to", "[wandb]"], "report_to", ["wandb"]),
        (["--lora-target-modules", "q_proj", "v_proj", "beta=0.3"], "lora_target_modules", ["q_proj", "v_proj"]),
        (["--columns", "{prompt: señal}"], "columns", {"prompt": "señal"}),
        (["--eval_data", "a=b.jsonl"], "eval_data", "a=b.jsonl"),
        (["--eval_data", "set #2.jsonl"], "eval_data", "set #2.jsonl"),  # a command has no comments
        (["judge=mine:score #2"], "judge", "mine:score #2"),
        (["--run_name", "#3"], "run_name", "#3"),
        (["--run_name=a#3"], "run_name", "a#3"),
        (["--run_name", "'try' #3"], "run_name", "'try' #3"),
        (["--run_name", "'try #3'"], "run_name", "try #3"),
        (["--columns", '{prompt: "q #1"}'], "columns", {"prompt": "q #1"}),
        (["--lora-target-modules", "a #1", "b"], "lora_target_modules", ["a #1", "b"]),
        (["--max_grad_norm", "none"], "max_grad_norm", None),
        (["max_grad_norm="], "max_grad_norm", None),
        (["max_grad_norm=", "beta=0.3"], "max_grad_norm", None),
        (["--loss_type", "[sigmoid]"], "loss_type", "sigmoid"),
        (["--beta", "0.2", "--beta", "0.3"], "beta", 0.3),
    ],
)
def test_every_form_of_a_setting(words: list[str], key: str, value: object) -> None:
    assert getattr(dpo(*words), key) == value


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--beta", "0.2 # low"], "--beta 0.2 # low: beta must be a number above 0, not '0.2 # low'."),
        (["--report_to", "wandb", "@x"], "--report_to wandb @x: the value is not valid YAML. Quote it"),
        (["run_name=2026-02-31"], "run_name=2026-02-31: the value is not valid YAML. Quote it"),
    ],
)
def test_a_value_that_cannot_be_is_named_as_it_was_typed(words: list[str], said: str) -> None:
    with pytest.raises(RecipeError) as e:
        dpo(*words)
    assert said in str(e.value)


def test_a_list_ends_where_the_next_setting_or_a_recipe_begins(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("seed: 7\n")
    made = dpo("--report_to", "wandb", str(recipe), "--gradient_checkpointing", "--beta", "0.3")
    assert (made.report_to, made.seed, made.gradient_checkpointing, made.beta) == (["wandb"], 7, True, 0.3)


@pytest.mark.parametrize("form", [["{}"], ["--config", "{}"], ["--config={}"], ["--recipe", "{}"]])
def test_a_recipe_by_any_name(tmp_path: Path, form: list[str]) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("beta: 0.3\nseed: 7\n")
    made = dpo(*(word.format(recipe) for word in form), "--seed", "8")
    assert (made.beta, made.seed) == (0.3, 8)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["beta", "0.2"], "beta 0.2: a setting is written in one word: beta=0.2, or --beta 0.2."),
        (["beta:0.2"], "beta:0.2: a setting is written with an equals sign: beta=0.2."),
        (["beta:", "0.2"], "beta: 0.2: a setting is written in one word: beta=0.2, or --beta 0.2."),
        (["learning_rate=", "1e-5"], "learning_rate= 1e-5: no space after the equals sign: write learning_rate=1e-5."),
        (["learning_rate", "=1e-5"], "learning_rate =1e-5: a setting is written in one word: learning_rate=1e-5"),
        (["learning_rate", "=", "1e-5"], "learning_rate = 1e-5: a setting is written in one word: learning_rate=1e-5"),
        (["beta"], "beta: a setting needs a value: beta=0.1."),
        (["-x"], "-x: there is no such option. A setting is written --key value or key=value."),
        (["beta", "=", "0.2", "seed=1"], "beta = 0.2: a setting is written in one word: beta=0.2, or --beta 0.2."),
        (["--beta", "-0.5"], "--beta -0.5: beta must be a number above 0, not -0.5."),
        (["--seed=-1"], "--seed=-1: seed must be a whole number from 0, not -1."),
        (["--beta"], "--beta needs a value: --beta 0.1."),
        (["--beta", "--lora"], "--beta needs a value: --beta 0.1."),
        (["--config"], "--config needs a file: --config recipe.yaml."),
        (
            ["pairs.jsonl"],
            "pairs.jsonl: this is data, and a recipe is a YAML file. Data is given as --data pairs.jsonl.",
        ),
        (["--beta", "-1"], "--beta -1: beta must be a number above 0, not -1."),
        (["--lam", "0.9"], "--lam 0.9: lam is a setting of method ppo, not of dpo."),
        (["--betta", "0.2"], "--betta 0.2: betta is not a setting. Did you mean beta?"),
        (["--seed", "["], "--seed [: the value is not valid YAML"),
        (["a.yaml", "--config", "b.yaml"], "one recipe at most, not a.yaml, b.yaml"),
        (
            ["--per_device_train_batch_size", "4"],
            "--per_device_train_batch_size 4: per_device_train_batch_size is not a",
        ),
    ],
)
def test_a_misleading_form_is_explained_in_one_line(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text("")
    with pytest.raises(RecipeError) as e:
        dpo(*words)
    assert str(e.value).startswith(message)
    assert "\n" not in str(e.value)


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"this is a folder, and a recipe is a YAML file. A folder is given as --model"
    ):
        dpo(str(tmp_path))


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("beta: 0\nsequence_len: 512\nlora_r: 4\npeft_config: a.json\n")
    with pytest.raises(RecipeError) as e:
        settings_of("dpo", [str(recipe), "epochs", "3", "--lam", "1", "--quantize=nf4", "--no-lora"], {"out": "o"})
    assert str(e.value).splitlines() == [
        "9 settings to put right:",
        "  epochs 3: a setting is written in one word: epochs=3, or --epochs 3.",
        f"  {recipe}:2: sequence_len is not a setting here; write max_length.",
        "  --lam 1: lam is a setting of method ppo, not of dpo.",
        "  model is missing: give --model or write `model:` in the recipe (hub id, folder of a model or adapter, or a "
        "finished run).",
        "  data is missing: give --data or write `data:` in the recipe (file, folder or hub id, in any known layout).",
        f"  {recipe}:1: beta must be a number above 0, not 0.",
        "  --quantize=nf4: quantize holds a frozen base, and full fine-tuning has none: set lora to true or auto.",
        f"  {recipe}:4: peft_config describes an adapter: set lora to true.",
        f"  {recipe}:3: lora_r is for peft_config to say: leave one of the two out.",
    ]


def test_words_that_are_no_settings_are_kept_where_a_command_takes_them() -> None:
    found = as_settings(["one/rm", "--max-length", "64", "two", "columns={prompt: q}"], others=True)
    assert found.others == ["one/rm", "two"]
    assert {g.key: g.value for g in found.settings} == {"max_length": 64, "columns": {"prompt": "q"}}
    assert as_settings(["max_length", "64"], others=True).problems
    assert as_settings(["reward"], others=True).others == ["reward"]


def test_a_name_of_another_tool_that_means_the_same_is_read() -> None:
    made = settings_of(
        "dpo",
        ["--model_name_or_path", "m", "--dataset_name", "d", "--output_dir", "o", "--warmup_ratio", "0.05",
         "--lora_rank", "8", "--load_in_4bit", "--pref_beta", "0.2", "--optim", "adamw_torch", 
         "--eval_strategy", "steps"],
        {},
    )  # fmt: skip
    assert (made.model, made.data, made.out, made.warmup_steps) == ("m", "d", "o", 0.05)
    assert (made.lora_r, made.quantize, made.beta) == (8, "nf4", 0.2)


def test_what_differs_is_not_taken_over() -> None:
    with pytest.raises(RecipeError, match="optim is not a setting here; write nothing: it is AdamW"):
        dpo("--optim", "adafactor")
    with pytest.raises(RecipeError, match="finetuning_type is not a setting here; write lora"):
        dpo("--finetuning_type", "freeze")


def test_two_names_for_one_setting_must_agree() -> None:
    assert dpo("pref_beta=0.2", "beta=0.2").beta == 0.2
    with pytest.raises(RecipeError, match=r"^beta=0.3: pref_beta and beta both say what beta is. Keep one."):
        dpo("pref_beta=0.2", "beta=0.3")


def test_the_batch_of_transformers_is_computed() -> None:
    with pytest.raises(RecipeError) as e:
        dpo("--per_device_train_batch_size", "4", "--gradient_accumulation_steps=8")
    for line in str(e.value).splitlines()[1:]:
        told = "batch_size=32: per_device_train_batch_size 4 x gradient_accumulation_steps 8, times the processes"
        assert told in line


@pytest.mark.parametrize(
    ("word", "odd"),
    [
        ("-max_steps=5", True),
        ("-max-steps", True),
        ("-no-lora", True),
        ("-per_device_train_batch_size", True),
        ("-prompts", True),  # the command's own
        ("-max_step=5", True),  # misspelt, and a name with its value all the same
        ("-m", False),
        ("-mgpt2", False),
        ("-m=gpt2", False),
        ("-oruns/lr=1", False),
        ("-0.5", False),
        ("--max_steps=5", False),
        ("max_steps=5", False),
    ],
)
def test_a_long_name_has_two_dashes(word: str, odd: bool) -> None:
    told = one_dash(word, {"prompts"})
    assert told == (f"{word}: a long name has two dashes: -{word}." if odd else None)
