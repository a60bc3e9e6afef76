"""Runs from a model in memory are those from its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import prefiere
import runs
from prefiere.api import training
from prefiere.api.loaded import Loaded

SHORT = {"batch_size": 8, "max_steps": 2, "learning_rate": 1e-2, "eval_size": 6, "max_new_tokens": 6,
         "sample_prompts": 4}  # fmt: skip


@pytest.fixture(autouse=True)
def no_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take longer than all else, and nothing here reads them."""
    monkeypatch.setattr(training, "_write_report", lambda run: None)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and pairs."""
    folder = tmp_path_factory.mktemp("place")
    runs.model_folder(folder / "model")
    runs.pairs_file(folder / "pairs.jsonl")
    return folder


def held(place: Path) -> dict[str, Any]:
    model = AutoModelForCausalLM.from_pretrained(place / "model")
    return {"model": model, "tokenizer": AutoTokenizer.from_pretrained(place / "model")}


def test_a_run_from_a_loaded_model_is_the_run_from_its_folder(place: Path, tmp_path: Path) -> None:
    given = {"data": place / "pairs.jsonl", **SHORT}
    folder = prefiere.dpo(model=place / "model", out=tmp_path / "folder", **given)
    memory = prefiere.dpo(**held(place), out=tmp_path / "memory", **given)
    runs.assert_same_run(folder, memory)
    kept = Path(memory.recipe["model"])
    assert kept.parent == tmp_path / "memory" / "inputs"
    assert prefiere.dpo(**held(place), out=tmp_path / "memory", **given).already
    other = held(place)
    with torch.no_grad():
        next(other["model"].parameters())[0, 0] += 1
    with pytest.raises(ValueError, match=r"was started with other settings \(model\)"):
        prefiere.dpo(**other, out=tmp_path / "memory", **given)
    assert [p.name for p in kept.parent.iterdir()] == [kept.name]


@pytest.mark.parametrize("name", ["default", "mine"])
def test_a_run_from_an_adapter_in_memory_is_the_run_from_its_folder(place: Path, tmp_path: Path, name: str) -> None:
    memory = held(place)
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    memory["model"] = adapted = get_peft_model(memory["model"], config, adapter_name=name)
    assert isinstance(adapted, PeftModel)
    adapted.save_pretrained(tmp_path / "adapter")
    saved = tmp_path / "adapter" / name if name != "default" else tmp_path / "adapter"
    memory["tokenizer"].save_pretrained(saved)
    given = {"data": place / "pairs.jsonl", **SHORT}
    folder = prefiere.dpo(model=saved, out=tmp_path / "folder", **given)
    runs.assert_same_run(folder, prefiere.dpo(**memory, out=tmp_path / "memory", **given))


def test_what_a_hash_depends_on(place: Path) -> None:
    one, two = held(place), held(place)
    digest = Loaded(one["model"], one["tokenizer"]).digest()
    assert Loaded(two["model"], two["tokenizer"]).digest() == digest
    two["tokenizer"].chat_template = "{{ messages[0]['content'] }}"
    assert Loaded(one["model"], two["tokenizer"]).digest() != digest
    two["model"].generation_config.eos_token_id = 7
    assert Loaded(two["model"], one["tokenizer"]).digest() != digest


def test_what_is_missing_or_something_else_is_said_and_nothing_written(place: Path, tmp_path: Path) -> None:
    memory, unnamed = held(place), held(place)
    unnamed["model"].config._name_or_path = ""
    unnamed["model"].name_or_path = ""
    unnamed["model"] = get_peft_model(unnamed["model"], LoraConfig(r=2, target_modules="all-linear"))
    wrong = [
        ({"model": memory["model"]}, "a loaded model needs its tokenizer"),
        ({"model": str(place / "model"), "tokenizer": memory["tokenizer"]}, "tokenizer goes with a loaded model"),
        ({"model": torch.nn.Linear(2, 2), "tokenizer": memory["tokenizer"]}, "model must be a name, or a model of tra"),
        ({"model": memory["model"], "processing_class": "tok"}, "processing_class must be a tokenizer of transformers"),
        (unnamed, "the base under this adapter has no name"),
        ({**memory, "betta": 1}, "Did you mean beta"),
    ]  # fmt: skip
    for given, said in wrong:
        with pytest.raises(ValueError, match=said):
            prefiere.dpo(**given, data=place / "pairs.jsonl", out=tmp_path / "run", **SHORT)
    assert not (tmp_path / "run").exists()
