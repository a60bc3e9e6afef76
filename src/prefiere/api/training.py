"""Train as settings say, to the end, and hand back the run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefiere.in_memory import InMemory
from prefiere.run import Run, Stop
from prefiere.settings import Settings

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    from rich.console import Console

    from prefiere.data.schema import Text
    from prefiere.evaluate.compare import Compared
    from prefiere.evaluate.functions import ScoreFunction


class TrainedRun(Run):
    """A run after training.

    stopped: why it ended before its last step, if it did. already: nothing was left to do. judge: as it was given.
    """

    stopped: Stop | None = None
    already: bool = False
    judge: str | ScoreFunction | None = None

    def compare(self, **options: Any) -> Compared:
        """The model before and after, answering the same prompts with the same seed (see `compare`)."""
        return compare(self, **{"judge": self.judge} | options)

    def report(self, out: str | Path | None = None) -> Path:
        """Write report.html again, or another file; return its path."""
        from prefiere.report.page import render

        return render([self], Path(out) if out is not None else self.folder / "report.html")


def train(
    settings: Settings, *, fresh: bool = False, console: Console | None = None, given: InMemory | None = None
) -> TrainedRun:
    """Run settings to their end, from the last checkpoint where there is one, and write the report however it ends.

    given: what the settings name that no recipe can hold.
    """
    from prefiere.console import Display
    from prefiere.launch import launch as start

    outcome = start(settings, fresh=fresh, display=Display(console), on_end=_write_report, given=given)
    trained = TrainedRun(outcome.run.folder)
    trained.stopped, trained.already = outcome.stopped, outcome.already
    trained.judge = (given.functions if given else {}).get(str(settings.judge), settings.judge)
    return trained


def _write_report(run: Run) -> None:
    TrainedRun(run.folder).report()


def compare(
    before: str | os.PathLike[str],
    after: str | os.PathLike[str] | None = None,
    *,
    prompts: str | Path | Sequence[Text] | None = None,
    judge: str | ScoreFunction | None = None,
    samples: int = 1,
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_new_tokens: int = 128,
    seed: int = 0,
    limit: int = 64,
    trust: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Compared:
    """Ask two models the same prompts with the same seed, or the model of a run before and after it.

    prompts: a file of prompts or a list, of which the first ``limit`` are asked; a run alone brings its validation
    prompts, and its judge. Raises ValueError where there are none, and for a value out of its range.
    """
    from prefiere.evaluate.compare import ask_both
    from prefiere.sample.sampling import Sampling

    sampling = Sampling(samples, temperature, top_p, max_new_tokens, seed)
    return ask_both(
        before, after, sampling=sampling, prompts=prompts, judge=judge, limit=limit, trust=trust, progress=progress
    )
