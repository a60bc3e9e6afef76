"""The shipped recipes for 4-bit models run as they stand, but for model, data and length, on a tiny Mistral."""

from __future__ import annotations

from pathlib import Path

import pytest

import quantized
import runs
from prefiere import recipe
from prefiere.settings import Reward
from prefiere.train.progress import Display
from prefiere.train.start import train

RECIPES = Path(__file__).parents[2] / "recipes"
QUIET = Display(quiet=True)
SHORT = ["max_steps=2", "batch_size=4", "sample_prompts=2", "max_new_tokens=6", "eval_size=4", "data_split=null"]


def test_gptq_and_preferences(tmp_path: Path) -> None:
    folder, _ = quantized.folder(quantized.mistral(tmp_path / "base"), tmp_path / "gptq", group_size=32, act_order=True)
    data = runs.pairs_file(tmp_path / "pairs.jsonl")
    given = {"model": str(folder), "data": str(data), "out": str(tmp_path / "run")}
    settings = recipe.load(None, RECIPES / "openhermes-gptq-ultrafeedback.yaml", given, SHORT)
    run = train(settings, display=QUIET).run
    assert run.status["state"] == "finished"
    said = {c["name"]: c["value"] for c in run.environment["choices"]}
    assert said["quantization"] == "gptq"
    assert (run.model / "adapter_model.safetensors").is_file()


def test_nf4_and_policy_gradients(tmp_path: Path) -> None:
    base = quantized.mistral(tmp_path / "base")
    data = runs.pairs_file(tmp_path / "pairs.jsonl")
    scored = runs.settings(tmp_path, Reward, model=str(base), quantize="nf4", out=str(tmp_path / "reward"), max_steps=2)
    reward = train(scored, display=QUIET).run
    given = {"model": str(base), "data": str(data), "reward": str(reward.folder), "out": str(tmp_path / "run")}
    settings = recipe.load(None, RECIPES / "openhermes-nf4-rlhf.yaml", given, [*SHORT, "critic_warmup_steps=1"])
    run = train(settings, display=QUIET).run
    assert run.status["state"] == "finished"
    said = {c["name"]: c["value"] for c in run.environment["choices"]}
    assert said["quantization"] == "nf4"
    assert run.metrics[-1]["val/ratio"] == pytest.approx(1, abs=0.5)
