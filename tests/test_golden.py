"""Seeded runs of every method log what they logged when tests/golden was recorded, to the last bit."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from golden import record


@pytest.mark.parametrize("part", [0, *(pytest.param(n, marks=pytest.mark.long) for n in range(1, 8))])
def test_runs_log_what_was_recorded(part: int) -> None:
    names = list(record.CASES)[part::8]
    command = [sys.executable, str(record.HERE / "record.py"), *names]
    done = subprocess.run(command, env={**os.environ, **record.PINNED}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-3000:]}"
    assert f"{len(names)} of {len(names)} cases as recorded" in done.stdout


def test_a_moved_figure_is_named() -> None:
    old = {"rows": [{"step": 1, "loss": 0.5}], "weights": "a"}
    assert not list(record.moved(old, old))
    new = {"rows": [{"step": 1, "loss": 0.5000000000000001}], "weights": "a"}
    assert list(record.moved(old, new)) == ["/rows/0/loss: 0.5 -> 0.5000000000000001"]
    assert not list(record.moved(old, new, tolerance=1e-3))
    assert list(record.moved(old, {"rows": [{"step": 1}], "weights": "b"})) == [
        "/rows/0/loss: gone",
        "/weights: a -> b",
    ]


def test_every_case_is_recorded() -> None:
    assert {p.stem for p in record.HERE.glob("*.json")} == {*record.CASES, "canary"}
