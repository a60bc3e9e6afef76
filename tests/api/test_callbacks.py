"""Functions that a run calls along the way: with what, when, and what becomes of a run where one fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import prefiere
import runs
from prefiere.api import training
from prefiere.run import Run


@pytest.fixture(autouse=True)
def no_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take longer than all else, and nothing here reads them."""
    monkeypatch.setattr(training, "_write_report", lambda run: None)


def trained(place: Path, out: str, **options: Any) -> Run:
    if not (place / "model").exists():
        runs.model_folder(place / "model")
        runs.pairs_file(place / "pairs.jsonl")
    given = {"model": place / "model", "data": place / "pairs.jsonl", "batch_size": 8, "max_steps": 4, "eval_size": 6,
             "learning_rate": 1e-3, "max_new_tokens": 6, "sample_prompts": 4, "logging_steps": 1, "eval_steps": 2,
             "sample_steps": 4, "save_steps": 2, "save_total_limit": 9}  # fmt: skip
    return prefiere.dpo(out=place / out, **given | options)


def test_they_get_each_row_each_validation_and_each_checkpoint(tmp_path: Path) -> None:
    logged, measured, saved = [], [], []
    run = trained(
        tmp_path,
        "told",
        on_log=lambda step, row: logged.append((step, row)),
        on_evaluate=lambda step, row: measured.append((step, row)),
        on_save=lambda step, folder: saved.append((step, folder, (folder / "manifest.json").is_file())),
    )
    assert [row for _, row in logged] == run.metrics
    assert [step for step, _ in logged] == [0, 1, 2, 3, 4]
    assert [row for _, row in measured] == [r for r in run.metrics if "eval_loss" in r or "samples/length" in r]
    assert [step for step, _ in measured] == [0, 2, 4]
    assert saved == [(n, run.checkpoints / f"step-{n:08d}", True) for n in (2, 4)]
    runs.assert_same_run(run, trained(tmp_path, "untold"))


def test_they_cannot_change_what_is_logged(tmp_path: Path) -> None:
    run = trained(tmp_path, "cleared", max_steps=1, on_log=lambda step, row: row.clear())
    assert "loss" in run.metrics[-1]


@pytest.mark.parametrize("event", ["on_log", "on_evaluate", "on_save"])
def test_one_that_fails_is_named_and_the_run_goes_on_as_if_nothing_had_been(tmp_path: Path, event: str) -> None:
    def fails(step: int, what: Any) -> None:
        if step == 2:
            raise KeyError("x" * 10_000)

    with pytest.raises(ValueError, match=rf"^{event} failed at .*test_callbacks\.py:\d+: KeyError: ") as error:
        trained(tmp_path, "run", **{event: fails})
    assert len(str(error.value)) < 600
    assert Run.open(tmp_path / "run").status["state"] == "failed"
    runs.assert_same_run(trained(tmp_path, "whole"), trained(tmp_path, "run"))


def test_what_is_no_function_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^on_save must be a function, not 'notify'\."):
        trained(tmp_path, "run", on_save="notify")
    assert not (tmp_path / "run").exists()
