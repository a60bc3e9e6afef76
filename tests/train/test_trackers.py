"""Trackers get rows under transformers' names, in the user's project, and a resumed run goes on where it was."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS

import runs
from prefiere.console import Display
from prefiere.launch import launch
from prefiere.run import Run
from prefiere.settings import DPO
from prefiere.train import trackers

ROW = {"step": 5, "loss": 0.5, "loss_low": 0.4, "loss_high": 0.6, "loss_n": 8, "eval_loss": 0.7, "eval_loss_low": 0.6,
       "rewards/margins": 0.2, "samples/kl": 0.1, "samples/kl_high": 0.2, "tokens_per_second": None,
       "guarded": True}  # fmt: skip
NAMED = {"train/global_step": 5, "train/loss": 0.5, "eval/loss": 0.7, "train/rewards/margins": 0.2,
         "eval/samples/kl": 0.1}  # fmt: skip


def test_names_are_those_of_transformers_and_intervals_come_when_asked() -> None:
    assert trackers.tracked(ROW, intervals=False) == NAMED
    more = {"train/loss_low": 0.4, "train/loss_high": 0.6, "train/loss_n": 8, "eval/loss_low": 0.6,
            "eval/samples/kl_high": 0.2}  # fmt: skip
    assert trackers.tracked(ROW, intervals=True) == NAMED | more


def test_the_names_agree_with_transformers_own() -> None:
    from transformers.integrations.integration_utils import rewrite_logs

    plain = {k: v for k, v in ROW.items() if k in ("loss", "eval_loss", "rewards/margins")}
    assert trackers.tracked(plain, intervals=False) == rewrite_logs(plain)


@pytest.mark.parametrize(
    ("given", "environment", "project"),
    [
        ({"report_to": ["wandb"]}, {}, "prefiere"),
        ({"report_to": ["wandb"]}, {"WANDB_PROJECT": "theirs"}, "theirs"),
        ({"report_to": ["mlflow"]}, {"WANDB_PROJECT": "theirs", "MLFLOW_EXPERIMENT_NAME": "exp"}, "exp"),
        ({"report_to": ["trackio"], "project": "mine"}, {"TRACKIO_PROJECT": "theirs"}, "mine"),
    ],
)
def test_the_project_is_the_users(
    given: dict[str, Any], environment: dict[str, str], project: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_PROJECT", "MLFLOW_EXPERIMENT_NAME", "TRACKIO_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert trackers.project_of(DPO(model="m", data="d", out="o", **given)) == project


# -- tensorboard: its own files ---------------------------------------------------------------------------------------


def read_back(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    return events


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_holds_each_row_once_after_a_resume(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    given: dict[str, Any] = {"report_to": ["tensorboard"], "max_steps": 4, "save_steps": 2, "logging_steps": 1}
    settings = runs.settings(tmp_path, DPO, project="mine", eval_steps=4, sample_steps=4, **given)
    runs.kill(settings, after=3)  # rows of step 3 are written, and no checkpoint knows them
    run = launch(settings, display=Display(quiet=True)).run
    rows, folder = run.metrics, run.folder / "mine"
    events = read_back(folder)
    steps = [e.step for e in events.Scalars("train/loss")]
    assert steps == [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    for event, row in zip(events.Scalars("train/loss"), rows, strict=True):
        assert event.value == pytest.approx(row["loss"])
    assert [e.step for e in events.Scalars("eval/loss")] == [0, 4]
    names = set(events.Tags()["scalars"])
    assert not {n for n in names if n.endswith(("_low", "_high", "_n"))}
    assert "eval/samples/kl" in names
    (table,) = {tag for tag in events.Tags()["tensors"] if tag.startswith("eval/samples")}
    last = events.Tensors(table)[-1]
    assert last.step == 4
    text = last.tensor_proto.string_val[0].decode()
    assert text.startswith("| step | prompt | completion |")
    assert len(text.splitlines()) == 2 + sum(row["step"] == 4 for row in run.samples)


# -- the others: accelerate's classes over libraries that write down how they are called -------------------------------


class Calls(ModuleType):
    """A library that keeps what it was asked."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.seen: list[tuple[str, dict[str, Any]]] = []

    def keep(self, what: str, **given: Any) -> None:
        self.seen.append((what, given))


