"""Train as settings say, to the end, and hand back the run."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

from prefiere import run as folder
from prefiere.api.run import Run
from prefiere.in_memory import InMemory
from prefiere.settings import Settings

if TYPE_CHECKING:
    from rich.console import Console


def train(
    settings: Settings, *, fresh: bool = False, console: Console | None = None, given: InMemory | None = None
) -> Run:
    """Run settings to their end, from the last checkpoint where there is one, and write the report however it ends.

    given: what the settings name that no recipe can hold.
    """
    from prefiere.console import Display
    from prefiere.launch import launch as start

    outcome = start(settings, fresh=fresh, display=Display(console), on_end=_write_report, given=given)
    _let_go()
    run = Run(outcome.run.folder)
    run.already = outcome.already
    run.judge = (given.functions if given else {}).get(str(settings.judge), settings.judge)
    return run


def _let_go() -> None:
    """Give back the memory of the models that were trained: a notebook goes on with others."""
    import torch

    gc.collect()
    torch.cuda.empty_cache()


def _write_report(run: folder.Run) -> None:
    Run(run.folder).report()
