"""prefiere: align language models with human preferences.

>>> import prefiere
>>> [name for name in prefiere.__all__ if name[0] != "_"]  # doctest: +NORMALIZE_WHITESPACE
['Run', 'chat', 'compare', 'diagnose', 'dpo', 'estimate', 'export', 'grpo', 'ppo', 'read', 'reinforce', 'reward',
'rloo', 'sample', 'score', 'sft']
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefiere.api.methods import dpo, grpo, ppo, reinforce, reward, rloo, sft
    from prefiere.api.run import Run
    from prefiere.api.use import chat, compare, diagnose, estimate, export, sample, score
    from prefiere.data.formats import read

    __version__: str

__all__ = [
    "Run",
    "__version__",
    "chat",
    "compare",
    "diagnose",
    "dpo",
    "estimate",
    "export",
    "grpo",
    "ppo",
    "read",
    "reinforce",
    "reward",
    "rloo",
    "sample",
    "score",
    "sft",
]

_USES = ("chat", "compare", "diagnose", "estimate", "export", "sample", "score")
_HOMES = dict.fromkeys(__all__, "prefiere.api.methods") | dict.fromkeys(_USES, "prefiere.api.use")
_HOMES |= {"Run": "prefiere.api.run", "read": "prefiere.data.formats"}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: reading data or a report must not wait for torch."""
    if name == "__version__":
        from importlib.metadata import version

        return version("prefiere")
    if name not in _HOMES:
        raise AttributeError(f"module 'prefiere' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Room(ModuleType):
    """A room of the package that has the name of a function: `prefiere.sample(...)` is the function."""

    def _function(self) -> Any:
        return getattr(importlib.import_module("prefiere.api.use"), self.__name__.rpartition(".")[2])

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self._function()(*args, **options)

    @property
    def __signature__(self) -> Any:
        import inspect

        return inspect.signature(self._function())

    @property
    def __doc__(self) -> str | None:  # type: ignore[override]
        return str(self._function().__doc__)


class _Package(ModuleType):
    """This package. Importing a part of a room sets the room as an attribute, which stays a function besides."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _USES and isinstance(value, ModuleType):
            value.__class__ = _Room
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
