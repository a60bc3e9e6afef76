"""How a command speaks: what people read, what programs read, and how an error looks.

A body returns its result (figures, paths) as a dict. With --json that dict is the only thing on stdout; everything that
people read then goes to stderr.
"""

from __future__ import annotations

import functools
import inspect
import json as json_module
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any

import rich.box
import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.segment import Segment
from rich.table import Column, Table
from rich.text import Text

from prefiere.asked.language import in_words, speaking
from prefiere.files import visible
from prefiere.processes.errors import SaidOnce
from prefiere.run import Stop

Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object; all else goes to stderr.")]
SpokenOption = Annotated[str | None, typer.Option("--lang", help="en or es; default: as LC_ALL or LANG say.")]
Body = Callable[..., dict[str, Any] | None]

INTERRUPTED = 130  # what a shell reports for Ctrl-C
GUARDED = 3  # a guard stopped the run
RUINED = 4  # a run on this data would be ruined
_LOOK = 0.25  # seconds between two states of a line in a notebook
_EVERY = 20.0  # seconds between two lines of a log about one long phase


class Terminal(Console):
    """A console on which text can do nothing but be read.

    Names, paths, columns, answers and errors come from elsewhere. A character of theirs that would move the cursor, set
    a title or reorder others is spelt out; what rich itself sends to the terminal passes.
    """

    def on_broken_pipe(self) -> None:
        """Nobody reads any more: a command that writes results ends, what is said besides goes unsaid."""
        if not self.stderr:
            super().on_broken_pipe()
        self.quiet = True

    def __exit__(self, *error: Any) -> None:
        try:
            super().__exit__(*error)
        except OSError:  # the terminal is gone, and with it whoever would read this
            if not self.stderr:
                raise
            self.quiet = True

    def print(self, *objects: Any, **options: Any) -> None:
        """As rich prints. Text is made visible first: rich drops some characters without a word."""
        super().print(*(visible(o) if isinstance(o, str) else o for o in objects), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments of anything that is shown, with their text made visible."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)


def main_process() -> bool:
    """Whether this is the process that speaks, of those that torchrun started: as `World.main`, but without torch."""
    return os.environ.get("RANK", "0") == "0"


def console() -> Console:
    """Where people read: stdout, or stderr under --json; silent in every process but the first."""
    return Terminal(quiet=not main_process(), highlight=False)


def say(text: str, to: Console | None = None) -> None:
    """One line for people, as it is and unbroken: paths and commands can be copied. ``to``: stdout, if not said."""
    (to or console()).print(text, markup=False, soft_wrap=True)


def progress() -> Console:
    """Where bars and notices of a long command go: stderr, so that stdout holds results only."""
    return Terminal(stderr=True, quiet=not main_process(), highlight=False)


def hush() -> None:
    """No bars from libraries for what takes a moment (downloads keep theirs), nor their warnings to one another."""
    from huggingface_hub.utils import enable_progress_bars
    from transformers.utils import logging

    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)  # PEFT's use of it
    logging.disable_progress_bar()
    enable_progress_bars()


def _ours(tb: TracebackType | None) -> bool:
    """Whether an exception was raised by this package, and so says what a user can do about it."""
    name = ""
    while tb is not None:
        name, tb = tb.tb_frame.f_globals.get("__name__", ""), tb.tb_next
    return name.split(".")[0] == "prefiere"


def command(body: Body) -> Callable[..., None]:
    """Make a typer command of a body: --lang, --json, one line for a user's error, exit codes.

    Exit codes: 0 done, 1 a bug (with its traceback), 2 an error of the user's, 3 stopped by the guard, 4 data that
    would ruin a run, 130 interrupted.
    """

    @functools.wraps(body)
    def run(*args: Any, **kwargs: Any) -> None:
        as_json, lang = kwargs.get("json", False), kwargs.pop("lang", None)
        try:
            with speaking(lang), redirect_stdout(sys.stderr if as_json else sys.stdout):
                result = body(*args, **kwargs)
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
        except (ValueError, OSError) as e:
            if not _ours(e.__traceback__) and not (isinstance(e, OSError) and e.errno is not None):
                print(visible(traceback.format_exc()), file=sys.stderr)
                raise typer.Exit(1) from None
            rank = "" if main_process() else f" (process {os.environ['RANK']})"  # perhaps it alone has one
            if not rank or not isinstance(e, SaidOnce):
                print(visible(f"error{rank}: {_line(e)}"), file=sys.stderr)
            raise typer.Exit(2) from None
        if as_json and main_process():
            print(json_module.dumps(_plain(result or {}), ensure_ascii=False, allow_nan=False))
        if (result or {}).get("ruined"):
            raise typer.Exit(RUINED)
        stop = Stop.read((result or {}).get("stop"))
        if stop is not None and not stop.finished:
            raise typer.Exit(INTERRUPTED if stop.kind == "interrupted" else GUARDED)

    takes = inspect.signature(body, eval_str=True)
    spoken = inspect.Parameter("lang", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=SpokenOption)
    run.__signature__ = takes.replace(parameters=[*takes.parameters.values(), spoken])  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in takes.parameters.values()} | {"lang": SpokenOption}
    return run


def _line(error: BaseException) -> str:
    """What a user is told of an error: a file that cannot be read or written is named."""
    if isinstance(error, OSError) and error.errno is not None:
        named = f"{error.filename}: " if error.filename is not None else ""
        return f"{named}{error.strerror or error}"
    return str(error)


