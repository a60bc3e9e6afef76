"""Stopped and resumed equals uninterrupted, bit for bit; and a run folder that survives whatever ends it."""

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import runs
from prefiere import files
from prefiere.algorithms.offline import Offline
from prefiere.console import Display
from prefiere.kernels.memory import OutOfMemory
from prefiere.launch import launch
from prefiere.run import Run, RunError, Stop
from prefiere.settings import DPO, SFT
from prefiere.train import checkpoint, loop, previous
from prefiere.train.engine import Engine, TrainingError
from prefiere.train.interrupt import Ending, Interrupt, resume_command
from prefiere.world import World

QUIET = Display(quiet=True)


def given(tmp: Path, method, **options):
    """Settings of a short run of this method."""
    return (
        runs.policy_settings(tmp, method, **options)
        if isinstance(method, str)
        else runs.settings(tmp, method, **options)
    )


def steps(method: Offline) -> int:
    return method.session.engine.scheduler.last_epoch


class Killed(BaseException):
    """Nothing of ours catches it: what a kill leaves behind."""


@pytest.mark.parametrize(
    ("method", "options"),
    [
        (DPO, {}),
        (DPO, {"lora": True, "lora_dropout": 0.2, "logging_steps": 3}),
        pytest.param(DPO, {"loss_type": "kto", "tokens_per_microbatch": 60}, marks=pytest.mark.long),
        (DPO, {"lora": True, "lora_dropout": 0.2, "gradient_checkpointing": True, "use_dora": True}),
        pytest.param(
            DPO, {"metric_for_best_model": "eval_loss", "save_steps": 100, "eval_steps": 2}, marks=pytest.mark.long
        ),
        (DPO, {"metric_for_best_model": "eval_loss", "save_steps": 2, "eval_steps": 1, "save_total_limit": 1}),
        (SFT, {"num_train_epochs": 3, "max_steps": None}),
        pytest.param(
            "ppo",
            {"target_kl": 0.01, "kl_horizon": 50, "learning_rate": 5e-3, "num_mini_batches": 2},
            marks=pytest.mark.long,
        ),
        pytest.param(
            "ppo",
            {"lora": True, "target_kl": 0.01, "kl_horizon": 50, "gradient_checkpointing": True},
            marks=pytest.mark.long,
        ),
        pytest.param("ppo", {"share_critic": True, "critic_warmup_steps": 3}, marks=pytest.mark.long),
        pytest.param("rloo", {"tokens_per_microbatch": 60, "logging_steps": 3}, marks=pytest.mark.long),
    ],
)
def test_killed_and_resumed_equals_uninterrupted(tmp_path, monkeypatch, method, options) -> None:
    options = {"max_steps": 7, "save_steps": 2, "eval_steps": 3, "sample_steps": 2, **options}
    whole = launch(given(tmp_path, method, out=str(tmp_path / "whole"), **options), display=QUIET).run
    s = given(tmp_path, method, out=str(tmp_path / "killed"), **options)
    for fatal in (2, 5, 6):  # in the step after it: once before any checkpoint was used, then after some
        real = Engine.update
        done = [0]

        def update(self, *args, fatal=fatal, real=real, done=done):
            if self.scheduler.last_epoch >= fatal and done[0]:
                raise Killed
            done[0] += 1
            return real(self, *args)

        monkeypatch.setattr(Engine, "update", update)
        with pytest.raises(Killed):
            launch(s, display=QUIET)
        monkeypatch.setattr(Engine, "update", real)
    resumed = launch(s, display=QUIET).run
    assert resumed.status["state"] == "finished"
    runs.assert_same_run(whole, resumed)
    if isinstance(method, str):
        assert_same_checkpoint(whole, resumed)
        scale = last_state(whole)["method"]["scale"]["std"]
        assert scale not in (None, 1.0)
        if "target_kl" in options:
            assert last_state(whole)["method"]["kl"]["coef"] != 0.05, "the coefficient was not steered"


