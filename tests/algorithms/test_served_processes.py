"""Two processes that learn from the answers of one rollout server, against one process with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import runs
from prefiere.console import Display
from prefiere.launch import Outcome, launch
from prefiere.run import Run
from prefiere.sample import server as requests
from prefiere.world import leave_group
from serving import Reply, RolloutServer

OPTIONS: dict[str, Any] = {
    "lora_r": 4, "max_steps": 3, "batch_size": 4, "num_generations": 4, "warmup_steps": 0, "sample_steps": 3,
    "logging_steps": 1, "save_steps": 100,
}  # fmt: skip
ADAPTER: dict[str, Any] = {"lora": True, "learning_rate": 3e-2}
CASES: dict[str, dict[str, Any]] = {
    "adapter": ADAPTER,
    "weights": {"lora": False, "learning_rate": 3e-3},
    "ahead": {**ADAPTER, "max_staleness": 1},
}
SLOWEST = "SLOWEST"
"""The variable that says for how many seconds a process waits for an answer."""


def run(tmp: Path, name: str, url: str, out: str) -> Outcome:
    made = runs.policy_settings(tmp, "grpo", **OPTIONS, **CASES[name], rollouts=url, out=str(tmp / out))
    return launch(made, display=Display(quiet=True))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RolloutServer]:
    runs.policy_settings(tmp_path, "grpo")  # which makes the model
    with RolloutServer(tmp_path / "model") as made:
        yield made


def by_two(tmp: Path, names: list[str], server: RolloutServer, **env: str) -> list[list[str]]:
    """These cases by two processes; for each of them, in each case, why it stopped."""
    where = {"PYTHONPATH": os.pathsep.join(sys.path), "WHERE": str(tmp), "NAMES": " ".join(names), "URL": server.url}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__]
    done = subprocess.run(
        command, env={**os.environ, **where, **env}, capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads((tmp / f"stopped-{rank}.json").read_text()) for rank in (0, 1)]


def _in_a_process_group() -> None:
    tmp, names = Path(os.environ["WHERE"]), os.environ["NAMES"].split()
    requests._SLOWEST = float(os.environ.get(SLOWEST, requests._SLOWEST))
    why = list[str]()
    for name in names:
        stopped = run(tmp, name, os.environ["URL"], f"{name}-two").stopped
        why.append(f"{stopped.kind}: {stopped.text}" if stopped else "")
    (tmp / f"stopped-{os.environ['RANK']}.json").write_text(json.dumps(why))
    leave_group()


def drawn(server: RolloutServer) -> list[tuple[str, list[int], int]]:
    """What answers to learn from were asked for: version, prompt and seed, in order of these."""
    asked = [b for b in server.routes("completions") if b["n"] == OPTIONS["num_generations"]]
    server.asked.clear()
    return sorted((b["model"].rpartition("-")[2], b["prompt"], b["seed"]) for b in asked)


@pytest.mark.long
def test_two_processes_with_one_server_are_one_process_with_it(tmp_path: Path, server: RolloutServer) -> None:
    """Each version is handed over once, and each prompt is asked once, of the same version and with the same seed."""
    asked = {}
    for name in CASES:
        run(tmp_path, name, server.url, f"{name}-one")
        handed = len(server.routes("load_lora_adapter")) + len(server.routes("/collective_rpc"))
        asked[name] = (handed, drawn(server))
        server.reloaded.clear()
    for name in CASES:
        assert by_two(tmp_path, [name], server) == [[""], [""]]
        handed = len(server.routes("load_lora_adapter")) + len(server.routes("/collective_rpc"))
        assert (handed, drawn(server)) == asked[name]
        server.reloaded.clear()
        one, two = (Run.open(tmp_path / f"{name}-{count}") for count in ("one", "two"))
        assert two.environment["world_size"] == 2
        assert [r["completion"] for r in one.samples] == [r["completion"] for r in two.samples]
        for a, b in zip(one.metrics, two.metrics, strict=True):
            for column in ("sampler_drift", "staleness", "loss/policy_avg", "reward"):
                assert (column in a) == (column in b)
                if column in a:
                    assert a[column] == pytest.approx(b[column], rel=1e-3, abs=1e-5), column
        x, y = runs.weights(one), runs.weights(two)
        assert max(float((x[n] - y[n]).abs().max()) for n in x) < 1e-4, "after steps of up to 3e-2, in weights"


@pytest.mark.long
def test_a_server_with_the_weights_of_before_stops_both(tmp_path: Path, server: RolloutServer) -> None:
    server.behind = 1
    for why in by_two(tmp_path, ["adapter"], server):
        assert why[0].startswith("rollouts: ")
        assert "answers from other weights than it was given" in why[0]
    assert Run.open(tmp_path / "adapter-two").status["state"] == "stopped"


@pytest.mark.long
def test_a_server_that_is_too_slow_for_one_stops_both(tmp_path: Path, server: RolloutServer) -> None:
    """It answers each process, until a prompt of one is not answered in time, however often it is asked."""
    real, late = server._reply, list[list[int]]()

    def slow(route: str, body: dict[str, Any]) -> Reply:
        if route == "completions" and body["model"].endswith("-v1") and body["n"] == 4:
            late[:] = late or [body["prompt"]]
            if body["prompt"] == late[0]:
                time.sleep(8)
        return real(route, body)

    server._reply = slow  # type: ignore[method-assign]
    first, second = by_two(tmp_path, ["adapter"], server, **{SLOWEST: "6"})
    assert first == second
    assert first[0].startswith("rollouts: ")
    assert "no answer after 5 tries" in first[0]
    assert Run.open(tmp_path / "adapter-two").status["step"] == 1


if __name__ == "__main__":
    _in_a_process_group()
