"""Open or continue a run folder, train, and leave the folder in order however it ends."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from prefiere.asked.language import in_words
from prefiere.console import Display
from prefiere.data.sources import is_votes
from prefiere.files import clean, without_passwords
from prefiere.in_memory import InMemory
from prefiere.kernels.memory import within_memory
from prefiere.methods import METHODS
from prefiere.plan.device import Device
from prefiere.plan.plan import resolve
from prefiere.recipe import changed
from prefiere.run import INPUTS, Run, RunError, Stop, given_as
from prefiere.settings import Settings
from prefiere.train import previous, trackers
from prefiere.train.environment import environment, same_as_before, versions_moved
from prefiere.train.interrupt import Ending, resume_command
from prefiere.train.logs import holds_rows
from prefiere.train.loop import Loop
from prefiere.train.setup import Session, build_session, make_evaluator, make_ready
from prefiere.world import World


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a call to `launch` ended: the run, whether it had finished before, and why it stopped early, if it did."""

    run: Run
    already: bool = False
    stopped: Stop | None = None


_LOADING = "set lora=true or quantize=nf4, or take a smaller model; `prefiere estimate` says what fits"
_TRAINING = (
    "set a smaller tokens_per_microbatch, max_length or max_new_tokens, gradient_checkpointing=true, or lora=true. "
    "What was saved is whole"
)


def claim(out: str | Path) -> tuple[Run, FileLock]:
    """The run folder, locked. Raises RunError where something else lies there, or another process trains there."""
    folder = Path(out)
    if strangers := _strangers(folder):
        raise RunError(in_words("error.holds_others", folder=folder, what=strangers[0]))
    run = Run.create(folder)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RunError(in_words("error.in_use", folder=folder)) from None
    try:
        for messy in (folder, run.checkpoints):
            clean(messy)
        previous.put_back(folder)
    except BaseException:
        lock.release()
        raise
    return run, lock


def _strangers(folder: Path) -> list[str]:
    """What lies in a folder that is no run. A run that died before it began leaves two records and no checkpoint."""
    if not folder.is_dir() or (folder / "recipe.yaml").is_file():
        return []
    empty = {"checkpoints"} if not any((folder / "checkpoints").glob("*")) else set()
    known = {"data.json", "environment.json", "cache", INPUTS, *empty}
    return sorted(p.name for p in folder.iterdir() if p.name not in known and p.name[0] != ".")


def reads_itself(settings: Settings) -> None:
    """Raise RunError where a model or data that the run reads lies in the folder that it writes.

    What was given in Python lies there, and stays.
    """
    out = Path(settings.out).resolve()
    rewards = getattr(settings, "reward", None) or []
    named = {"model": settings.model, "data": settings.data, "eval_data": getattr(settings, "eval_data", None)}
    named["judge"] = settings.judge
    named |= {f"reward {i}": r for i, r in enumerate([rewards] if isinstance(rewards, str) else rewards)}
    for key, name in named.items():
        if not name or not Path(name).exists() or (given_as(name) and Path(name).resolve().parent == out / INPUTS):
            continue
        if Path(name).resolve().is_relative_to(out):
            raise RunError(in_words("met.in_the_run", key=key.split()[0], name=name))


def as_begun(run: Run, settings: Settings) -> Settings:
    """A resumed run learns from the snapshot that it began with, whatever was voted since.

    These settings, with that snapshot's name where they name its store alone.
    """
    if "#" in settings.data or not is_votes(settings.data) or not (run.folder / "recipe.yaml").is_file():
        return settings
    began, recorded = str(run.recipe.get("data")), without_passwords(settings.data)
    if not began.startswith(f"{recorded}#"):
        return settings
    return settings.model_copy(update={"data": settings.data + began.removeprefix(recorded)})


def with_snapshot(settings: Settings) -> Settings:
    """These settings, naming the snapshot that they learn from where they name a store of votes alone."""
    reads = METHODS[settings.method].reads(settings)
    if not is_votes(settings.data) or reads == "prompts" or settings.data_split not in (None, "train"):
        return settings
    from prefiere.feedback.records import pinned

    return settings.model_copy(update={"data": pinned(settings.data)})


