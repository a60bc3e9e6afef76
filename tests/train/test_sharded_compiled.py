"""Layers that are compiled, then sharded: two processes against one that compiles nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import runs
from ending import QUIET, assert_near, killed
from prefiere.launch import launch
from prefiere.run import Run
from prefiere.settings import DPO, Settings
from prefiere.world import leave_group

CASES: dict[str, dict[str, Any]] = {
    "full": {"lora": False, "save_steps": 1},
    "lora": {"lora": True, "gradient_checkpointing": True},
}


def given(tmp: Path, name: str, out: str, **options: Any) -> Settings:
    made: Settings = runs.settings(tmp, DPO, **CASES[name], **options, max_steps=2, out=str(tmp / out))
    return made


@pytest.fixture(scope="module")
def tmp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tmp = tmp_path_factory.mktemp("compiled")
    for name in CASES:
        launch(given(tmp, name, f"{name}-one"), display=QUIET)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "WHERE": str(tmp)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=3000, check=False)
    assert done.returncode == 0, done.stderr[-6000:]
    return tmp


def _in_a_process_group() -> None:
    tmp, real, frames = Path(os.environ["WHERE"]), torch.compile, [0]

    def noted(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        frames[0] += 1
        return graph.forward

    for name in CASES:
        # The largest case is compiled as a run compiles it; of the rest, what dynamo reads is run as it is.
        torch.compile = real if name == "full" else partial(real, backend=noted)  # type: ignore[assignment]
        launch(given(tmp, name, f"{name}-two", torch_compile=True, shard="full"), display=QUIET)
    assert frames[0] > 0, "nothing was compiled"
    torch.compile = partial(real, backend=noted)  # type: ignore[assignment]
    killed(given(tmp, "full", "parts", torch_compile=True, shard="full"), 1)
    launch(given(tmp, "full", "parts", torch_compile=True, shard="full"), display=QUIET)
    leave_group()


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_compiled_layers_that_are_shared_are_those_of_one_process(tmp: Path, name: str) -> None:
    one, two = Run.open(tmp / f"{name}-one"), Run.open(tmp / f"{name}-two")
    assert two.environment["plan"]["shard"] == "full"
    assert_near(one, two, 1e-5)  # the names of all weights, too


@pytest.mark.slow
def test_a_compiled_run_is_resumed(tmp: Path) -> None:
    assert_near(Run.open(tmp / "full-one"), Run.open(tmp / "parts"), 1e-5)


if __name__ == "__main__":
    _in_a_process_group()
