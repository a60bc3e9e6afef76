"""Open or continue a run folder, train, and leave the folder in order however it ends."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from prefiere.console import Display
from prefiere.data.sources import is_votes
from prefiere.methods import METHODS
from prefiere.plan.device import Device
from prefiere.plan.plan import resolve
from prefiere.recipe import changed
from prefiere.run import Run, RunError, Stop
from prefiere.settings import Settings
from prefiere.train.engine import TrainingError
from prefiere.train.environment import environment
from prefiere.train.interrupt import resume_command
from prefiere.train.loop import Loop
from prefiere.train.setup import Session, build_session, make_evaluator
from prefiere.world import World


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a call to `launch` ended: the run, whether it had finished before, and why it stopped early, if it did."""

    run: Run
    already: bool = False
    stopped: Stop | None = None


LOGS = (
    "metrics.jsonl",
    "samples.jsonl",
    "status.json",
    "report.html",
    "data.json",
    "environment.json",
    "calibration.json",
    "blind.json",
    "recipe.yaml",
)
FOLDERS = ("checkpoints", "model")


def claim(out: str | Path) -> tuple[Run, FileLock]:
    """The run folder, locked. Raises RunError where something else lies there, or another process trains there."""
    folder = Path(out)
    if folder.is_dir() and not (folder / "recipe.yaml").is_file():
        known = (*LOGS, *FOLDERS, "cache")
        strangers = sorted(p.name for p in folder.iterdir() if p.name not in known and p.name[0] != ".")
        if strangers:
            raise RunError(f"{folder} holds other things ({strangers[0]}, ...). Choose an empty or new --out.")
    run = Run.create(folder)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RunError(f"{folder} is being trained by another process. Wait, or choose another --out.") from None
    return run, lock


def as_begun(run: Run, settings: Settings) -> Settings:
    """A resumed run learns from the snapshot that it began with, whatever was voted since.

    These settings, with that snapshot's name where they name its store alone.
    """
    if "#" in settings.data or not is_votes(settings.data) or not (run.folder / "recipe.yaml").is_file():
        return settings
    began = str(run.recipe.get("data"))
    return settings.model_copy(update={"data": began}) if began.startswith(f"{settings.data}#") else settings


def with_snapshot(settings: Settings) -> Settings:
    """These settings, naming the snapshot that they learn from where they name a store of votes alone."""
    reads = METHODS[settings.method].reads(settings)
    if not is_votes(settings.data) or reads == "prompts" or settings.data_split not in (None, "train"):
        return settings
    from prefiere.feedback.records import pinned

    return settings.model_copy(update={"data": pinned(settings.data)})


def open_run(run: Run, settings: Settings, *, fresh: bool) -> dict[str, Any]:
    """A resumed run's recorded environment; {} for a new one, whose folder is then empty.

    Raises RunError where it is a run with other settings.
    """
    begun = (run.folder / "recipe.yaml").is_file() and bool(run.metrics or any(run.checkpoints.glob("step-*")))
    if fresh or not begun:
        for name in FOLDERS:  # what could be continued goes first, so that a kill on the way leaves nothing to continue
            shutil.rmtree(run.folder / name, ignore_errors=True)
        for name in LOGS:
            (run.folder / name).unlink(missing_ok=True)
        run.checkpoints.mkdir()
        return {}
    keys = changed(run.recipe, settings.model_dump())
    if keys:
        raise RunError(
            f"{run.folder} was started with other settings ({', '.join(keys)}). "
            "Give it the same ones to continue, --fresh to start over, or another --out."
        )
    return run.environment


