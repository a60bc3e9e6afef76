"""An estimate needs no network where the configuration is here: in a folder, or in the hub's cache."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import runs

SRC = Path(__file__).parents[2] / "src"


@pytest.mark.long
@pytest.mark.parametrize("where", ["folder", "cache"])
def test_an_estimate_without_a_network_or_weights(where: str, tmp_path: Path) -> None:
    whole, name = runs.model_folder(tmp_path / "whole"), "org/base"
    held = tmp_path / "hf" / "hub" / "models--org--base"
    folder = held / "snapshots" / "abc" if where == "cache" else tmp_path / "model"
    folder.mkdir(parents=True)
    for file in whole.glob("*.json"):
        shutil.copy(file, folder)
    if where == "cache":
        (held / "refs").mkdir()
        (held / "refs" / "main").write_text("abc")
    data = runs.pairs_file(tmp_path / "pairs.jsonl")
    words = ["estimate", "--model", name if where == "cache" else str(folder), "--data", str(data), "--template=never"]
    env = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"}
    env |= {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": str(SRC)}
    command = [sys.executable, "-m", "prefiere", *words, "--json"]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["fits"] is True
    assert "Retry" not in done.stderr
