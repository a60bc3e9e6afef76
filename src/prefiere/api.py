"""The commands as Python functions: ``run = dpo(model=..., data=..., out=...); run.compare()``.

They take the same settings under the same names, and return the run folder with what one does next.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefiere import recipe as recipes
from prefiere.run import Run, Stop
from prefiere.settings import Settings

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    from rich.console import Console

    from prefiere.data.schema import Text
    from prefiere.evaluate.compare import Compared


class TrainedRun(Run):
    """A run after training.

    stopped: why it ended before its last step, if it did. already: nothing was left to do. judge: as it was given.
    """

    stopped: Stop | None = None
    already: bool = False
    judge: str | None = None

    def compare(self, **options: Any) -> Compared:
        """The model before and after, answering the same prompts with the same seed (see `compare`)."""
        return compare(self, **{"judge": self.judge} | options)

    def report(self, out: str | Path | None = None) -> Path:
        """Write report.html again, or another file; return its path."""
        from prefiere.report.page import render

        return render([self], Path(out) if out is not None else self.folder / "report.html")


def train(settings: Settings, *, fresh: bool = False, console: Console | None = None) -> TrainedRun:
    """Run settings to their end, from the last checkpoint where there is one, and write the report however it ends."""
    from prefiere.console import Display
    from prefiere.launch import launch as start

    outcome = start(settings, fresh=fresh, display=Display(console), on_end=_write_report)
    trained = TrainedRun(outcome.run.folder)
    trained.stopped, trained.already, trained.judge = outcome.stopped, outcome.already, settings.judge
    return trained


def _write_report(run: Run) -> None:
    TrainedRun(run.folder).report()


def compare(
    before: str | os.PathLike[str],
    after: str | os.PathLike[str] | None = None,
    *,
    prompts: str | Path | Sequence[Text] | None = None,
    judge: str | None = None,
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


def dpo(recipe: str | Path | None = None, *, fresh: bool = False, **settings: Any) -> TrainedRun:
    """Optimise preferences directly, as ``prefiere dpo`` does.

    recipe: a YAML file; ``settings`` (``model``, ``data``, ``out`` and every key of docs/settings.md) override it. A
    run that was stopped is continued, unless ``fresh``. Raises ValueError, or FileNotFoundError, in one line that
    says what to do.

    >>> from prefiere import dpo
    >>> run = dpo(model=model, data=pairs, out="runs/dpo", max_steps=2, guard=False)
    >>> run.status["state"], run.metrics[-1]["step"]
    ('finished', 2)
    >>> found = run.compare(limit=2)
    >>> len(found.pairings) > 0
    True
    >>> dpo(model=model, data=pairs, out="runs/dpo", max_steps=2, guard=False).already
    True
    """
    return train(recipes.load("dpo", recipe, settings), fresh=fresh)


def sft(recipe: str | Path | None = None, *, fresh: bool = False, **settings: Any) -> TrainedRun:
    """Imitate answers, as ``prefiere sft`` does. Arguments, result and errors as for `dpo`."""
    return train(recipes.load("sft", recipe, settings), fresh=fresh)


def ppo(recipe: str | Path | None = None, *, fresh: bool = False, **settings: Any) -> TrainedRun:
    """Proximal policy optimisation against a reward, as ``prefiere ppo`` does.

    ``data`` are prompts, ``reward`` a reward model or ``module:function``. Arguments, result and errors as for `dpo`.
    """
    return train(recipes.load("ppo", recipe, settings), fresh=fresh)


def rloo(recipe: str | Path | None = None, *, fresh: bool = False, **settings: Any) -> TrainedRun:
    """REINFORCE, each answer against its prompt's others, as ``prefiere rloo`` does. Arguments as for `ppo`."""
    return train(recipes.load("rloo", recipe, settings), fresh=fresh)


def grpo(recipe: str | Path | None = None, *, fresh: bool = False, **settings: Any) -> TrainedRun:
    """Group-relative policy optimisation, as ``prefiere grpo`` does. Arguments as for `ppo`."""
    return train(recipes.load("grpo", recipe, settings), fresh=fresh)


def reinforce(recipe: str | Path | None = None, *, fresh: bool = False, **settings: Any) -> TrainedRun:
    """REINFORCE with a baseline, as ``prefiere reinforce`` does. Arguments as for `ppo`."""
    return train(recipes.load("reinforce", recipe, settings), fresh=fresh)


def reward(recipe: str | Path | None = None, *, fresh: bool = False, **settings: Any) -> TrainedRun:
    """Train a reward model, as ``prefiere reward`` does. Arguments, result and errors as for `dpo`."""
    return train(recipes.load("reward", recipe, settings), fresh=fresh)