class FakeRun:
    """A run of W&B or of trackio."""

    def __init__(self, of: Calls) -> None:
        self.of, self.info = of, SimpleNamespace(run_id="m-1")

    def log(self, values: Any, step: int | None = None, **_: Any) -> None:
        self.of.keep("log", values=values, step=step)

    def define_metric(self, name: str, **options: Any) -> None:
        self.of.keep("define_metric", name=name, **options)


class OneProcess:
    """A world that opens accelerate's trackers with the options that it is given."""

    main = True

    def __init__(self) -> None:
        self.trackers: list[Any] = []

    def start_trackers(self, project: str, settings: Any, options: dict[str, dict[str, Any]]) -> None:
        self.settings = settings
        for name, given in options.items():
            tracker = LOGGER_TYPE_TO_CLASS[name](project, **given)
            tracker.start()
            self.trackers.append(tracker)


def library(name: str, monkeypatch: pytest.MonkeyPatch) -> Calls:
    made = Calls(name)

    def init(**given: Any) -> FakeRun:
        made.keep("init", **given)
        return FakeRun(made)

    made.init = init  # type: ignore[attr-defined]
    made.start_run = lambda **given: init(**given)  # type: ignore[attr-defined]
    made.search_experiments = lambda **given: []  # type: ignore[attr-defined]
    made.create_experiment = lambda **given: given["name"]  # type: ignore[attr-defined]
    made.log_metrics = lambda values, step: made.keep("log", values=values, step=step)  # type: ignore[attr-defined]
    made.log_table = lambda data, artifact_file: made.keep("table", data=data, file=artifact_file)  # type: ignore[attr-defined]
    made.Table = lambda **given: SimpleNamespace(**given)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, name, made)
    return made


def opened(tmp_path: Path, name: str, *, step: int = 0, resumed: bool = False, **given: Any) -> tuple[Any, Any]:
    settings = DPO(model="m", data="d", out=str(tmp_path / "first"), report_to=[name], project="mine", **given)
    run, world = Run.create(tmp_path / "first"), OneProcess()
    trackers.start(world, run, settings, step=step, resumed=resumed)  # type: ignore[arg-type]
    return world, settings


@pytest.mark.parametrize("name", ["wandb", "trackio", "mlflow"])
def test_a_resume_goes_on_with_the_trackers_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    made = library(name, monkeypatch)
    world, _ = opened(tmp_path, name)
    assert world.settings["beta"] == "0.1"
    again, _ = opened(tmp_path, name, step=2, resumed=True)
    fresh, _ = opened(tmp_path, name)
    assert again.settings is None
    assert fresh.settings is not None
    first, second, third = (given for what, given in made.seen if what == "init")
    if name == "wandb":
        assert (first["project"], first["name"], first["resume"]) == ("mine", "first", "allow")
        assert first["id"] == second["id"] != third["id"]
    elif name == "trackio":
        assert (first["project"], first["resume"]) == ("mine", "allow")
        assert first["name"].startswith("first-")
        assert first["name"] == second["name"] != third["name"]
    else:
        assert (first["experiment_id"], first["run_name"], first["run_id"]) == ("mine", "first", None)
        assert (second["run_id"], third["run_id"]) == ("m-1", None)
    assert set(json.loads((tmp_path / "first" / "trackers.json").read_text())) == {name}


@pytest.mark.parametrize(("name", "step"), [("wandb", None), ("trackio", 5), ("mlflow", 5)])
def test_a_row_and_a_table(name: str, step: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    made = library(name, monkeypatch)
    world, settings = opened(tmp_path, name, run_name="mine too")
    trackers.track(world, settings, ROW)
    assert made.seen[-1] == ("log", {"values": NAMED, "step": step})
    samples = [{"step": 5, "prompt": [{"role": "user", "content": "q"}], "completion": "a", "ended": True}]
    trackers.track_samples(world, 5, samples)
    _, given = made.seen[-1]
    asked = '[{"role": "user", "content": "q"}]'
    if name == "mlflow":
        assert given["data"] == {"step": [5], "prompt": [asked], "completion": ["a"], "ended": [True]}
        assert given["file"] == "samples/step-00000005.json"
        return
    table = given["values"]["eval/samples"]
    if name == "wandb":
        assert ("define_metric", {"name": "*", "step_metric": "train/global_step", "step_sync": True}) in made.seen
        assert (table.columns, table.data) == (["step", "prompt", "completion", "ended"], [[5, asked, "a", True]])
    else:
        assert table.dataframe.to_dict("records") == [{"step": 5, "prompt": asked, "completion": "a", "ended": True}]