def begun(run: Run, settings: Settings) -> dict[str, Any] | None:
    """The recorded environment of a run that can be continued, or None where there is none.

    Raises RunError where it is a run with other settings. Nothing is written.
    """
    if not (run.folder / "recipe.yaml").is_file():
        return None
    logged = holds_rows(run.folder / "metrics.jsonl") or any(run.checkpoints.glob("step-*"))
    if not logged and not run.model.is_dir() and run.status.get("state") != "finished":
        return None
    keys = changed(run.recipe, without_passwords(settings.model_dump()))
    if keys:
        raise RunError(in_words("error.other_settings", folder=run.folder, keys=", ".join(keys)))
    return run.environment


def launch(
    settings: Settings,
    *,
    fresh: bool = False,
    display: Display | None = None,
    on_end: Callable[[Run], None] = lambda run: None,
    given: InMemory | None = None,
) -> Outcome:
    """Run a recipe from its start, or from its last checkpoint, to its end.

    ``on_end`` is called with the run however it ends (the report is written there). ``given``: what the recipe cannot
    hold. Raises ValueError subclasses for whatever a user can put right: before the first update they leave the folder
    as it was, later its status says so. Under torchrun every process calls this; the first one owns the folder.
    """
    given = given or InMemory()
    given.complete(settings.model_dump())
    world = World.open(report_to=settings.report_to, out=settings.out)
    try:
        if world.main:
            return _lead(settings, fresh, world, display or Display(), given, on_end)
        with contextlib.ExitStack() as refused:
            prepared = _prepare(settings, Run(settings.out), fresh, world, Display(quiet=True), given, refused)
            refused.pop_all()  # nothing was refused
        return _train(prepared, lambda run: None)
    except BaseException as e:
        if (why := world.failed(e)) is e:
            raise
        raise why from e


def _lead(
    settings: Settings, fresh: bool, world: World, display: Display, given: InMemory, on_end: Callable[[Run], None]
) -> Outcome:
    """What the first process does: it owns the folder."""
    reads_itself(settings)
    locked = Path(settings.out, ".lock").exists()
    there = next(p for p in (Path(settings.out), *Path(settings.out).parents) if p.exists())
    run, lock = claim(settings.out)
    with Ending(), contextlib.ExitStack() as held:
        held.callback(lock.release)
        with contextlib.ExitStack() as refused:
            refused.callback(_leave_as_it_was, run.folder, there, locked)
            world.on_loss(lambda error: refused.close())
            with within_memory("loading", _LOADING):
                prepared = _prepare(settings, run, fresh, world, display, given, refused)
            refused.pop_all()  # nothing was refused
        return _train(prepared, on_end)


def _leave_as_it_was(folder: Path, there: Path, locked: bool) -> None:
    """Remove the lock, and the folder, that were made for a run which was refused, with the parents that it needed."""
    with contextlib.suppress(OSError):  # somebody has put something there meanwhile
        if not locked:
            (folder / ".lock").unlink(missing_ok=True)
        for made in (folder, *folder.parents):
            if made == there:
                break
            made.rmdir()


@dataclass(frozen=True, slots=True)
class Prepared:
    """A run that has refused nothing and written nothing. before: its environment as recorded, None for a new run.
    loop: None for a run that had finished."""

    run: Run
    world: World
    display: Display
    before: dict[str, Any] | None
    loop: Loop | None


def _prepare(
    settings: Settings,
    run: Run,
    fresh: bool,
    world: World,
    display: Display,
    given: InMemory,
    refused: contextlib.ExitStack,
) -> Prepared:
    """Decide the run, read its data, load its models and its checkpoint.

    Nothing is written but what was given in Python, and that is taken back when ``refused`` is closed.
    """
    before, finished = None, False
    if world.main:
        settings = settings if fresh else as_begun(run, settings)
        before = None if fresh else begun(run, settings)
        finished = before is not None and run.status.get("state") == "finished"
        for line in given.same((before or {}).get("functions", {})):
            display.say(line)
        if not finished:
            for line in given.said:
                display.say(line)
            run.inside(INPUTS)
            with run.writing():
                given.keep(refused)
        settings = settings if finished else with_snapshot(settings)
    settings, before, finished = world.broadcast((settings, before, finished))
    if finished:
        return Prepared(run, world, display, before, None)
    recorded = run.choices if before is not None else {}
    own = Device.of(world.device, processes=world.size, nodes=world.nodes)
    plan = resolve(settings, Device.least(world.gather([own])), recorded)
    session = build_session(plan, run, display, world=world, given=given)
    if before:
        same_as_before(session, before)
    for c in session.choices:
        display.say(f"  {c.name} = {c.value}: {c.why}")
    algorithm = import_module(plan.method.home).build(session)
    evaluator = make_evaluator(session) if settings.sample_steps != 0 else None
    loop = Loop(session, algorithm, evaluator)
    if before is not None:
        loop.resume()
    refused.callback(session.rollouts.close)
    if loop.state.goes_on(session.total_steps):
        make_ready(session, loop.state.step)
    return Prepared(run, world, display, before, loop)


