"""Runs that end early, and whether two runs have the same end, for tests of several processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from prefiere.console import Display
from prefiere.launch import launch
from prefiere.run import Run
from prefiere.settings import Settings
from prefiere.train.engine import Engine

QUIET = Display(quiet=True)


class Killed(BaseException):
    """Nothing of ours catches it: what a kill leaves behind."""


def killed(s: Settings, at: int) -> None:
    """Begin a run, and end it like a kill in its update number ``at``."""
    real = Engine.update

    def update(self: Engine, *args: Any) -> Any:
        if self.scheduler.last_epoch >= at:
            raise Killed
        return real(self, *args)

    Engine.update = update  # type: ignore[method-assign]
    try:
        launch(s, display=QUIET)
    except Killed:
        pass
    finally:
        Engine.update = real  # type: ignore[method-assign]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {n: x for path in sorted(folder.glob("*.safetensors")) for n, x in load_file(path).items()}


def assert_near(one: Run, two: Run, tolerance: float) -> None:
    """Rows, samples and weights of two runs agree."""
    for a, b in zip(one.metrics, two.metrics, strict=True):
        assert a.keys() == b.keys()
        for name in ("loss", "eval_loss", "grad_norm", "rewards/margins", "reward", "weights/moved"):
            if name in a:
                assert a[name] == pytest.approx(b[name], rel=20 * tolerance, abs=tolerance), name
    assert [r["completion"] for r in one.samples] == [r["completion"] for r in two.samples]
    for name in ("score", "reward"):
        assert [r[name] for r in one.samples] == pytest.approx([r[name] for r in two.samples], abs=1e-5), name
    a, b = weights(one.model), weights(two.model)
    assert a.keys() == b.keys()
    whole = sum(float(x.norm()) ** 2 for x in a.values()) ** 0.5
    assert sum(float((x - b[n]).norm()) ** 2 for n, x in a.items()) ** 0.5 <= tolerance * whole
    assert sorted(p.name for p in one.model.iterdir()) == sorted(p.name for p in two.model.iterdir())
