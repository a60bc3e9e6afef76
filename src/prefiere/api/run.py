"""A run, and what one does with it: what `prefiere.dpo` and its siblings return, and what `Run.open` opens."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from prefiere import run as folder
from prefiere.api import use

if TYPE_CHECKING:
    from prefiere.api.scoring import Scores
    from prefiere.api.use import Asked, Name
    from prefiere.doctor.diagnose import Diagnosis
    from prefiere.evaluate.compare import Compared
    from prefiere.evaluate.functions import ScoreFunction
    from prefiere.evaluate.talk import Talker


class Run(folder.Run):
    """A run folder, to read and to use.

    stopped: why it ended before its last step, where it did. already: nothing was left to do when it was called. judge:
    as it was given to the call, where it was.

    >>> from prefiere import Run
    >>> run = Run.open("runs/dpo")
    >>> run.status["state"]
    'finished'
    >>> run.to_frame()["step"].tolist()[-1]
    2
    >>> run.diagnose().headline.endswith(".")
    True
    """

    already: bool = False
    judge: str | ScoreFunction | None = None

    @property
    def stopped(self) -> folder.Stop | None:
        """Why the run ended before its last step; None where its settings asked for that end, and where it did not."""
        stop = self.stop
        return None if stop is None or stop.finished else stop

    def compare(self, **options: Any) -> Compared:
        """The model before and after, answering the same prompts with the same seed (options: see `use.compare`)."""
        return use.compare(self, **{"judge": self.judge} | options)

    def sample(self, prompts: Asked, **options: Any) -> list[dict[str, Any]]:
        """Answers of the trained model (options: see `use.sample`)."""
        return use.sample(self, prompts, **options)

    def chat(self, **options: Any) -> Talker:
        """The trained model to talk with: ``talk = run.chat(); talk("Hello")`` (options: see `use.chat`)."""
        return use.chat(self, **options)

    def score(self, data: Any, **reading: Any) -> Scores:
        """What a reward model says of a data set, and how right it is (reading: see `use.score`)."""
        return use.score(self, data, **reading)

    def export(self, out: Name, **options: Any) -> dict[str, Any]:
        """Write the model as a plain folder, its answers verified (options: see `use.export`)."""
        return use.export(self, out, **options)

    def report(self, out: Name | None = None) -> Path:
        """Write report.html again, or another file; return its path."""
        from prefiere.report.page import render

        return render([self], Path(out) if out is not None else self.folder / "report.html")

    def diagnose(self) -> Diagnosis:
        """What the run shows: a verdict and its findings."""
        return use.diagnose(self)

    def to_frame(self, what: Literal["metrics", "samples", "pairs"] = "metrics") -> Any:
        """The rows of a log as a pandas DataFrame: metrics by step, sampled answers, or single pairs."""
        import pandas as pd

        return pd.DataFrame({"metrics": lambda: self.metrics, "samples": lambda: self.samples,
                             "pairs": lambda: self.pairs}[what]())  # fmt: skip

    def _repr_html_(self) -> str:
        """The verdict and the curves, for a notebook: no script, nothing from elsewhere, all text escaped."""
        from prefiere.report.inline import inline_html

        return inline_html(self)
