"""Every training command as a Python function: ``run = dpo(model=..., data=..., out=...); run.compare()``.

They take the settings of the command under the same names, and, in the place of names, what a notebook holds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefiere.api.held import settle
from prefiere.api.run import Run
from prefiere.api.training import train


def dpo(recipe: str | Path | None = None, *, fresh: bool = False, **settings: Any) -> Run:
    """Optimise preferences directly, as ``prefiere dpo`` does.

    recipe: a YAML file; ``settings`` (``model``, ``data``, ``out`` and every key of docs/settings.md) override it.
    ``data`` and ``eval_data`` may be a list of dicts, a pandas DataFrame or a datasets.Dataset, ``model`` a loaded one
    with ``tokenizer``: they are kept in the run's ``inputs``. ``judge`` may be a function. ``on_log``, ``on_evaluate``
    and ``on_save`` are functions of a step and what is told of it (docs/python.md). A run that was stopped is
    continued, unless ``fresh``. Raises ValueError, or FileNotFoundError, in one line that says what to do.

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
    return _trained("dpo", recipe, fresh, settings)


def sft(recipe: str | Path | None = None, *, fresh: bool = False, **settings: Any) -> Run:
    """Imitate answers, as ``prefiere sft`` does. Arguments, result and errors as for `dpo`."""
    return _trained("sft", recipe, fresh, settings)


def ppo(recipe: str | Path | None = None, *, fresh: bool = False, **settings: Any) -> Run:
    """Proximal policy optimisation against a reward, as ``prefiere ppo`` does.

    ``data`` (or ``prompts``) are prompts, a list of texts among others, ``reward`` a reward model, a function, its name
    ``module:function``, or several of these. Arguments, result and errors as for `dpo`.
    """
    return _trained("ppo", recipe, fresh, settings)


def rloo(recipe: str | Path | None = None, *, fresh: bool = False, **settings: Any) -> Run:
    """REINFORCE, each answer against its prompt's others, as ``prefiere rloo`` does. Arguments as for `ppo`."""
    return _trained("rloo", recipe, fresh, settings)


def grpo(recipe: str | Path | None = None, *, fresh: bool = False, **settings: Any) -> Run:
    """Group-relative policy optimisation, as ``prefiere grpo`` does. Arguments as for `ppo`."""
    return _trained("grpo", recipe, fresh, settings)


def reinforce(recipe: str | Path | None = None, *, fresh: bool = False, **settings: Any) -> Run:
    """REINFORCE with a baseline, as ``prefiere reinforce`` does. Arguments as for `ppo`."""
    return _trained("reinforce", recipe, fresh, settings)


def reward(recipe: str | Path | None = None, *, fresh: bool = False, **settings: Any) -> Run:
    """Train a reward model, as ``prefiere reward`` does. Arguments, result and errors as for `dpo`."""
    return _trained("reward", recipe, fresh, settings)


def _trained(method: str, recipe: str | Path | None, fresh: bool, values: dict[str, Any]) -> Run:
    settings, given = settle(method, recipe, values)
    return train(settings, fresh=fresh, given=given)