def test_a_cache_on_a_drive_that_goes_away(tmp_path, monkeypatch) -> None:
    """status.json says what could not be read, and the same command continues when the drive is back, or elsewhere."""
    options = {"max_steps": 6, "save_steps": 2, "eval_steps": 3, "sample_steps": 2}
    whole = launch(given(tmp_path, DPO, out=str(tmp_path / "whole"), **options), display=QUIET).run
    s, real = given(tmp_path, DPO, out=str(tmp_path / "cut"), **options), os.pread
    out = Run(tmp_path / "cut")

    def pread(*args: int) -> bytes:
        if (out.folder / "status.json").is_file() and out.status.get("step", 0) >= 3:
            raise OSError(errno.ESTALE, "Stale file handle")
        return real(*args)

    monkeypatch.setattr(os, "pread", pread)
    with pytest.raises(OSError, match=r"cannot read .*tokens.*\.bin \(Stale file handle\): .*PREFIERE_CACHE"):
        launch(s, display=QUIET)
    assert out.status["state"] == "failed"
    assert "Stale file handle" in out.status["reason"]
    monkeypatch.setattr(os, "pread", real)
    monkeypatch.setenv("PREFIERE_CACHE", str(tmp_path / "another"))
    runs.assert_same_run(whole, launch(s, display=QUIET).run)


def last_state(run: Run) -> dict:
    return json.loads((checkpoint.found(run.checkpoints)[-1] / "state.json").read_text())


def assert_same_checkpoint(one: Run, two: Run) -> None:
    """The critic, the optimizer, the counters: what model/ does not hold."""
    a, b = (checkpoint.found(r.checkpoints)[-1] for r in (one, two))
    assert a.name == b.name
    x, y = (load_file(p / "trained.safetensors") for p in (a, b))
    assert x.keys() == y.keys()
    assert all(torch.equal(x[n], y[n]) for n in x)
    assert last_state(one)["method"] == last_state(two)["method"]
    m, n = (torch.load(p / "optimizer.pt", weights_only=True)["optimizer"]["state"] for p in (a, b))
    assert all(torch.equal(m[i][k], n[i][k]) for i in m for k in m[i])


@pytest.mark.long
def test_kill_9_of_the_real_command(tmp_path: Path) -> None:
    options = {"max_steps": 40, "save_steps": 5, "eval_steps": 10, "sample_steps": 10}
    whole = launch(runs.settings(tmp_path, out=str(tmp_path / "whole"), **options), display=QUIET).run
    killed = tmp_path / "killed"
    s = runs.settings(tmp_path, out=str(killed), **options)
    given = [f"{k}={v}" for k, v in s.model_dump(exclude_unset=True).items()]
    command = [sys.executable, "-m", "prefiere", "dpo", *given]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 100
    while not checkpoint.found(killed / "checkpoints") and time.monotonic() < deadline and running.poll() is None:
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert Run(killed).status["state"] == "running", "it was too fast to be killed"
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["state"] == "finished"
    runs.assert_same_run(whole, Run.open(killed))
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "finished already" in again.stdout + again.stderr


