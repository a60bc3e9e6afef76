"""The main job, for real: the shipped model is turned by plain ``dpo``, within the bounds that the README states."""

import json
from pathlib import Path

import pytest
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefiere import recipe
from prefiere.api import TrainedRun, train
from prefiere.demo import corpus
from prefiere.demo.main import base_model, demo
from prefiere.run import Run

QUIET = Console(quiet=True)


def assert_turned(figures: dict) -> None:
    for temperature, least in (("0.7", 0.95), ("1.0", 0.90)):
        before, after = figures[f"before T={temperature}"], figures[f"after T={temperature}"]
        assert 0.35 <= before["style"][0] <= 0.65
        assert after["style"][0] >= least
        assert after["on_topic"][0] >= 0.95
        assert after["answers"] >= 1000
    kl, low, high = figures["after T=1.0"]["kl"]
    assert low < kl < high
    assert kl < 1.5


def test_the_demo_turns_the_model_and_is_not_done_twice(tmp_path: Path) -> None:
    first = demo(out=tmp_path, console=QUIET)
    assert_turned(first["figures"])
    assert Path(first["report"]).stat().st_size > 50_000
    weights = Path(first["model"]) / "model.safetensors"
    stamp = weights.stat().st_mtime_ns
    again = demo(out=tmp_path, console=QUIET)
    assert again["figures"] == first["figures"]
    assert weights.stat().st_mtime_ns == stamp
    # What came out is anybody's model.
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(weights.parent),
        AutoTokenizer.from_pretrained(weights.parent),
    )
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "¿Qué es un perro?"}], add_generation_prompt=True, return_tensors="pt"
    )["input_ids"]
    answer = tokenizer.decode(model.generate(ids, do_sample=False)[0, ids.shape[1] :], skip_special_tokens=True)
    assert "mamífero" in answer


def dpo_on_the_demo(tmp_path: Path, **options) -> TrainedRun:
    paths = corpus.write(tmp_path / "data", options.pop("prefer", "encyclopedic"))
    given = {
        "model": str(base_model(tmp_path, QUIET, rebuild=False)),
        "data": str(paths["preferences"]),
        "out": str(tmp_path / "run"),
        **options,
    }
    return train(recipe.load("dpo", None, given), console=QUIET)


def test_the_guard_stops_a_run_that_destroys_the_model_behind_perfect_accuracy(tmp_path: Path) -> None:
    run = dpo_on_the_demo(
        tmp_path, learning_rate=5e-4, lr_scheduler_type="constant", warmup_ratio=0.0, max_steps=50, max_new_tokens=48
    )
    assert run.stopped is not None
    assert "less likely under the reference" in run.stopped
    assert run.status["step"] < 40
    last = run.metrics[-1]
    assert last["eval_rewards/accuracies"] == 1.0
    assert last["eval_loss"] < run.metrics[0]["eval_loss"]
    assert "guard" in (run.folder / "report.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("prefer", ["encyclopedic", "casual"])
def test_the_bounds_hold_over_seeds_and_in_both_directions(tmp_path: Path, seed: int, prefer: str) -> None:
    from prefiere.demo import judge, main

    run = dpo_on_the_demo(tmp_path, seed=seed, prefer=prefer, max_new_tokens=48)
    assert run.stopped is None, "the guard must not fire on the defaults"
    base = base_model(tmp_path, QUIET, rebuild=False)
    assert_turned(main._measured(run, base, getattr(judge, prefer), main.Display(QUIET)))


@pytest.mark.slow
def test_the_base_model_can_be_trained_again(tmp_path: Path) -> None:
    made = demo(out=tmp_path, rebuild=True, console=QUIET)
    assert_turned(made["figures"])
    assert json.loads((tmp_path / "base" / "status.json").read_text())["state"] == "finished"
    assert Run.open(tmp_path / "base").recipe["method"] == "sft"
