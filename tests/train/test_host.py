"""Choices that belong to a processor."""

import subprocess
import sys

import pytest
import torch

from prefiere.objectives import products
from prefiere.train import host


@pytest.mark.parametrize(("gain", "choice"), [(2.0, "onednn"), (1.1, "default"), (0.0, "default")])
def test_the_faster_library_is_taken_in_fp32_on_a_cpu(monkeypatch, gain, choice) -> None:
    monkeypatch.setattr(host, "onednn_gain", lambda: gain)
    assert host.choose_products(torch.device("cpu"), torch.float32).value == choice
    assert host.choose_products(torch.device("cpu"), torch.bfloat16).value == "default"
    assert host.choose_products(torch.device("cuda"), torch.float32).value == "default"


def test_a_choice_is_carried_out(monkeypatch) -> None:
    layer = torch.nn.Linear(4, 4)
    host.apply_products(layer, "default")
    assert not products.using_onednn()
    assert "forward" not in vars(layer)
    host.apply_products(layer, "onednn")
    assert products.using_onednn()
    assert "forward" in vars(layer)
    products.use_onednn(False)


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