def launch(
    settings: Settings,
    *,
    fresh: bool = False,
    display: Display | None = None,
    on_end: Callable[[Run], None] = lambda run: None,
) -> Outcome:
    """Run a recipe from its start, or from its last checkpoint, to its end.

    ``on_end`` is called with the run however it ends (the report is written there). Raises ValueError subclasses for
    whatever a user can put right, after the run folder's status says so. Under torchrun every process calls this; the
    first one owns the folder.
    """
    world = World.open(report_to=settings.report_to, out=settings.out)
    display = display or Display()
    if not world.main:
        return _other_process(settings, world)
    run, lock = claim(settings.out)
    with contextlib.ExitStack() as held:
        held.callback(lock.release)
        try:
            asked = settings if fresh else as_begun(run, settings)
            before = open_run(run, asked, fresh=fresh)
            settings = world.broadcast(with_snapshot(asked))  # the others read the folder from here on
            return _train(settings, run, before, world, display)
        except BaseException as e:
            _record_failure(run, e)
            if isinstance(e, OSError) and e.errno is not None:
                what = f"cannot write to {run.folder}: {e.strerror}. What was saved before is whole."
                raise TrainingError(what) from e
            raise
        finally:
            _leave(run, on_end)


def _other_process(settings: Settings, world: World) -> Outcome:
    settings = world.broadcast(settings)
    run = Run(settings.out)
    return _train(settings, run, run.environment, world, Display(quiet=True))


def _record_failure(run: Run, error: BaseException) -> None:
    stopped = isinstance(error, KeyboardInterrupt)
    with contextlib.suppress(OSError):  # the disk may be full: what went wrong is raised all the same
        if (run.folder / "recipe.yaml").is_file():
            stop = Stop("interrupted", "interrupted") if stopped else None
            ended = {"reason": stop.text if stop else str(error), "stop": asdict(stop) if stop else None}
            run.status = {**run.status, "state": "stopped" if stopped else "failed", **ended}


def _leave(run: Run, on_end: Callable[[Run], None]) -> None:
    with contextlib.suppress(OSError):
        if (run.folder / "recipe.yaml").is_file():
            on_end(run)
        else:  # it never began: leave nothing behind
            (run.folder / ".lock").unlink(missing_ok=True)
            run.checkpoints.rmdir()
            run.folder.rmdir()


def _train(settings: Settings, run: Run, before: dict[str, Any], world: World, display: Display) -> Outcome:
    if run.status.get("state") == "finished":
        display.say(f"{run.folder} has finished already ({run.status['step']} steps); --fresh starts over")
        return Outcome(run, already=True)
    recorded = {c["name"]: c["value"] for c in before.get("choices", [])}
    plan = resolve(settings, Device.of(world.device), recorded)
    session = build_session(plan, run, display, world=world)
    _same_as_before(session, before)
    for c in session.choices:
        display.say(f"  {c.name} = {c.value}: {c.why}")
    world.barrier()
    if world.main:
        run.data = session.data.account
        run.environment = before or environment(session)
        run.recipe = settings.model_dump()
        run.status = {
            "state": "running",
            "step": 0,
            "total_steps": session.total_steps,
            "reason": None,
            "stop": None,
            "seconds": 0.0,
        }
    world.start_trackers(settings.model_dump())
    algorithm = import_module(plan.method.home).build(session)
    evaluator = make_evaluator(session) if settings.sample_steps != 0 else None
    loop = Loop(session, algorithm, evaluator)
    with contextlib.closing(session.rollouts):
        stop = loop.run()
        loop.finish(stop)
    world.barrier()
    if stop is not None and stop.kind == "interrupted":
        display.say(f"stopped at step {loop.state.step} of {session.total_steps}. To continue:\n  {resume_command()}")
    elif stop is not None:
        display.say(stop.text)
    return Outcome(run, stopped=None if stop is None or stop.finished else stop)


def _same_as_before(session: Session, before: dict[str, Any]) -> None:
    """A resumed run must see the data and the model that it began with."""
    if not before:
        return
    if before.get("reference") != session.fingerprint:
        raise RunError(f"{session.settings.model} has changed since this run began. Restore it, or use --fresh.")
    for name, mark in before.get("rewards", {}).items():
        if session.reward_fingerprints.get(name) != mark:
            raise RunError(f"the reward model {name} has changed since this run began. Restore it, or use --fresh.")
    old = session.run.data.get("fingerprint")
    if old != session.data.account["fingerprint"]:
        raise RunError(f"{session.settings.data} has changed since this run began. Restore it, or use --fresh.")
    if before.get("world_size") != session.world.size:
        session.display.say("the number of processes has changed: results agree to rounding, not bit for bit")