def _train(prepared: Prepared, on_end: Callable[[Run], None]) -> Outcome:
    """Write the run's records, train, and leave the folder in order."""
    run, world, loop = prepared.run, prepared.world, prepared.loop
    if loop is None:
        world.leave()
        prepared.display.say(in_words("console.finished", run=run.folder, n=run.status.get("step")))
        if world.main:
            _report(prepared, on_end)
        return Outcome(run, already=True)
    world.on_loss(lambda error: _end(prepared, error, on_end))
    try:
        if world.main:
            _record(loop.session, run, prepared.before)
            loop.begin()
        world.barrier()
        trackers.start(world, run, loop.settings, step=loop.state.step, resumed=prepared.before is not None)
        with contextlib.closing(loop.session.rollouts):
            with within_memory("training", _TRAINING):
                stop = loop.run()
            with within_memory("writing the model", _LOADING):
                loop.finish(stop)
        world.barrier()
        world.leave()
    except BaseException as e:
        _end(prepared, why := world.failed(e), on_end)
        if why is e:
            raise
        raise why from e
    if world.main:
        _report(prepared, on_end)
    _say_how_it_ended(loop, stop)
    return Outcome(run, stopped=None if stop is None or stop.finished else stop)


def _record(session: Session, run: Run, before: dict[str, Any] | None) -> None:
    """What the folder says of the run: for a new one in the place of what lay there, which is kept for now."""
    now = environment(session)
    if before is None:
        previous.put_aside(run.folder)
    elif (moved := versions_moved(before, now)) and moved not in before.get("resumed", []):
        words = ", ".join(f"{name} {old} -> {new}" for name, (old, new) in moved.items())
        session.display.say(in_words("progress.other_versions", words=words))
        before = {**before, "resumed": [*before.get("resumed", []), moved]}
    run.data = session.data.account
    run.environment = before or now
    run.recipe = session.settings.model_dump()


def _end(prepared: Prepared, error: BaseException, on_end: Callable[[Run], None]) -> None:
    """Leave a folder in order whose run fails."""
    if prepared.world.main and _record_failure(prepared.run, error):
        _report(prepared, on_end)


def _record_failure(run: Run, error: BaseException) -> bool:
    """Say in status.json what went wrong. Returns False where nothing can be continued and the run that this one
    replaced came back instead."""
    stopped = isinstance(error, KeyboardInterrupt)
    with contextlib.suppress(OSError, RunError):  # the disk may be full: what went wrong is raised all the same
        if previous.put_back(run.folder):
            return False
        if run.status.get("state") == "finished":  # what failed came after: a tracker, another process
            return True
        stop = Stop("interrupted", "interrupted") if stopped else None
        ended = {"reason": stop.text if stop else str(error), "stop": asdict(stop) if stop else None}
        run.status = {**run.status, "state": "stopped" if stopped else "failed", **ended}
    return True


def _report(prepared: Prepared, on_end: Callable[[Run], None]) -> None:
    """What is done at every end. What goes wrong there is said; it does not change how the run ended."""
    try:
        on_end(prepared.run)
    except Exception as e:
        prepared.display.say(in_words("progress.no_report", why=f"{type(e).__name__}: {e}"))


def _say_how_it_ended(loop: Loop, stop: Stop | None) -> None:
    say = loop.session.display.say
    if stop is not None and stop.kind == "rollouts":
        say(stop.text)
    if stop is not None and stop.kind in ("interrupted", "rollouts"):
        say(in_words("console.to_continue", step=loop.state.step, total=loop.session.total_steps))
        say(f"  {resume_command()}")
    elif stop is not None:
        say(stop.text)