def _plain(value: Any) -> Any:
    """JSON values only: paths become text, nan and infinity null."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not (abs(value) < float("inf")):
        return None
    return value.item() if hasattr(value, "item") else value


def table(title: str, columns: Iterable[str], rows: Iterable[Iterable[object]], *, lines: bool = False) -> Table:
    """A plain table of text; ``lines`` keeps rows of several lines apart."""
    made = Table(title=title or None, title_justify="left", title_style="bold", pad_edge=False, show_lines=lines)
    made.box = rich.box.HORIZONTALS if lines else None
    for column in columns:
        made.add_column(Text(visible(column)), overflow="fold")
    for row in rows:
        made.add_row(*(Text(visible(str(cell))) for cell in row))
    return made


def rough_time(seconds: float) -> str:
    """``8 s``, ``12 min``, ``3.4 h``: about how long."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


class Display:
    """Messages and progress: bars on a terminal or in a notebook, lines in a log. A quiet one shows nothing (other
    processes, tests). clock: seconds that pass."""

    def __init__(
        self, console: Console | None = None, *, quiet: bool = False, clock: Callable[[], float] = time.monotonic
    ):
        self.console = console or Terminal(stderr=True, quiet=quiet)
        self.clock = clock
        self._spoke = clock()
        self._bars: Progress | None = None  # of the outermost stage, on a terminal
        self._within = 0  # stages that are going on

    @property
    def live(self) -> bool:
        """Whether it is a terminal, on which a bar moves; else it is a log."""
        return self.console.is_terminal

    def note(self, text: str | None) -> None:
        """Say something to know besides, where there is something."""
        if text is not None:
            self.say(f"  {text}")

    def say(self, text: str) -> None:
        """One line. Text is shown as it is, never read as markup."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)
        self._spoke = self.clock()

    @contextmanager
    def phase(self, name: str, *, opening: bool = True) -> Iterator[Callable[[str], None]]:
        """Something of unknown length; call the yielded function with what it is at. A log gets a line at its start
        (``opening``), and one every so often."""
        if self.live:
            with self.console.status(Text(name)) as status:
                yield lambda text: status.update(Text(text))
            return
        if opening:
            self.say(f"{name} ...")
        yield lambda text: self.say(text) if self.clock() - self._spoke >= _EVERY else None

    @contextmanager
    def stage(self, name: str, total: int, start: int = 0, *, opening: bool = True) -> Iterator[Callable[..., None]]:
        """A bar over ``total`` steps; call the yielded function with how many were done, and a note.

        A log gets a line at its start (``opening``), and whenever nothing has been said for a while one with the time
        that is left. A stage within another has no opening line; on a terminal its bar goes when it ends.
        """
        self._within += 1
        try:
            if self.live:
                with self._bar(name, total, start) as advance:
                    yield advance
            elif self.console.is_jupyter and not self.console.quiet:
                yield self._in_a_cell(name, total, start) if self._within == 1 else _silent
            else:
                if opening and self._within == 1:
                    self.say(
                        in_words("progress.to_do", name=name, n=f"{total:,}") if total - start > 1 else f"{name} ..."
                    )
                yield self._in_a_log(name, total, start)
        finally:
            self._within -= 1

    def _in_a_log(self, name: str, total: int, start: int) -> Callable[..., None]:
        began, done = self.clock(), start
        if self._within > 1:
            self._spoke = began

        def advance(n: int = 1, note: str | None = None) -> None:
            nonlocal done
            done, now = done + n, self.clock()
            if now - self._spoke >= _EVERY and start < done < total:
                left, of = (now - began) / (done - start) * (total - done), {"done": f"{done:,}", "total": f"{total:,}"}
                told = in_words("progress.of", name=name, time=rough_time(left), **of)
                self.say(f"{told}{f', {note}' if note else ''}")

        return advance

    def _in_a_cell(self, name: str, total: int, start: int) -> Callable[..., None]:
        """One line of a notebook that changes in its place, which needs IPython and no widgets."""
        from IPython.display import display

        began = spoke = self.clock()
        done, said = start, ""

        def line() -> dict[str, str]:
            full = round(24 * done / total) if total else 24
            left = (self.clock() - began) / (done - start) * (total - done) if done > start else None
            time = f"  {in_words('progress.left', time=rough_time(left))}" if left and done < total else ""
            text = f"{name}  {'█' * full}{'░' * (24 - full)} {done:,}/{total:,}{time}  {said}".rstrip()
            return {"text/plain": visible(text)}

        shown = display(line(), raw=True, display_id=True)

        def advance(n: int = 1, note: str | None = None) -> None:
            nonlocal done, said, spoke
            done, said = done + n, said if note is None else note
            if done >= total or self.clock() - spoke >= _LOOK:
                spoke = self.clock()
                shown.update(line(), raw=True)

        return advance

    @contextmanager
    def _bar(self, name: str, total: int, start: int) -> Iterator[Callable[..., None]]:
        outer = self._bars
        if outer is None:
            with Progress(*_columns(), console=self.console, expand=True) as self._bars:
                try:
                    yield _moving(self._bars, self._bars.add_task(name, total=total, completed=start, note=""))
                finally:
                    self._bars = None
            return
        task = outer.add_task(name, total=total, completed=start, note="")
        try:
            yield _moving(outer, task)
        finally:
            outer.remove_task(task)


def _columns() -> tuple[ProgressColumn, ...]:
    """What a bar's line shows; where it is narrow, the bar and the note give way, never the counts and the times."""
    return (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None, table_column=Column(ratio=1)),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn(in_words("progress.remaining")),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False, table_column=Column(ratio=4, no_wrap=True)),
    )


def _moving(bars: Progress, task: TaskID) -> Callable[..., None]:
    def advance(n: int = 1, note: str | None = None) -> None:
        bars.advance(task, n)
        if note is not None:
            bars.update(task, note=note)

    return advance


def _silent(n: int = 1, note: str | None = None) -> None:
    """What happens within a stage of a notebook is not shown: its line is one."""
