"""Experiment trackers besides the run folder: what is called what there, and the same tracker's run on a resume.

Names are those that transformers' trainer uses: ``train/loss``, ``eval/loss``, ``train/global_step``. Which run of a
tracker belongs to a folder stands in its trackers.json.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from prefiere.files import without_passwords, write_text
from prefiere.metrics import HELD_OUT, column, without_bounds
from prefiere.run import Run
from prefiere.settings import Settings
from prefiere.untrusted import read_json
from prefiere.world import World

PROJECT = "prefiere"
_RECORD = "trackers.json"
_PROJECT_IN = {"wandb": "WANDB_PROJECT", "trackio": "TRACKIO_PROJECT", "mlflow": "MLFLOW_EXPERIMENT_NAME"}
"""Where a tracker's users name their project."""


def start(world: World, run: Run, settings: Settings, *, step: int, resumed: bool) -> None:
    """Open a run in every tracker, or go on with the one that this folder has there from ``step`` on."""
    if not settings.report_to:
        return
    known: Mapping[str, Any] = _recorded(run) if resumed and world.main else {}
    options, ids = _options(settings, run, known, step)
    config = None if known else {k: str(v) for k, v in without_passwords(settings.model_dump()).items()}
    world.start_trackers(project_of(settings), config, options)
    if not world.main:
        return
    for tracker in world.trackers:
        if tracker.name == "mlflow":
            ids["mlflow"] = tracker.tracker.info.run_id
        if tracker.name == "wandb":  # its own steps only go up: after a resume they would lose rows
            tracker.tracker.define_metric("train/global_step")
            tracker.tracker.define_metric("*", step_metric="train/global_step", step_sync=True)
    with run.writing():
        write_text(run.folder / _RECORD, json.dumps(ids) + "\n")


def _recorded(run: Run) -> Mapping[str, Any]:
    """Which run of each tracker is this one, by the tracker's name."""
    path = run.folder / _RECORD
    return read_json(path) if path.exists() else {}


def project_of(settings: Settings) -> str:
    """The project, from the settings, from a tracker's own variable of the environment, or ours."""
    named = (os.environ.get(_PROJECT_IN[name]) for name in settings.report_to if name in _PROJECT_IN)
    return settings.project or next(filter(None, named), PROJECT)


def _options(
    settings: Settings, run: Run, known: Mapping[str, Any], step: int
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """What each tracker is opened with, and the ids of its runs as far as they are ours to choose."""
    name = settings.run_name or run.name
    options: dict[str, dict[str, Any]] = {}
    ids: dict[str, Any] = {}
    for tracker in settings.report_to:
        if tracker == "wandb":
            ids["wandb"] = str(known.get("wandb") or secrets.token_hex(8))
            options["wandb"] = {"name": name, "id": ids["wandb"], "resume": "allow", "dir": str(run.folder)}
        elif tracker == "mlflow":
            options["mlflow"] = {"run_name": name, "run_id": known.get("mlflow")}
        elif tracker == "trackio":
            ids["trackio"] = str(known.get("trackio") or f"{name}-{secrets.token_hex(3)}")
            options["trackio"] = {"name": ids["trackio"], "resume": "allow"}
        else:  # rows after the checkpoint are written anew: the viewer leaves out what it had of them
            ids[tracker] = True
            options[tracker] = {"purge_step": step + 1} if known else {}
    return options, ids


def track(world: World, settings: Settings, row: Mapping[str, Any]) -> None:
    """Give the numbers of a row to every tracker."""
    values = tracked(row, intervals=settings.report_intervals)
    for tracker in world.trackers:
        tracker.log(values, **_at(tracker, row["step"]))


def tracked(row: Mapping[str, Any], *, intervals: bool) -> dict[str, float]:
    """A row under the names of trackers: numbers only; intervals: with the ends of intervals and counts."""
    found: dict[str, float] = {}
    for key, value in row.items():
        bound = without_bounds(key) in row and without_bounds(key) != key
        if isinstance(value, bool) or not isinstance(value, int | float) or (bound and not intervals):
            continue
        if key == "step":
            found["train/global_step"] = value
        elif key.startswith(HELD_OUT):
            found[f"eval/{key.removeprefix(HELD_OUT)}"] = value
        else:
            found[f"{'eval' if column(without_bounds(key)).sampled else 'train'}/{key}"] = value
    return found


def track_samples(world: World, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
    """Give sampled answers to every tracker, as a table where it has tables."""
    if not (world.trackers and world.main and rows):
        return
    columns = list(rows[0])
    cells = [[_cell(row.get(name)) for name in columns] for row in rows]
    for tracker in world.trackers:
        if tracker.name == "wandb":
            tracker.log_table("eval/samples", columns=columns, data=cells)
        elif tracker.name == "trackio":
            import pandas as pd
            import trackio

            table = trackio.Table(dataframe=pd.DataFrame(cells, columns=columns))
            tracker.log({"eval/samples": table}, step=step)
        elif tracker.name == "mlflow":
            import mlflow

            held = {name: [line[i] for line in cells] for i, name in enumerate(columns)}
            mlflow.log_table(held, artifact_file=f"samples/step-{step:08d}.json")
        else:
            tracker.log({"eval/samples": _as_markdown(columns, cells)}, step=step)


def _at(tracker: Any, step: int) -> dict[str, int]:
    """W&B counts its own steps; ``train/global_step`` is the axis there."""
    return {} if tracker.name == "wandb" else {"step": step}


def _cell(value: Any) -> Any:
    return value if isinstance(value, str | int | float) or value is None else json.dumps(value, ensure_ascii=False)


def _as_markdown(columns: Sequence[str], cells: Sequence[Sequence[Any]]) -> str:
    def line(values: Sequence[Any]) -> str:
        return "| " + " | ".join(str(v).replace("|", "\\|").replace("\n", "<br>") for v in values) + " |"

    return "\n".join([line(columns), line(["---"] * len(columns)), *map(line, cells)])
