"""Choices that belong to a processor."""

import gc
import itertools
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import runs
from prefiere.console import Display
from prefiere.kernels.linear import products_of, route
from prefiere.launch import launch
from prefiere.train import host


@pytest.mark.parametrize(("gain", "choice"), [(2.0, "onednn"), (1.1, "default"), (0.0, "default")])
def test_the_faster_library_is_taken_in_fp32_on_a_cpu(monkeypatch, gain, choice) -> None:
    monkeypatch.setattr(host, "onednn_gain", lambda: gain)
    assert host.choose_products(torch.device("cpu"), torch.float32).value == choice
    assert host.choose_products(torch.device("cpu"), torch.bfloat16).value == "default"
    assert host.choose_products(torch.device("cuda"), torch.float32).value == "default"


def test_what_was_measured_is_kept(monkeypatch, tmp_path) -> None:
    """Every run on a machine chooses alike, whatever a stopwatch would say next; another processor measures anew."""
    monkeypatch.setenv("PREFIERE_CACHE", str(tmp_path))
    gains = iter([2.0, 0.5, 0.0])
    monkeypatch.setattr(host, "measure_onednn", lambda: next(gains))
    cpu = torch.device("cpu")
    first, second = (host.choose_products(cpu, torch.float32) for _ in range(2))
    assert first == second
    assert (first.value, first.why) == ("onednn", "measured 2.0 times as fast as PyTorch's default here")
    monkeypatch.setattr(host, "processor_name", lambda: "another")
    assert host.choose_products(cpu, torch.float32).why == "oneDNN is no faster here"
    monkeypatch.setattr(torch, "__version__", "0.0")
    assert host.choose_products(cpu, torch.float32).why == "oneDNN is not available"


def test_the_processor_has_a_name() -> None:
    assert host.processor_name().strip()


def test_a_choice_is_carried_out() -> None:
    layer = torch.nn.Linear(4, 4)
    route(layer)
    for choice in ("onednn", "default"):
        host.apply_products(layer, choice)
        assert products_of(layer).onednn == (choice == "onednn")


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_freed_memory_is_kept() -> None:
    """In a process of its own: freed buffers of 64 MB stay resident and are used again without new pages."""
    code = (
        "import resource, torch; from prefiere.train.host import keep_freed_memory as keep\n"
        "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "kept = keep(torch.device('cpu'))\n"
        "for _ in range(20): torch.ones(2**24).sum()\n"
        "before = faults()\n"
        "for _ in range(20): torch.ones(2**24).sum()\n"
        "print(kept, faults() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    kept, faults = done.stdout.split()
    if kept == "False":
        pytest.skip("not glibc")
    assert int(faults) < 20 * 2**26 / 4096 / 5


@pytest.mark.long
def test_few_kernels_are_kept() -> None:
    """In a process of its own: a product is compiled anew after a hundred other shapes, not after ten."""
    code = (
        "import torch; from prefiere.train.host import keep_few_kernels as keep; keep(torch.device('cpu'))\n"
        "w = torch.ones(64, 64)\n"
        "run = lambda n: torch.ops.mkldnn._linear_pointwise(torch.ones(n, 64), w, None, 'none', [], '')\n"
        "for n in [1000, *range(2, 12), 1000, *range(20, 120), 1000]: run(n)"
    )
    if not torch.backends.mkldnn.is_available():
        pytest.skip("no oneDNN")
    environment = {k: v for k, v in os.environ.items() if k != host.KERNELS} | {"ONEDNN_VERBOSE": "all"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    made = [line for line in done.stdout.splitlines() if "create:cache" in line and "mb1000ic64" in line]
    assert ["cache_hit" in line for line in made] == [False, True, False]


def test_the_collector_leaves_alone_what_is_there() -> None:
    before = gc.get_freeze_count()
    host.leave_imports_alone()
    try:
        assert gc.get_freeze_count() > before + 1000
    finally:
        gc.unfreeze()


def test_a_clock_that_jumps_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = launch(runs.settings(tmp_path), display=Display(quiet=True)).run
    jumps = iter(itertools.cycle((0.0, 2e9, -1.0, 1e9)))
    monkeypatch.setattr(time, "time", lambda: next(jumps))
    other = launch(runs.settings(tmp_path, out=str(tmp_path / "other")), display=Display(quiet=True)).run
    runs.assert_same_run(plain, other)
    assert other.status["state"] == "finished"
