"""Shipped recipes run as they stand, but for model, data and length: the 4-bit ones on a tiny Mistral, the study's two
on the demo's model."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

import quantized
import runs
from prefiere import recipe
from prefiere.console import Display
from prefiere.doctor.diagnose import diagnose
from prefiere.launch import launch
from prefiere.settings import Reward

RECIPES = Path(__file__).parents[2] / "recipes"
QUIET = Display(quiet=True)
SHORT = ["max_steps=2", "batch_size=4", "sample_prompts=2", "max_new_tokens=6", "eval_size=4", "data_split=null"]


def test_gptq_and_preferences(tmp_path: Path) -> None:
    folder, _ = quantized.folder(quantized.mistral(tmp_path / "base"), tmp_path / "gptq", group_size=32, act_order=True)
    data = runs.pairs_file(tmp_path / "pairs.jsonl")
    given = {"model": str(folder), "data": str(data), "out": str(tmp_path / "run")}
    settings = recipe.load(None, RECIPES / "openhermes-gptq-ultrafeedback.yaml", given, SHORT)
    run = launch(settings, display=QUIET).run
    assert run.status["state"] == "finished"
    said = {c["name"]: c["value"] for c in run.environment["choices"]}
    assert said["quantization"] == "gptq"
    assert (run.model / "adapter_model.safetensors").is_file()


def test_nf4_and_policy_gradients(tmp_path: Path) -> None:
    base = quantized.mistral(tmp_path / "base")
    data = runs.pairs_file(tmp_path / "pairs.jsonl")
    scored = runs.settings(tmp_path, Reward, model=str(base), quantize="nf4", out=str(tmp_path / "reward"), max_steps=2)
    reward = launch(scored, display=QUIET).run
    given = {"model": str(base), "data": str(data), "reward": str(reward.folder), "out": str(tmp_path / "run")}
    settings = recipe.load(None, RECIPES / "openhermes-nf4-rlhf.yaml", given, [*SHORT, "critic_warmup_steps=1"])
    run = launch(settings, display=QUIET).run
    assert run.status["state"] == "finished"
    said = {c["name"]: c["value"] for c in run.environment["choices"]}
    assert said["quantization"] == "nf4"
    assert run.metrics[-1]["val/ratio"] == pytest.approx(1, abs=0.5)


@pytest.mark.long
def test_the_study_falls_and_rises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve of the fifty updates, on the pairs that the example writes: what falls in one rises in the other."""
    monkeypatch.syspath_prepend(str(RECIPES.parent / "examples"))
    script = importlib.import_module("why_rewards_fall")
    script.main(["--pairs", f"--out={tmp_path}"])
    found = {}
    for name in ("falling", "rising"):
        path = RECIPES / f"study-{name}.yaml"
        asked = recipe.load(None, path)
        given = {"model": str(RECIPES.parent / asked.model), "data": str(tmp_path / Path(asked.data).name)}
        given |= {"eval_data": str(tmp_path / "eval.jsonl"), "out": str(tmp_path / name)}
        run = launch(
            recipe.load(None, path, given, ["max_steps=12", "eval_steps=12", "sample_steps=0"]), display=QUIET
        ).run
        assert run.status["state"] == "finished"
        found[name] = run.metrics[-1]
        assert ("not_carried_over" in diagnose(run)) == (name == "falling")
    assert found["falling"]["eval_rewards/margins"] < 0 < found["rising"]["eval_rewards/margins"]
    assert found["falling"]["eval_rewards/chosen"] < 0 < found["rising"]["eval_rewards/chosen"]
    assert found["falling"]["eval_rewards/accuracies"] < 0.1
    assert found["rising"]["eval_rewards/accuracies"] > 0.9
