"""Whole runs of several processes: what a run of one process gives, also where one of them is killed on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

import runs
from prefiere.algorithms import offline
from prefiere.cli.main import main
from prefiere.console import Display
from prefiere.launch import launch
from prefiere.plan import examples, together
from prefiere.plan.choices import Choice
from prefiere.run import Run
from prefiere.tokens import groups
from prefiere.train import setup
from prefiere.train.loop import Loop

QUIET = Display(quiet=True)


def torchrun(*options: str) -> list[str]:
    """The command of two processes that run this file."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    return [*command, *options, __file__]


def products(name: str) -> Callable[..., Choice]:
    """A measurement of libraries that comes out so."""
    return lambda device, dtype: Choice("fp32_products", name, "for this test")


def words(s: object) -> list[str]:
    """These settings as words of a command."""
    return [f"{k}={v}" for k, v in s.model_dump(exclude_unset=True).items() if k != "method"]  # type: ignore[attr-defined]


@pytest.mark.long
def test_a_killed_process_is_started_again_and_the_run_is_that_of_one_process(tmp_path: Path, monkeypatch) -> None:
    """The second process is killed before its last update; torchrun starts both again, and nobody else has to. Each has
    a home of its own, as on two machines: the first alone reads the data, and together they compute the reference of
    each pair once, over both lives. The first alone finds oneDNN faster: neither takes it."""
    monkeypatch.setattr(setup, "choose_products", products("default"))
    options = {"max_steps": 3, "save_steps": 1, "tokens_per_microbatch": 120}
    one = launch(runs.settings(tmp_path, out=str(tmp_path / "one"), **options), display=QUIET).run
    s = runs.settings(tmp_path, out=str(tmp_path / "two"), **options)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "KILLED": "1 3", "HOMES": str(tmp_path)}
    done = subprocess.run(
        [*torchrun("--max-restarts", "1"), "dpo", *words(s)],
        env=env, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "error: process 1 (pid " in done.stderr
    assert "continuing from step 2 of 3" in done.stderr
    asked = [int(n) for n in (tmp_path / "asked").read_text().split()]
    assert sum(asked) == 24
    assert min(asked) > 0
    assert len(asked) == 4, "two processes, once for the pairs to train on and once for those held out"
    assert list((tmp_path / "home-0").glob("reference-*"))
    assert not list((tmp_path / "home-1").glob("reference-*"))
    made = [sorted((tmp_path / f"home-{n}").glob("tokens-*/*.bin")) for n in (0, 1)]
    assert len({f.parent.name for f in made[0]}) == 1
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(*made, strict=True))
    two = Run.open(s.out)
    assert two.status["state"] == "finished"
    assert two.environment["world_size"] == 2
    assert two.choices["fp32_products"] == "default"
    assert (two.folder / "report.html").is_file()
    for a, b in zip(one.metrics, two.metrics, strict=True):
        for name in ("loss", "eval_loss", "rewards/margins", "eval_rewards/margins", "grad_norm", "eval_loss_n"):
            assert (name in a) == (name in b)
            if name in a:
                assert a[name] == pytest.approx(b[name], rel=1e-4, abs=1e-5), name
    assert [r["completion"] for r in one.samples] == [r["completion"] for r in two.samples]
    weights = [load_file(run.model / "model.safetensors") for run in (one, two)]
    for name, w in weights[0].items():
        assert float((w - weights[1][name]).abs().max()) <= 1e-6, name


def _in_a_process_group() -> None:
    """A command in one of two processes, each with a home of its own in HOMES, where they write how many groups each
    asks the reference about. KILLED is "rank step": that one dies in that step of its first life."""
    homes = Path(os.environ["HOMES"])
    os.environ["PREFIERE_CACHE"] = str(homes / f"home-{os.environ['RANK']}")
    rank, step = os.environ["KILLED"].split()
    real, ask = Loop._collect, offline.sequence_logps

    def asked(trunk: Any, groups: Any, **options: Any) -> np.ndarray:
        logps = ask(trunk, groups, **options)
        with (homes / "asked").open("a") as f:
            f.write(f"{np.count_nonzero(logps[:, 0])}\n")
        return logps

    def killed(self: Loop, metrics: object) -> None:
        if self.state.step == int(step) and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)
        real(self, metrics)  # type: ignore[arg-type]

    offline.sequence_logps = asked
    setup.choose_products = products("onednn" if os.environ["RANK"] == "0" else "default")
    if os.environ["RANK"] == "1":  # it sees neither the data nor the first one's home
        examples._tokenized = None  # type: ignore[assignment]
        groups._reopened = lambda path, dtype: groups._Stretches(homes / "home-1" / path.parent.name / path.name, dtype)
        together.sees = lambda folder: (homes / "home-1" / folder.name).is_dir()
    if os.environ["RANK"] == rank:
        Loop._collect = killed  # type: ignore[method-assign,assignment]
    main()


if __name__ == "__main__":
    _in_a_process_group()
