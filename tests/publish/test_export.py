"""The command as somebody would type it: card, GGUF, a checkpoint's model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner, Result

import runs
from prefiere.cli.main import app
from prefiere.console import Display
from prefiere.launch import launch
from prefiere.publish import card
from prefiere.run import Run

QUIET = Display(quiet=True)


def command(*words: object) -> Result:
    return CliRunner().invoke(app, [str(w) for w in words])


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Run:
    tmp = tmp_path_factory.mktemp("lora")
    hostile = {"max_steps": 4, "save_steps": 2, "save_total_limit": 3, "learning_rate": 3e-3}
    return launch(runs.settings(tmp, lora=True, sample_steps=0, **hostile), display=QUIET).run


def test_a_card_says_what_came_of_a_run_and_nothing_of_the_machine(lora: Run, tmp_path: Path) -> None:
    out = tmp_path / "mine"
    done = command("export", lora.folder, "--out", out)
    assert done.exit_code == 0, done.output
    assert f"vllm serve {lora.recipe['model']} --enable-lora" in done.output.replace("\n", " ")
    text = (out / "README.md").read_text()
    data = ModelCard.load(out / "README.md").data
    assert data.library_name == "peft"
    assert data.tags == ["prefiere", "dpo", "lora"]
    assert "trained by Preference optimisation (DPO) on `pairs.jsonl`" in text
    assert "- 18 examples to train on, 6 held out" in text
    assert "| `learning_rate` | `0.003` |" in text
    assert "accuracy on held-out data" in text
    assert str(lora.folder.parent) not in text


@pytest.mark.parametrize("count", ["many", "<b>9</b>", None, [9], 1.5])
def test_counts_that_are_no_numbers_are_not_told(count: object) -> None:
    """data.json may come from a stranger, or lack them."""
    untold = card._data({})
    assert card._data({"examples": {"train": count, "eval": 6}}) == untold
    assert card._data({"examples": {"train": 1, "eval": count}}) == untold
    assert card._data({"examples": {"train": 1, "eval": 6}}) == ["- 1 example to train on, 6 held out"]


def test_no_path_of_the_machine_stands_in_any_setting() -> None:
    told = card._settings({"method": "ppo", "reward": ["/home/me/one", "/home/me/two"], "peft_config": {"x": "/a/b"}})
    assert "`[one, two]`" in told
    assert "{x: b}" in told
    assert "/home" not in told


def test_a_checkpoint_s_model_is_the_one_of_a_run_that_ended_there(lora: Run, tmp_path: Path) -> None:
    done = command("export", lora.folder, "--out", tmp_path / "two", "--step", 2)
    assert done.exit_code == 0, done.output
    import safetensors.torch as st

    there = st.load_file(lora.checkpoints / "step-00000002" / "trained.safetensors")
    saved = st.load_file(tmp_path / "two" / "adapter_model.safetensors")
    for name, tensor in saved.items():
        (twin,) = [n for n in there if n.replace(".default", "").removeprefix("model.") == name]
        assert torch.equal(tensor, there[twin])
    no = command("export", lora.folder, "--out", tmp_path / "no", "--step", 3)
    assert no.exit_code != 0
    assert "no checkpoint of step 3: it has kept 2, 4" in no.output
    assert not (tmp_path / "no").exists()


def test_gguf_wants_a_whole_model_and_is_read_back(lora: Run, tmp_path: Path) -> None:
    no = command("export", lora.folder, "--out", tmp_path / "no", "--gguf", "q8_0")
    assert no.exit_code != 0
    assert "add --merge" in no.output
    assert not (tmp_path / "no").exists()
    out = tmp_path / "whole"
    done = command("export", lora.folder, "--out", out, "--merge", "--gguf", "F32", "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["gguf_apart"]["most"] < 1e-5
    assert (out / "Modelfile").read_text().splitlines()[1] == "FROM ./model-f32.gguf"
    AutoModelForCausalLM.from_pretrained(out)  # it is still a plain folder


@pytest.mark.long
def test_an_earlier_step_of_a_run_on_few_bits_is_verified_on_its_base_as_it_was_held(tmp_path: Path) -> None:
    settings = runs.settings(tmp_path, lora=True, quantize="nf4", max_steps=2, save_steps=1, save_total_limit=3)
    run = launch(settings, display=QUIET).run
    done = command("export", run.folder, "--out", tmp_path / "one", "--step", 1, "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["held"] == "nf4"
    assert told["moved"][0]["changed"] == 0
    assert "This is the model after 1 update;" in (tmp_path / "one" / "README.md").read_text()


@pytest.mark.parametrize("told", ["model: m\n", "method: nothing\nmodel: m\n", "method: dpo\n"])
def test_a_folder_that_is_no_run_is_refused_before_anything_is_written(lora: Run, tmp_path: Path, told: str) -> None:
    folder = tmp_path / "sent"
    shutil.copytree(lora.folder, folder)
    (folder / "recipe.yaml").write_text(told)
    prompts = tmp_path / "p.txt"
    prompts.write_text("the dog\n")
    for more in ([], ["--step", "2"]):
        done = command("export", folder, "--out", tmp_path / "out", "--prompts", prompts, *more)
        if done.exit_code == 0:  # a recipe with a method alone is enough for a card
            assert "dpo" in told
            assert not more
            shutil.rmtree(tmp_path / "out")
            continue
        assert "recipe.yaml names no" in done.output.replace("\n", " ")
        assert not (tmp_path / "out").exists()
