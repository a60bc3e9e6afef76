"""What a call in Python brings that no recipe can hold: functions, and what is written into the run before it is read.

Rows, and a model in memory, become a file or a folder in the run's ``inputs``, named by the setting and a hash of what
it holds: the recipe names it, and the same call finds it again. A function cannot be written: the recipe holds its name
in angle brackets, environment.json a mark of its code, and whoever continues the run gives it again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefiere.files import atomic, atomic_folder, remove_folder
from prefiere.run import RunError

_FUNCTION = re.compile(r"<[^<>]+>")


def is_given(name: str) -> bool:
    """Whether a recipe's name stands for a function that was given in Python: ``<score>``."""
    return _FUNCTION.fullmatch(name) is not None


@dataclass(frozen=True, slots=True)
class Input:
    """Rows or a model that a call holds. path: where the run keeps it. write: fills an empty file, or an empty folder
    where it is one."""

    path: Path
    write: Callable[[Path], None]
    folder: bool = False


@dataclass(frozen=True, slots=True)
class InMemory:
    """What a call brings. functions: by the name that the recipe has. marks: what each one's code is known by, where it
    can be told. inputs: what is kept in the run. said: what to tell of them."""

    functions: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    marks: Mapping[str, str] = field(default_factory=dict)
    inputs: tuple[Input, ...] = ()
    said: tuple[str, ...] = ()

    def keep(self, refused: ExitStack) -> None:
        """Write the inputs that the run has not yet. Whatever is closed by ``refused`` takes them back."""
        for each in self.inputs:
            if each.path.exists():
                continue
            if not each.path.parent.exists():
                each.path.parent.mkdir(parents=True)
                refused.callback(each.path.parent.rmdir)
            if each.folder:
                with atomic_folder(each.path) as temporary:
                    each.write(temporary)
                refused.callback(remove_folder, each.path)
            else:
                with atomic(each.path) as temporary:
                    each.write(temporary)
                refused.callback(each.path.unlink)

    def complete(self, settings: Mapping[str, Any]) -> None:
        """Raise RunError where the settings name a function that was not given."""
        for key in ("reward", "judge"):
            named = settings.get(key)
            for name in [named] if isinstance(named, str) else named or []:
                if is_given(name) and name not in self.functions:
                    raise RunError(
                        f"{key}: {name} is a function that was given in Python. Give it again there "
                        f"({settings['method']}({key}={name[1:-1]}, ...)), or write it as module:function."
                    )

    def same(self, recorded: Mapping[str, str]) -> None:
        """Raise RunError where a function is another one than the run began with. ``recorded``: its marks."""
        for name, mark in self.marks.items():
            if recorded.get(name, mark) != mark:
                raise RunError(
                    f"{name} is another function than the one that this run began with. Give that one, or use "
                    "--fresh (fresh=True)."
                )
