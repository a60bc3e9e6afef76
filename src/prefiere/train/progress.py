"""What a person sees while it trains: one line for each stage, with a bar and an estimate. On stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Display:
    """Messages and progress bars; a quiet one shows nothing (other processes, tests)."""

    def __init__(self, console: Console | None = None, *, quiet: bool = False):
        self.console = console or Console(stderr=True, quiet=quiet)

    def note(self, text: str | None) -> None:
        """Say something to know besides, where there is something."""
        if text is not None:
            self.say(f"  {text}")

    def say(self, text: str) -> None:
        """One line. Text is shown as it is, never read as markup."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def stage(self, name: str, total: int, start: int = 0) -> Iterator[Callable[..., None]]:
        """A bar over ``total`` steps; call the yielded function with how many were done, and a note."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        )
        with Progress(*columns, console=self.console) as progress:
            task = progress.add_task(name, total=total, completed=start, note="")

            def advance(n: int = 1, note: str | None = None) -> None:
                progress.advance(task, n)
                if note is not None:
                    progress.update(task, note=note)

            yield advance
