"""The first update of a policy-gradient run, in this process or in two: what was sampled, its loss, its gradients."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

import runs
from prefiere.algorithms.on_policy import OnPolicy
from prefiere.algorithms.rollout import Rollout
from prefiere.methods import METHODS
from prefiere.world import leave_group


def method_of(tmp: Path, method: str = "ppo", **options: Any) -> OnPolicy:
    """The method of such a run, with all its parts, before its first step."""
    made: OnPolicy = import_module(METHODS[method].home).build(runs.policy_session(tmp, method, **options))
    return made


def kept_rollouts(m: OnPolicy) -> list[Rollout]:
    """A list to which this method's rollouts are added from now on, each before its first update."""
    kept, real = list[Rollout](), m.estimate

    def noting(reward_CL: torch.Tensor, rollout: Rollout) -> tuple[torch.Tensor, torch.Tensor]:
        kept.append(rollout)
        return real(reward_CL, rollout)

    m.estimate = noting
    return kept


class Recorder(torch.optim.SGD):
    """Keeps every gradient, and the parameters that it was taken at."""

    def __init__(self, named: dict[str, torch.Tensor], lr: float):
        super().__init__(list(named.values()), lr=lr)
        self.named, self.seen = named, list[tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]]()

    def step(self, closure: Any = None) -> None:
        grads = {n: p.grad.clone() for n, p in self.named.items() if p.grad is not None}
        self.seen.append(({n: p.detach().clone() for n, p in self.named.items()}, grads))
        super().step()


def recorded(m: OnPolicy, lr: float = 0.05) -> Recorder:
    """Let this method's engine step by plain gradients, and keep them."""
    trained = {n: p for n, p in m.session.trunk.named_parameters() if p.requires_grad}
    m.session.engine.optimizer = Recorder(trained, lr)
    return m.session.engine.optimizer


def first_update(tmp: Path, method: str, **options: Any) -> dict[str, Any]:
    """Tokens of the first rollout, loss and gradients of the first update on it."""
    m = method_of(tmp, method, **{"num_ppo_epochs": 1, "max_grad_norm": None, **options})
    recorder, kept = recorded(m), kept_rollouts(m)
    update = m.step(0)
    tokens = [c.tolist() for g in kept[0].store for c in g.completions]
    return {
        "tokens": tokens,
        "reward": kept[0].reward_C.tolist(),
        "loss": update.loss,
        "norm": update.grad_norm,
        "gradients": recorder.seen[0][1],
        "world": m.session.engine.world.size,
    }


def assert_same(one: dict[str, Any], two: dict[str, Any], tolerance: float = 5e-5) -> None:
    assert one["tokens"] == two["tokens"]
    assert one["reward"] == pytest.approx(two["reward"], rel=1e-5, abs=1e-6)
    assert one["loss"] == pytest.approx(two["loss"], rel=tolerance, abs=1e-6), (one["loss"], two["loss"])
    assert one["norm"] == pytest.approx(two["norm"], rel=tolerance)
    assert one["gradients"].keys() == two["gradients"].keys()
    for name, g in one["gradients"].items():
        assert (g - two["gradients"][name]).norm() <= tolerance * max(float(g.norm()), 0.01 * one["norm"]), name


def in_two_processes(tmp_path: Path, cases: dict[str, tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """What `first_update` gives in each case under torchrun with two processes."""
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "WHERE": str(tmp_path)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr[-9000:]
    return {name: torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in cases}


def _in_a_process_group() -> None:
    tmp = Path(os.environ["WHERE"])
    for name, (method, options) in json.loads((tmp / "cases.json").read_text()).items():
        found = first_update(tmp, method, **{**options, "out": str(tmp / os.environ["RANK"])})
        if int(os.environ["RANK"]) == 0:
            torch.save(found, tmp / f"{name}.pt")
    leave_group()


if __name__ == "__main__":
    _in_a_process_group()
