"""A fast excerpt of `python -m benchmarks.doctor`: a planted cause is named, a healthy run is left alone."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from benchmarks.doctor import plant
from benchmarks.doctor.causes import UNLEARNT
from benchmarks.doctor.sheets import ALL
from benchmarks.doctor.table import table_of
from benchmarks.doctor.witness import learnt

from prefiere.data.quality.marks import texts_faulty
from prefiere.data.schema import Message, PreferencePair
from prefiere.doctor.case import Finding
from prefiere.doctor.diagnose import Diagnosis
from prefiere.run import Run

NAMED = {c.name: c for c in ALL}


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(plant, "PAIRS", 140)
    monkeypatch.setenv("PREFIERE_CACHE", str(tmp_path / "cache"))


@pytest.mark.long
@pytest.mark.parametrize(("cause", "verdict"), [("rate too low", "exact"), (None, "quiet")])
def test_a_planted_cause_is_named_and_a_healthy_run_is_not(tmp_path: Path, cause: str | None, verdict: str) -> None:
    case = plant.Case(NAMED[cause] if cause else None, 2 if cause else 0, 0, "demo", "demo")
    row = plant.outcome(case, tmp_path, remedies=False, keep=False)
    assert row["verdict"] == verdict, row
    assert f"| {cause} | 1 | 1 |" in table_of([row]) or cause is None


def test_there_are_forty_causes_and_each_changes_something() -> None:
    assert len(ALL) >= 40
    assert len({c.name for c in ALL}) == len(ALL)
    rows = plant.pairs_of("demo", 0)
    for cause in ALL:
        assert cause.exact
        if cause.data is not None:
            assert cause.data(rows, random.Random(0), 0.5) != rows, cause.name
        assert cause.data or cause.held or cause.settings(cause.strengths[2]), cause.name


def test_a_planted_template_is_what_the_audit_counts() -> None:
    rows = plant.pairs_of("demo", 0)
    data = NAMED["template written into the text"].data
    assert data is not None
    planted = data(rows, random.Random(0), 1.0)

    def record(row: dict) -> PreferencePair:  # type: ignore[type-arg]
        texts = {k: (Message(m["role"], m["content"]),) for k in ("prompt", "chosen", "rejected") for m in row[k]}
        return PreferencePair(**texts)

    assert all("markup" in texts_faulty(record(r)) for r in planted)
    assert not any(texts_faulty(record(r)) for r in rows)


def test_a_healthy_run_that_learnt_nothing_is_a_fault_of_the_model(tmp_path: Path) -> None:
    """Blaming the labels is wrong then; the witness is held-out accuracy."""

    def said(key: str) -> str:
        found = Finding(key, "It is so.", "warning", "", cause=True)
        return str(plant.read(UNLEARNT, Diagnosis("It is so.", "warning", (found,)))["verdict"])

    assert (said("pattern_missed"), said("no_pattern")) == ("exact", "wrong")
    run = Run.create(tmp_path / "run")
    assert learnt(run) is None
    for low in (0.3, 0.51):
        run.log({"step": int(100 * low), "eval_rewards/accuracies": 0.6, "eval_rewards/accuracies_low": low})
        assert learnt(run) is (low > 0.5)


def test_an_alarm_about_a_ruined_run_is_no_false_one() -> None:
    rows = [{"cause": None, "verdict": v, "sound": s} for v, s in (("quiet", True), ("alarm", False), ("alarm", True))]
    told = table_of(rows)
    assert "False alarms: 1 of 2 healthy runs" in told
    assert "Planned as healthy, and ruined: 1; warned about: 1." in told
