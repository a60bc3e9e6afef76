"""The main job, for real: the shipped model is turned by plain ``dpo``, within the bounds that the README states."""

import json
from pathlib import Path

import pytest
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefiere import recipe
from prefiere.api.run import Run
from prefiere.api.training import train
from prefiere.demo import corpus
from prefiere.demo.main import base_model, demo

QUIET = Console(quiet=True)


def assert_turned(figures: dict, road: str = "dpo") -> None:
    for temperature, least in (("0.7", 0.95), ("1.0", 0.90)):
        before, after = figures[f"before T={temperature}"], figures[f"{road} T={temperature}"]
        assert 0.35 <= before["style"][0] <= 0.65
        assert after["style"][0] >= least
        assert after["on_topic"][0] >= 0.95
        assert after["answers"] >= 1000
    kl, low, high = figures[f"{road} T=1.0"]["kl"]
    assert low < kl < high
    assert kl < 1.5


@pytest.mark.long
def test_the_demo_turns_the_model_both_ways_and_is_not_done_twice(tmp_path: Path) -> None:
    """Preferences lead to the same voice directly, and by way of a reward model, at a like distance."""
    first = demo(out=tmp_path, console=QUIET)
    assert_turned(first["figures"], "dpo")
    assert_turned(first["figures"], "ppo")
    assert first["figures"]["ppo T=1.0"]["kl"][0] <= 1.5 * first["figures"]["dpo T=1.0"]["kl"][0]
    assert Path(first["report"]).stat().st_size > 50_000
    scorer = json.loads((Path(first["reward_model"]) / "calibration.json").read_text())
    assert scorer["accuracy"][0] >= 0.99
    weights = {n: Path(folder) / "model" / "model.safetensors" for n, folder in first["runs"].items()}
    stamps = {n: w.stat().st_mtime_ns for n, w in weights.items()}
    again = demo(out=tmp_path, console=QUIET)
    assert again["figures"] == first["figures"]
    assert {n: w.stat().st_mtime_ns for n, w in weights.items()} == stamps
    # What came out is anybody's model.
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(weights["ppo"].parent),
        AutoTokenizer.from_pretrained(weights["ppo"].parent),
    )
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "¿Qué es un perro?"}], add_generation_prompt=True, return_tensors="pt"
    )["input_ids"]
    answer = tokenizer.decode(model.generate(ids, do_sample=False)[0, ids.shape[1] :], skip_special_tokens=True)
    assert "mamífero" in answer


def dpo_on_the_demo(tmp_path: Path, **options) -> Run:
    paths = corpus.write_corpus(tmp_path / "data", options.pop("prefer", "encyclopedic"))
    given = {
        "model": str(base_model(tmp_path, QUIET, rebuild=False)),
        "data": str(paths["preferences"]),
        "out": str(tmp_path / "run"),
        **options,
    }
    return train(recipe.load("dpo", None, given), console=QUIET)


@pytest.mark.long
def test_the_guard_stops_a_run_that_destroys_the_model_behind_perfect_accuracy(tmp_path: Path) -> None:
    run = dpo_on_the_demo(
        tmp_path, learning_rate=5e-4, lr_scheduler_type="constant", warmup_steps=0.0, max_steps=50, max_new_tokens=48
    )
    assert run.stopped is not None
    assert run.stopped.kind == "degenerate"
    assert "less likely under the reference" in run.stopped.text
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
    assert_turned(main._measured({"dpo": run}, base, getattr(judge, prefer), tmp_path / "cache", main.Display(QUIET)))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(("method", "times"), [("ppo", 1), ("rloo", 1), ("ppo", 3), ("rloo", 3)])
def test_rewards_turn_the_model_over_seeds_and_do_not_break_it(
    tmp_path: Path, seed: int, method: str, times: int, monkeypatch
) -> None:
    """At most 1.5 times as far from the model before as DPO goes (0.6 nats per answer); three times as long a run is
    either as good, or stops itself and says why."""
    from prefiere.demo import judge, main

    monkeypatch.setattr(main, "ANSWERS_PER_PROMPT", 16)
    base = base_model(tmp_path, QUIET, rebuild=False)
    flags = {"model": str(base), "data": str(corpus.write_corpus(tmp_path / "data")["preferences"]), "seed": seed}
    scorer = train(recipe.load("reward", None, {**flags, "out": str(tmp_path / "reward")}), console=QUIET)
    own = {"ppo": main.PPO_OPTIONS, "rloo": {"batch_size": 32, "max_steps": 30}}[method]
    own = {**own, "max_steps": own["max_steps"] * times}
    run = train(
        recipe.load(method, None, {**flags, "out": str(tmp_path / "run"), "reward": str(scorer.folder), **own,
                                   "judge": "prefiere.demo.judge:encyclopedic", "max_new_tokens": 64}), console=QUIET
    )  # fmt: skip
    if run.stopped:
        assert times > 1
        assert run.stopped.guarded
        return
    figures = main._measured({method: run}, base, judge.encyclopedic, tmp_path / "cache", main.Display(QUIET))
    assert_turned(figures, method)
    assert figures[f"{method} T=1.0"]["kl"][0] <= 1.5 * 0.6


@pytest.mark.slow
def test_the_base_model_can_be_trained_again(tmp_path: Path) -> None:
    made = demo(out=tmp_path, rebuild=True, console=QUIET)
    assert_turned(made["figures"], "dpo")
    assert_turned(made["figures"], "ppo")
    assert json.loads((tmp_path / "base" / "status.json").read_text())["state"] == "finished"
    assert Run.open(tmp_path / "base").recipe["method"] == "sft"
