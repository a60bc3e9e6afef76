"""Why a run stopped, as its folder records it: in this version, and in those before."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import get_args

import pytest

from prefiere.files import without_passwords
from prefiere.run import Run, RunError, Stop, StopKind


@pytest.mark.parametrize("kind", get_args(StopKind))
def test_a_stop_is_read_as_it_was_written(tmp_path: Path, kind: StopKind) -> None:
    run, stop = Run.create(tmp_path), Stop(kind, "any sentence: \u202e guard")
    run.status = {"state": "stopped", "reason": "something else", "stop": asdict(stop)}
    assert run.stop == stop


@pytest.mark.parametrize(
    ("sentence", "state", "kind"),
    [
        ("interrupted", "stopped", "interrupted"),
        ("early stopping: eval_loss has not improved in 3 validations", "finished", "early"),
        ("early stopping: eval_loss has not improved in 3 validations; model/ holds the best step, 2", "finished",
         "early"),
        ("guard: KL budget spent: the policy is 9.1 nats per answer from the reference, and max_kl allows 8", "stopped",
         "kl_budget"),
        ("guard: the reward rises (0.10 -> 0.90) while the judge's score falls (0.80 -> 0.52): the policy is "
         "exploiting the reward", "stopped", "exploited"),
        ("guard: sampled answers have become 2.1 nats per token less likely under the reference (-1.20 -> -3.30): the "
         "model is leaving the language it knew", "stopped", "degenerate"),
        ("guard: 62% fewer sampled answers reach an end (98% -> 36%)", "stopped", "degenerate"),
        ("guard: sampled answers repeat themselves (1% -> 52% of trigrams)", "stopped", "degenerate"),
        ("model/ holds the best step, 2", "finished", None),
        ("guard: this is the message of an error", "failed", None),
        (None, "finished", None),
        (None, "running", None),
        (None, "stopped", None),
    ],
)  # fmt: skip
def test_a_folder_of_before_stops_had_kinds(
    tmp_path: Path, sentence: str | None, state: str, kind: StopKind | None
) -> None:
    """Every sentence that a version without kinds wrote, word for word."""
    run = Run.create(tmp_path)
    run.status = {"state": state, "step": 3, "reason": sentence}
    assert run.stop == (Stop(kind, str(sentence)) if kind else None)


@pytest.mark.parametrize(
    "recorded", [{}, {"kind": "bored"}, {"kind": ["early"]}, {"text": "early stopping"}, 7, ["early"]]
)
def test_what_is_no_stop_is_none(recorded: object) -> None:
    assert Stop.read(recorded) is None


def test_what_follows_from_a_kind() -> None:
    said = {kind: Stop(kind, "") for kind in get_args(StopKind)}
    assert {k for k, s in said.items() if s.finished} == {"early"}
    assert {k for k, s in said.items() if s.usable} == {"early", "kl_budget"}
    assert {k for k, s in said.items() if s.guarded} == {"degenerate", "exploited", "kl_budget"}


def test_a_status_whose_step_is_no_number_is_damaged(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run")
    (run.folder / "status.json").write_text('{"state": "running", "step": {"a": 1}}')
    with pytest.raises(RunError, match=r"status\.json is damaged: step is no number"):
        _ = run.status


def test_a_run_folder_holds_no_password(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run")
    url = "postgresql://ana:hunter2@db.example:5432/votes#3"
    run.recipe = {"data": url, "judge": ["http://x:hunter2@y/v1", "a:b"], "out": str(tmp_path)}
    run.environment = {"command": f"prefiere dpo --data {url}", "plan": {"settings": {"data": url}}}
    assert not [p for p in run.folder.iterdir() if b"hunter2" in p.read_bytes()]
    assert run.recipe["data"] == "postgresql://ana:***@db.example:5432/votes#3"
    assert run.recipe["judge"][1] == "a:b"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://ana:s3/cr:et@h/v", "postgresql://ana:***@h/v"),
        ("postgresql://h/v?user=ana&password=s3cret", "postgresql://h/v?user=ana&password=***"),
        ("http://localhost:8000/v1#a@b", "http://localhost:8000/v1#a@b"),
        ("¿Qué es un perro? a:b@c", "¿Qué es un perro? a:b@c"),
        ("x" * 200_000, "x" * 200_000),
    ],
)
def test_which_part_is_a_password(url: str, shown: str) -> None:
    assert without_passwords(url) == shown