@pytest.mark.parametrize("how", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_saves_reports_and_says_how_to_go_on(tmp_path, monkeypatch, capsys, how) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job is started with it ignored
    s = runs.settings(tmp_path, max_steps=6)
    real = Engine.update

    def update(self, *args):
        if self.scheduler.last_epoch == 2:
            os.kill(os.getpid(), getattr(signal, how))
        return real(self, *args)

    monkeypatch.setattr(Engine, "update", update)
    reported = []
    outcome = launch(s, display=Display(), on_end=reported.append)
    monkeypatch.setattr(Engine, "update", real)
    assert outcome.stopped == outcome.run.stop == Stop("interrupted", "interrupted")
    assert outcome.run.status["state"] == "stopped"
    assert outcome.run.status["step"] == 3
    assert len(reported) == 1
    assert checkpoint.found(outcome.run.checkpoints)[-1].name == "step-00000003"
    assert "To continue:" in capsys.readouterr().err
    whole = launch(runs.settings(tmp_path, max_steps=6, out=str(tmp_path / "whole")), display=QUIET).run
    runs.assert_same_run(whole, launch(s, display=QUIET).run)


@pytest.mark.parametrize("how", ["SIGTERM", "SIGHUP"])
def test_a_signal_before_the_first_update_is_no_running_run(tmp_path, monkeypatch, how) -> None:
    """While the model loads nothing is there yet; while the model before training answers, status.json tells."""

    def hangup(*args, **kwargs):
        os.kill(os.getpid(), getattr(signal, how))
        time.sleep(5)

    with monkeypatch.context() as m:
        m.setattr("prefiere.launch.build_session", hangup)
        with pytest.raises(KeyboardInterrupt):
            launch(runs.settings(tmp_path), display=QUIET)
    assert not (tmp_path / "run").exists()
    with monkeypatch.context() as m:
        m.setattr(loop.Loop, "_begin", hangup)
        with pytest.raises(KeyboardInterrupt):
            launch(runs.settings(tmp_path), display=QUIET)
    run = Run(tmp_path / "run")
    assert run.status["state"] == "stopped"
    assert run.stop == Stop("interrupted", "interrupted")
    assert launch(runs.settings(tmp_path), display=QUIET).run.status["state"] == "finished"


def test_other_versions_are_said_and_recorded(tmp_path, monkeypatch, killed_at_5) -> None:
    shutil.copytree(killed_at_5, tmp_path, dirs_exist_ok=True)
    record = tmp_path / "run" / "environment.json"
    found = json.loads(record.read_text())
    now = found["versions"]["torch"]
    record.write_text(json.dumps({**found, "versions": {**found["versions"], "torch": "1.13.1"}}))
    told: list[str] = []
    display = Display(quiet=True)
    monkeypatch.setattr(display, "say", told.append)
    run = launch(going_on(tmp_path, killed_at_5), display=display).run
    assert any(f"other versions (torch 1.13.1 -> {now})" in line for line in told)
    assert run.environment["resumed"] == [{"torch": ["1.13.1", now]}]
    assert run.environment["versions"]["torch"] == "1.13.1"


def test_a_finished_run_is_left_alone(tmp_path) -> None:
    s = runs.settings(tmp_path)
    first = launch(s, display=QUIET)
    stamp = (first.run.model / "model.safetensors").stat().st_mtime_ns
    again = launch(s, display=QUIET)
    assert again.already
    assert (first.run.model / "model.safetensors").stat().st_mtime_ns == stamp


def test_changed_settings_are_named_and_fresh_starts_over(tmp_path) -> None:
    launch(runs.settings(tmp_path), display=QUIET)
    with pytest.raises(RunError, match=r"beta, learning_rate|learning_rate, beta"):
        launch(runs.settings(tmp_path, beta=0.2, learning_rate=2e-3), display=QUIET)
    run = launch(runs.settings(tmp_path, beta=0.2), fresh=True, display=QUIET).run
    assert run.recipe["beta"] == 0.2
    assert [r["step"] for r in run.metrics] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("what", ["data", "model"])
def test_changed_data_or_model_is_noticed(tmp_path, monkeypatch, what) -> None:
    s = runs.settings(tmp_path)
    monkeypatch.setattr(Engine, "update", lambda *args: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        launch(s, display=QUIET)
    monkeypatch.undo()
    if what == "data":
        runs.pairs_file(tmp_path / "pairs.jsonl", seed=5)
    else:
        runs.model_folder(tmp_path / "model", seed=5)
    with pytest.raises(RunError, match="has changed since this run began"):
        launch(s, display=QUIET)


def test_a_folder_with_other_things_is_refused(tmp_path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("x")
    with pytest.raises(RunError, match=r"thesis\.tex"):
        launch(runs.settings(tmp_path), display=QUIET)
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["thesis.tex"]


def test_two_at_once_is_refused(tmp_path) -> None:
    from filelock import FileLock

    s = runs.settings(tmp_path)
    launch(s, display=QUIET)
    before = sorted(p.name for p in (tmp_path / "run").iterdir())
    for fresh in (False, True):
        with FileLock(tmp_path / "run" / ".lock"), pytest.raises(RunError, match="another process"):
            launch(s, fresh=fresh, display=QUIET)
        assert sorted(p.name for p in (tmp_path / "run").iterdir()) == before


@pytest.mark.parametrize("writer", ["save_file", "torch.save"])
def test_a_full_disk_leaves_the_last_checkpoint_whole(tmp_path, monkeypatch, writer) -> None:
    """Whatever the writing library makes of it: here no file may become longer than 300 bytes."""
    s = runs.settings(tmp_path, max_steps=6, save_steps=2)
    home = {"save_file": checkpoint, "torch.save": torch}[writer]
    name = writer.split(".")[-1]
    real = getattr(home, name)

    def full(held, path):
        if "step-00000004" not in str(path):
            return real(held, path)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, limits[1]))
        try:
            return real(held, path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    monkeypatch.setattr(home, name, full)
    with pytest.raises(TrainingError, match=r"cannot write a checkpoint.*Free some space.*step-00000002 is whole"):
        launch(s, display=QUIET)
    run = Run.open(s.out)
    assert run.status["state"] == "failed"
    assert [p.name for p in checkpoint.found(run.checkpoints)] == ["step-00000002"]
    assert not list(run.checkpoints.glob(".*"))
    monkeypatch.setattr(home, name, real)
    assert launch(s, display=QUIET).run.status["state"] == "finished"


def test_a_connection_that_breaks_at_a_checkpoint_is_not_laid_to_the_disk(tmp_path, monkeypatch) -> None:
    def broken(self: World, items: list[object]) -> list[object]:
        if items and isinstance(items[0], dict) and "cpu" in items[0]:
            raise RuntimeError("Connection closed by peer")
        return items

    monkeypatch.setattr(World, "gather", broken)
    with pytest.raises(RuntimeError, match=r"^Connection closed by peer$"):
        launch(runs.settings(tmp_path, max_steps=2, save_steps=1), display=QUIET)


def test_checkpoints_are_rotated_and_the_best_is_kept_and_wins(tmp_path, monkeypatch) -> None:
    losses = {0: 9.0, 1: 5.0, 2: 1.0, 3: 4.0, 4: 3.0, 5: 6.0}
    real = Offline.validate
    monkeypatch.setattr(
        Offline, "validate", lambda self: {**real(self), "eval_loss": losses[steps(self)]}
    )  # fmt: skip
    s = runs.settings(
        tmp_path, max_steps=5, save_steps=1, eval_steps=1, save_total_limit=2, metric_for_best_model="eval_loss"
    )
    run = launch(s, display=QUIET).run
    kept = checkpoint.found(run.checkpoints)
    assert [p.name[-1] for p in kept] == ["2", "4", "5"]
    best = load_file(kept[0] / "trained.safetensors")
    for name, tensor in runs.weights(run).items():
        assert torch.equal(tensor, best[f"model.{name}"])
    assert "best step, 2" in run.status["reason"]


def test_early_stopping(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(Offline, "validate", lambda self: {"eval_loss": float(steps(self))})
    s = runs.settings(tmp_path, max_steps=9, eval_steps=1, metric_for_best_model="eval_loss", early_stopping_patience=3)
    run = launch(s, display=QUIET).run
    assert run.status["step"] == 4
    assert run.status["state"] == "finished"
    assert "early stopping" in run.status["reason"]
    assert run.stop is not None
    assert run.stop.kind == "early"
    assert (run.model / "config.json").exists()


def test_a_metric_without_a_better_direction_needs_one(tmp_path) -> None:
    given = {"max_steps": 2, "eval_steps": 1, "sample_steps": 1, "metric_for_best_model": "samples/length"}
    with pytest.raises(TrainingError, match=r"samples/length is better in neither direction: set greater_is_better"):
        launch(runs.settings(tmp_path, **given), display=QUIET)
    short = launch(runs.settings(tmp_path, greater_is_better=False, **given), display=QUIET, fresh=True).run
    assert short.status["state"] == "finished"


def test_an_unknown_metric_names_those_there_are(tmp_path) -> None:
    with pytest.raises(TrainingError, match=r"eval_rewards/margins"):
        launch(runs.settings(tmp_path, metric_for_best_model="eval_lost"), display=QUIET)


def test_a_half_written_log_line_is_cut_back(tmp_path, monkeypatch) -> None:
    s = runs.settings(tmp_path, max_steps=4, save_steps=2)
    whole = launch(runs.settings(tmp_path, max_steps=4, save_steps=2, out=str(tmp_path / "whole")), display=QUIET).run
    real = Run.log

    def log(self, row):
        if row["step"] == 3:
            with open(self.folder / "metrics.jsonl", "a") as f:
                f.write('{"step": 3, "lo')
            raise Killed
        real(self, row)

    monkeypatch.setattr(Run, "log", log)
    with pytest.raises(Killed):
        launch(s, display=QUIET)
    monkeypatch.setattr(Run, "log", real)
    assert Run.open(s.out).metrics[-1]["step"] == 2
    runs.assert_same_run(whole, launch(s, display=QUIET).run)


def test_a_checkpoint_half_deleted_by_a_kill_is_none(tmp_path, monkeypatch) -> None:
    whole = launch(runs.settings(tmp_path, out=str(tmp_path / "whole"), save_steps=1), display=QUIET).run
    s = runs.settings(tmp_path, save_steps=1)
    real = files.shutil.rmtree

    def killed(path, **options):
        if Path(path).name.startswith(".step-"):
            (Path(path) / "trained.safetensors").unlink()
            raise Killed
        real(path, **options)

    monkeypatch.setattr(files.shutil, "rmtree", killed)
    with pytest.raises(Killed):
        launch(s, display=QUIET)
    monkeypatch.undo()
    runs.assert_same_run(whole, launch(s, display=QUIET).run)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file under a folder, but for locks."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


def test_a_killed_fresh_start_gives_the_old_run_back(tmp_path, monkeypatch) -> None:
    """Before its first checkpoint a new run is nothing that could be continued; with one, the old run is gone."""
    launch(runs.settings(tmp_path), display=QUIET)
    before = contents(tmp_path / "run")
    monkeypatch.setattr(Engine, "update", lambda *args: (_ for _ in ()).throw(Killed))
    monkeypatch.setattr(previous, "put_back", lambda folder: False)  # a kill runs nothing of ours
    with pytest.raises(Killed):
        launch(runs.settings(tmp_path, beta=0.5), fresh=True, display=QUIET)
    monkeypatch.undo()
    assert Run(tmp_path / "run").recipe["beta"] == 0.5
    assert launch(runs.settings(tmp_path), display=QUIET).already
    assert contents(tmp_path / "run") == before
    with pytest.raises(RunError, match="other settings"):
        launch(runs.settings(tmp_path, beta=0.5), display=QUIET)
    run = launch(runs.settings(tmp_path, beta=0.5), fresh=True, display=QUIET).run
    assert [r["step"] for r in run.metrics] == [0, 1, 2, 3, 4]
    assert run.recipe["beta"] == 0.5
    assert not (run.folder / ".previous").exists()


REFUSALS = {
    "no such model": {"model": "nowhere/./model"},
    "a folder that is no model": {"model": "."},
    "no such data": {"data": "nowhere.jsonl"},
    "no such judge": {"judge": "no_such_module:score"},
    "a judge that is no function": {"judge": "json:no_such_name"},
    "a tracker that is not there": {"report_to": ["mlflow"]},
    "no such split": {"data_split": "nowhere"},
    "no such target": {"lora": True, "lora_target_modules": ["nowhere"]},
    "other settings": {"beta": 0.7},
    "nothing fits": {"max_length": 2},
    "a metric that is not measured": {"metric_for_best_model": "eval_lost"},
}


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("wrong", REFUSALS)
def test_whatever_is_refused_leaves_every_folder_as_it_was(tmp_path, monkeypatch, finished, wrong, fresh) -> None:
    if wrong == "other settings" and fresh:
        pytest.skip("--fresh is what it is for")
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    before = contents(tmp_path)
    given = {"model": str(finished / "model"), "data": str(finished / "pairs.jsonl")} | REFUSALS[wrong]
    with pytest.raises((ValueError, FileNotFoundError)) as refused:
        launch(runs.settings(tmp_path, **given), fresh=fresh, display=QUIET)
    assert "\n" not in str(refused.value)
    assert contents(tmp_path) == before
    if wrong not in ("a metric that is not measured", "other settings"):
        with pytest.raises((ValueError, FileNotFoundError)):
            launch(runs.settings(tmp_path, **given, out=str(tmp_path / "new" / "run")), display=QUIET)
        assert contents(tmp_path) == before
        assert not (tmp_path / "new").exists()


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A folder with a model, data and a finished run."""
    folder = tmp_path_factory.mktemp("finished")
    launch(runs.settings(folder), display=QUIET)
    return folder


def test_a_judge_that_exits_ends_no_command_with_0(tmp_path, monkeypatch) -> None:
    (tmp_path / "quits.py").write_text("import sys\ndef score(prompts, completions): sys.exit(0)\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"quits:score failed at .*quits\.py:2: SystemExit"):
        launch(runs.settings(tmp_path, judge="quits:score"), display=QUIET)


@pytest.mark.parametrize("where", ["trained.safetensors", "optimizer.pt", "state.json", "manifest.json"])
@pytest.mark.parametrize("how", ["flipped", "short", "gone", "linked"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    tmp_path, monkeypatch, capsys, killed_at_5, where, how
) -> None:
    shutil.copytree(killed_at_5, tmp_path, dirs_exist_ok=True)
    bad = tmp_path / "run" / "checkpoints" / "step-00000004" / where
    held = bad.read_bytes()
    if how == "linked":
        bad.rename(tmp_path / "elsewhere")
        bad.symlink_to(tmp_path / "elsewhere")
    elif how == "gone":
        bad.unlink()
    else:
        bad.write_bytes(held[: len(held) // 2] if how == "short" else held[:-9] + bytes([held[-9] ^ 1]) + held[-8:])
    told: list[str] = []
    display = Display(quiet=True)
    monkeypatch.setattr(display, "say", told.append)
    resumed = launch(going_on(tmp_path, killed_at_5), display=display).run
    assert any(f"step-00000004/{where} is damaged" in line for line in told)
    assert any("continuing from step 2 of 6" in line for line in told)
    runs.assert_same_run(Run.open(tmp_path / "whole"), resumed)


@pytest.fixture(scope="module")
def killed_at_5(tmp_path_factory) -> Path:
    """An uninterrupted run, and the same one killed in its fifth step."""
    folder = tmp_path_factory.mktemp("killed")
    options = {"max_steps": 6, "save_steps": 2}
    launch(runs.settings(folder, out=str(folder / "whole"), **options), display=QUIET)
    real = Engine.update

    def update(self, *args):
        if self.scheduler.last_epoch == 4:
            raise Killed
        return real(self, *args)

    with pytest.MonkeyPatch.context() as m:
        m.setattr(Engine, "update", update)
        with pytest.raises(Killed):
            launch(runs.settings(folder, **options), display=QUIET)
    return folder


def test_where_every_checkpoint_is_damaged_nothing_is_touched(tmp_path, killed_at_5) -> None:
    shutil.copytree(killed_at_5, tmp_path, dirs_exist_ok=True)
    for path in (tmp_path / "run" / "checkpoints").glob("step-*/trained.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    before = contents(tmp_path / "run")
    with pytest.raises(ValueError, match=r"every checkpoint in .* is damaged"):
        launch(going_on(tmp_path, killed_at_5), display=QUIET)
    assert contents(tmp_path / "run") == before


MADE_ELSEWHERE = {
    "no header": ("trained.safetensors", b"x"),
    "a header larger than the file": ("trained.safetensors", (2**62).to_bytes(8, "little") + b"{}"),
    "no JSON": ("state.json", b'{"step": 4'),
}


@pytest.mark.parametrize("what", MADE_ELSEWHERE)
def test_a_checkpoint_that_was_sealed_around_nonsense_is_one_line(tmp_path, killed_at_5, what) -> None:
    shutil.copytree(killed_at_5, tmp_path, dirs_exist_ok=True)
    step, (name, held) = tmp_path / "run" / "checkpoints" / "step-00000004", MADE_ELSEWHERE[what]
    (step / name).write_bytes(held)
    (step / files.MANIFEST).unlink()
    files.seal(step)
    before = contents(tmp_path / "run")
    with pytest.raises(ValueError, match=r"^[^\n]*step-00000004[^\n]*(restore it from a copy|--fresh starts over\.)$"):
        launch(going_on(tmp_path, killed_at_5), display=QUIET)
    assert contents(tmp_path / "run") == before


def test_a_checkpoint_with_a_link_that_its_seal_does_not_name_is_damaged(tmp_path, killed_at_5) -> None:
    """Tensors are found by the names of files: a link would be read as one of them."""
    shutil.copytree(killed_at_5, tmp_path, dirs_exist_ok=True)
    step = tmp_path / "run" / "checkpoints" / "step-00000004"
    (step / "trained.safetensors").rename(tmp_path / "elsewhere")
    (step / files.MANIFEST).unlink()
    files.seal(step)
    (step / "more.safetensors").symlink_to(tmp_path / "elsewhere")
    assert checkpoint.damage(step) == "more.safetensors"
    runs.assert_same_run(Run.open(tmp_path / "whole"), launch(going_on(tmp_path, killed_at_5), display=QUIET).run)


def going_on(tmp_path: Path, folder: Path) -> DPO:
    """The settings of the run of ``killed_at_5``, whose copy lies in ``tmp_path``."""
    given = {"model": str(folder / "model"), "data": str(folder / "pairs.jsonl")}
    return runs.settings(tmp_path, max_steps=6, save_steps=2, **given)


LOST = {
    "zeros after a power cut": lambda log: log + b"\0" * 300,
    "a torn row": lambda log: log + b'{"step": 5, "lo',
    "rows of the future": lambda log: log + b'{"step": 5}\n{"step": 6}\n',
}


@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.jsonl", "pairs.jsonl"])
@pytest.mark.parametrize("how", LOST)
def test_what_a_power_cut_leaves_in_a_log_is_cut_by_rows(tmp_path, killed_at_5, name, how) -> None:
    shutil.copytree(killed_at_5, tmp_path, dirs_exist_ok=True)
    log = tmp_path / "run" / name
    log.write_bytes(LOST[how](log.read_bytes()))
    runs.assert_same_run(Run.open(tmp_path / "whole"), launch(going_on(tmp_path, killed_at_5), display=QUIET).run)


def test_rows_that_are_gone_are_said(tmp_path, monkeypatch, killed_at_5) -> None:
    shutil.copytree(killed_at_5, tmp_path, dirs_exist_ok=True)
    log = tmp_path / "run" / "metrics.jsonl"
    rows = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join([*rows[:1], b"\0" * 40 + b"\n", *rows[3:]]))
    told: list[str] = []
    display = Display(quiet=True)
    monkeypatch.setattr(display, "say", told.append)
    run = launch(going_on(tmp_path, killed_at_5), display=display).run
    assert any("missing or damaged: 2 rows of metrics.jsonl up to step 4" in line for line in told)
    assert [row["step"] for row in run.metrics] == [0, 3, 4, 5, 6]


def no_memory(kind: str):
    """Something that finds no memory, in the words of Python, of torch on a CPU, and of oneDNN."""
    said = {
        "python": MemoryError(),
        "torch": RuntimeError(
            "[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried"
        ),
        "onednn": RuntimeError("could not create a primitive"),
    }

    def failing(*args, **kwargs):
        raise said[kind]

    return failing


@pytest.mark.parametrize("kind", ["python", "torch", "onednn"])
@pytest.mark.parametrize(
    ("where", "doing"),
    [
        ("prefiere.train.setup.load_policy", "loading"),
        ("prefiere.train.setup.make_optimizer", "loading"),
        ("prefiere.sample.local.LocalRollouts.sample", "training"),
        ("torch.optim.AdamW.step", "training"),
        ("prefiere.train.checkpoint.save_model", "writing the model"),
    ],
)
def test_memory_that_runs_out_anywhere_is_one_line(tmp_path, monkeypatch, killed_at_5, where, doing, kind) -> None:
    """And the same command goes on to the uninterrupted run once there is enough."""
    shutil.copytree(killed_at_5, tmp_path, dirs_exist_ok=True)
    with monkeypatch.context() as m:
        m.setattr(where, no_memory(kind))
        with pytest.raises(OutOfMemory, match=rf"^out of memory while {doing}: set .*$"):
            launch(going_on(tmp_path, killed_at_5), display=QUIET)
    runs.assert_same_run(Run.open(tmp_path / "whole"), launch(going_on(tmp_path, killed_at_5), display=QUIET).run)


def test_a_report_that_cannot_be_written_changes_no_end(tmp_path, monkeypatch) -> None:
    """A disk that fills then: the run has finished, and what is missing is said."""
    told: list[str] = []
    display = Display(quiet=True)
    monkeypatch.setattr(display, "say", told.append)

    def full(run: Run) -> None:
        raise OSError(28, "No space left on device", str(run.folder / "report.html"))

    outcome = launch(runs.settings(tmp_path, max_steps=1), display=display, on_end=full)
    assert outcome.run.status["state"] == "finished"
    assert any("no report: " in line and "No space left on device" in line for line in told)


def test_what_another_trainer_left_is_no_run_of_ours(tmp_path) -> None:
    """The names are ours, the things are not: nothing of them is taken over."""
    work = tmp_path / "work"
    runs.model_folder(work / "model")
    (work / "checkpoints" / "step-500").mkdir(parents=True)
    (work / "metrics.jsonl").write_text('{"step": 500, "loss": 1.0}\n')
    before = contents(work)
    with pytest.raises(RunError, match="holds other things"):
        launch(runs.settings(tmp_path, out=str(work)), display=QUIET)
    with pytest.raises(RunError, match="lies in the folder"):
        launch(runs.settings(tmp_path, model=str(work / "model"), out=str(work)), display=QUIET)
    assert contents(work) == before


def test_a_run_cannot_write_over_what_it_reads(tmp_path, killed_at_5) -> None:
    shutil.copytree(killed_at_5 / "whole", tmp_path / "whole")
    before = contents(tmp_path / "whole")
    for given in ({"model": str(tmp_path / "whole")}, {"model": str(tmp_path / "whole" / "model")},
                  {"model": str(killed_at_5 / "model"), "judge": str(tmp_path / "whole")}):  # fmt: skip
        told = {"data": str(killed_at_5 / "pairs.jsonl"), **given}
        for fresh in (False, True):
            with pytest.raises(RunError, match="lies in the folder that the run writes to"):
                launch(runs.settings(tmp_path, out=str(tmp_path / "whole"), **told), fresh=fresh, display=QUIET)
    assert contents(tmp_path / "whole") == before


def test_a_finished_run_without_its_logs_is_still_a_run(tmp_path, killed_at_5) -> None:
    shutil.copytree(killed_at_5, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "whole").rename(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    (tmp_path / "run" / "metrics.jsonl").unlink()
    before = contents(tmp_path / "run")
    settings = going_on(tmp_path, killed_at_5)
    with pytest.raises(RunError, match="other settings"):
        launch(settings.model_copy(update={"beta": 0.9}), display=QUIET)
    assert launch(settings, display=QUIET).already
    assert contents(tmp_path / "run") == before


def test_ignored_signals_stay_ignored() -> None:
    """``nohup prefiere ... &`` goes on after the logout."""
    held = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        for around in (Ending(), Interrupt(lambda text: None)):
            with around:
                os.kill(os.getpid(), signal.SIGHUP)
                assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, held)


def test_checkpoints_beyond_the_step_go_first(tmp_path) -> None:
    for step in (4, 6, 10):
        (tmp_path / f"step-{step:08d}").mkdir()
    checkpoint.rotate(tmp_path, 6, 1, best=4)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000004", "step-00000006"]


def test_links_of_a_run_folder_are_not_followed(tmp_path, killed_at_5) -> None:
    """An archive may restore links: what they point to is neither written to, nor emptied, nor shown."""
    private = tmp_path / "private"
    private.mkdir()
    (private / "secret.json").write_text('{"secret": "of the user"}')
    for name in ("metrics.jsonl", "samples.jsonl", "data.json", "environment.json", "status.json", "recipe.yaml",
                 "checkpoints"):  # fmt: skip
        folder = tmp_path / name.replace(".", "-")
        shutil.copytree(killed_at_5, folder)
        path = folder / "run" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        path.symlink_to(private if name == "checkpoints" else private / "secret.json")
        with pytest.raises(ValueError, match=rf"{name} .*link"):
            launch(going_on(folder, killed_at_5), display=QUIET)
        assert contents(private) == {"secret.json": b'{"secret": "of the user"}'}


def test_a_budget_may_be_changed_on_the_way(tmp_path, monkeypatch) -> None:
    options = {"max_steps": 4, "save_steps": 2}
    real = Engine.update

    def update(self, *args):
        if self.scheduler.last_epoch == 2 and self.budget.tokens == 4096:
            raise Killed
        budgets.append(self.budget.tokens)
        return real(self, *args)

    budgets: list[int] = []
    monkeypatch.setattr(Engine, "update", update)
    with pytest.raises(Killed):
        launch(runs.settings(tmp_path, **options), display=QUIET)
    launch(runs.settings(tmp_path, tokens_per_microbatch=100, **options), display=QUIET)
    assert budgets == [4096, 4096, 100, 100]


def test_early_stopping_is_remembered_by_a_resumed_run(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(Offline, "validate", lambda self: {"eval_loss": float(steps(self))})
    s = runs.settings(tmp_path, max_steps=9, eval_steps=1, metric_for_best_model="eval_loss", early_stopping_patience=2)
    real = loop.Loop.finish
    monkeypatch.setattr(loop.Loop, "finish", lambda self, stop: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        launch(s, display=QUIET)
    monkeypatch.setattr(loop.Loop, "finish", real)
    assert launch(s, display=QUIET).run.status["step"] == 3


def test_the_resume_command_continues(monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/bin/prefiere", "dpo", "--out", "a b", "--fresh"])
    assert resume_command() == "prefiere dpo --out 'a b'"
    monkeypatch.setattr(sys, "argv", ["train.py"])
    assert "same function" in resume_command()


def test_a_mistake_before_the_first_step_may_be_corrected(tmp_path) -> None:
    with pytest.raises(ValueError, match="no_such_module"):
        launch(runs.settings(tmp_path, judge="no_such_module:f"), display=QUIET)
    assert not (tmp_path / "run").exists()
    with pytest.raises(TrainingError, match="is not measured"):
        launch(runs.settings(tmp_path, metric_for_best_model="eval_lost"), display=QUIET)
