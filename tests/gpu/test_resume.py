"""A run on a GPU that was killed and continued ends as one that was left alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import runs
from prefiere.console import Display
from prefiere.launch import launch
from prefiere.run import Run
from prefiere.settings import DPO, SFT
from prefiere.train import checkpoint

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]

QUIET = Display(quiet=True)


@pytest.fixture(autouse=True)
def _same_sums() -> Iterator[None]:
    """Kernels that add up in one order, where PyTorch has them; it warns of those that it has not."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def trained(run: Run, place: int = -1) -> dict[str, torch.Tensor]:
    return load_file(checkpoint.found(run.checkpoints)[place] / "trained.safetensors")


def distance(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> float:
    assert one.keys() == two.keys()
    return max(float((a.double() - two[n].double()).abs().max()) for n, a in one.items())


@pytest.mark.filterwarnings("ignore:.*deterministic.*")
@pytest.mark.parametrize(
    ("method", "options"),
    [
        (DPO, {"lora": True, "lora_dropout": 0.2, "gradient_checkpointing": True}),
        (DPO, {"dtype": "float16"}),
        (SFT, {"dtype": "float32"}),
        ("ppo", {"lora": True}),
        ("grpo", {}),
    ],
    ids=str,
)
def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path, method: Any, options: dict[str, Any]) -> None:
    """Two runs that are left alone say how much a GPU's order of sums changes; the resumed one may differ as much."""
    options = {"max_steps": 5, "save_steps": 1, "eval_steps": 2, "sample_steps": 5, "save_total_limit": 9, **options}

    def settings(name: str) -> Any:
        out = {"out": str(tmp_path / name), **options}
        if isinstance(method, str):
            return runs.policy_settings(tmp_path, method, **out)
        return runs.settings(tmp_path, method, **out)

    whole, again = (launch(settings(n), display=QUIET).run for n in ("whole", "again"))
    runs.kill(settings("killed"), 3)
    resumed = launch(settings("killed"), display=QUIET).run
    assert "cpu" not in whole.environment["device"]
    assert resumed.status["state"] == "finished"
    learnt = distance(trained(whole), trained(whole, 2))
    noise = distance(trained(whole), trained(again))
    assert noise <= 0.02 * learnt, "noise drowns what two steps learn: the test does not test"
    assert distance(trained(whole), trained(resumed)) <= 2 * noise
    assert [r["step"] for r in whole.metrics] == [r["step"] for r in resumed.metrics]
    if noise == 0:
        assert [r.get("loss") for r in whole.metrics] == [r.get("loss") for r in resumed.metrics]
        assert whole.samples == resumed.samples
