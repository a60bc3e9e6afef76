"""Runs from a model in memory are those from its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

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


@pytest.mark.long
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


@pytest.mark.long
def test_an_adapter_finds_the_model_in_memory_where_the_run_is_now(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prefiere.dpo(**held(place), out=tmp_path / "run", data=place / "pairs.jsonl", lora=True, **SHORT)
    asked = {"prompts": ["Hello"], "max_new_tokens": 4, "temperature": 0}
    before = prefiere.sample(tmp_path / "run", **asked)
    (tmp_path / "run").rename(tmp_path / "moved")
    assert prefiere.sample(tmp_path / "moved", **asked) == before
    capsys.readouterr()
    made = prefiere.Run.open(tmp_path / "moved").export(tmp_path / "plain")
    assert made["moved"][0]["most"] == 0
    (base,) = (tmp_path / "moved" / "inputs").glob("model-*")
    assert json.loads((tmp_path / "plain" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
    told = " ".join(capsys.readouterr().err.split())
    assert f"It needs {base}, which was given in Python: keep that run, or export with --merge." in told


@pytest.mark.long
@pytest.mark.parametrize("adapted", [False, True])
def test_an_estimate_writes_no_weights(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adapted: bool
) -> None:
    given = held(place)
    named: Any = place / "model"
    if adapted:
        given["model"] = get_peft_model(given["model"], LoraConfig(r=2, target_modules="all-linear"))
        named = tmp_path / "adapter"
        given["model"].save_pretrained(named)
        given["tokenizer"].save_pretrained(named)
    monkeypatch.setattr(Loaded, "write", None)
    asked = {"data": place / "pairs.jsonl", "batch_size": 8, "gpu": "t4", "quiet": True}
    found, told = (prefiere.estimate("dpo", **model, **asked) for model in (given, {"model": named}))
    assert found.estimate.memory == told.estimate.memory


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


def scorer(folder: Path) -> tuple[Any, Any]:
    """A reward model with a random head, and its tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    model.config.pad_token_id = tokenizer.pad_token_id
    return model, tokenizer


def brief(prompts: list[str], completions: list[str]) -> list[float]:
    return [-float(len(c)) for c in completions]


def test_a_loaded_model_that_scores_is_the_one_in_its_folder(place: Path, tmp_path: Path) -> None:
    model, tokenizer = scorer(place / "model")
    for part in (model, tokenizer):
        part.save_pretrained(place / "scorer")
    prompts = ["el perro", "la casa", "un pan", "the dog"]
    given = {"model": place / "model", "prompts": prompts, "max_steps": 2, "batch_size": 2, "num_generations": 2,
             "max_new_tokens": 4, "eval_size": 1, "sample_prompts": 1}  # fmt: skip
    named = prefiere.rloo(
        **given, reward=[str(place / "scorer"), brief], judge=str(place / "scorer"), out=tmp_path / "named"
    )
    held = prefiere.rloo(**given, reward=[(model, tokenizer), brief], judge=(model, tokenizer), out=tmp_path / "held")
    ours, theirs = ([row["samples/score"] for row in run.metrics if "samples/score" in row] for run in (held, named))
    assert ours == theirs
    assert [row["reward"] for row in held.metrics[1:]] == [row["reward"] for row in named.metrics[1:]]
    first, second = held.recipe["reward"]
    assert Path(first).parent == tmp_path / "held" / "inputs"
    assert second.endswith("brief") or second == "<brief>"
    assert prefiere.rloo(
        **given, reward=[(model, tokenizer), brief], judge=(model, tokenizer), out=tmp_path / "held"
    ).already


def test_an_estimate_of_a_run_with_a_scorer_in_memory(place: Path, tmp_path: Path) -> None:
    held = scorer(place / "model")
    for part in held:
        part.save_pretrained(place / "scorer")
    given = {"model": place / "model", "prompts": ["el perro", "la casa"], "max_steps": 1, "batch_size": 1,
             "num_generations": 2, "max_new_tokens": 4, "eval_size": 0}  # fmt: skip
    named = prefiere.estimate("rloo", **given, reward=str(place / "scorer"), out=tmp_path / "named")
    assert (
        prefiere.estimate("rloo", **given, reward=held, out=tmp_path / "held").estimate.memory == named.estimate.memory
    )
    assert not list(tmp_path.iterdir())


def test_a_comparison_is_judged_by_a_name_or_a_function(place: Path) -> None:
    model, tokenizer = scorer(place / "model")
    for judge in (model, (model, tokenizer), 3):
        with pytest.raises(ValueError, match=r"^judge: \w+ is neither a name nor a function. Save a loaded model"):
            prefiere.compare(place / "model", place / "model", prompts=["el perro"], judge=judge)


def test_a_loaded_model_that_scores_needs_its_tokenizer(place: Path, tmp_path: Path) -> None:
    model, _ = scorer(place / "model")
    given = {"model": place / "model", "prompts": ["el perro"], "out": tmp_path / "run"}
    with pytest.raises(ValueError, match=r"^reward: a loaded model needs its tokenizer"):
        prefiere.rloo(**given, reward=model)
    with pytest.raises(ValueError, match=r"^reward must be a tokenizer of transformers, not str"):
        prefiere.rloo(**given, reward=(model, "tokenizer"))
    writes = AutoModelForCausalLM.from_pretrained(place / "model"), AutoTokenizer.from_pretrained(place / "model")
    with pytest.raises(ValueError, match="reward"):
        prefiere.rloo(**given, reward=writes)
    assert not (tmp_path / "run").exists()
