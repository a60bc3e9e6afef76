"""Weights spread over two processes of each of two nodes (shard=hybrid), as two torchruns on one machine are."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import runs
from ending import QUIET, assert_near, killed
from prefiere.launch import launch
from prefiere.run import Run
from prefiere.settings import DPO, SFT, Settings
from prefiere.train import setup
from prefiere.world import leave_group

CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "dpo": (DPO, {"tokens_per_microbatch": 120, "save_steps": 2, "max_steps": 4}),
    "sft-lora": (SFT, {"lora": True, "gradient_checkpointing": True, "max_steps": 2}),
    "grpo": ("grpo", {"max_steps": 2}),
}


def given(tmp: Path, name: str, out: str, **options: Any) -> Settings:
    method, asked = CASES[name]
    make = runs.policy_settings if isinstance(method, str) else runs.settings
    made: Settings = make(tmp, method, **asked, **options, out=str(tmp / out))
    return made


@pytest.fixture(scope="module")
def tmp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every case as run by one process, and by two processes on each of two nodes."""
    tmp = tmp_path_factory.mktemp("nodes")
    for name in CASES:
        launch(given(tmp, name, f"{name}-one"), display=QUIET)
    killed(given(tmp, "dpo", "plain"), 3)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "WHERE": str(tmp)}
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "2"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "nodes", __file__]
    nodes = []
    for n in (0, 1):
        with (tmp / f"said-{n}").open("w") as said:
            nodes.append(subprocess.Popen(command, env=env, stdout=said, stderr=said))
    try:
        codes = [node.wait(timeout=1500) for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    assert codes == [0, 0], "".join((tmp / f"said-{n}").read_text()[-3000:] for n in (0, 1))
    return tmp


def _in_a_process_group() -> None:
    tmp, real, kinds = Path(os.environ["WHERE"]), setup.mesh_of, list[str]()

    def mesh_of(*args: Any) -> Any:
        kinds.append(args[-1])
        return real(*args)

    setup.mesh_of = mesh_of
    for name in CASES:
        launch(given(tmp, name, f"{name}-four", shard="hybrid"), display=QUIET)
    killed(given(tmp, "dpo", "parts", shard="hybrid"), 3)
    if os.environ["RANK"] == "0":
        for kind in ("to-full", "to-one"):
            shutil.copytree(tmp / "parts", tmp / kind)
    for out, shard in (("parts", "hybrid"), ("to-full", "full"), ("plain", "hybrid")):
        launch(given(tmp, "dpo", out, shard=shard), display=QUIET)
        assert kinds[-1] == shard
    leave_group()


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_nodes_that_hold_the_weights_each_equal_one_process(tmp: Path, name: str) -> None:
    four = Run.open(tmp / f"{name}-four")
    assert four.environment["world_size"] == 4
    assert four.environment["plan"]["shard"] == "hybrid"
    assert_near(Run.open(tmp / f"{name}-one"), four, 1e-5)


@pytest.mark.slow
def test_stopped_and_resumed_by_two_nodes_is_uninterrupted_to_the_last_bit(tmp: Path) -> None:
    runs.assert_same_run(Run.open(tmp / "dpo-four"), Run.open(tmp / "parts"))


@pytest.mark.slow
def test_any_kind_goes_on_as_any_other(tmp: Path) -> None:
    """What nodes held goes on shared by all, and in one process; what one process held goes on by nodes."""
    one = Run.open(tmp / "dpo-one")
    launch(given(tmp, "dpo", "to-one"), display=QUIET)
    for out in ("to-full", "plain", "to-one"):
        made = Run.open(tmp / out)
        assert made.status["state"] == "finished"
        assert_near(one, made, 1e-5)


if __name__ == "__main__":
    _in_a_process_group()
