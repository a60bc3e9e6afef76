"""What a call in Python brings that no recipe can hold: functions, and what is written into the run before it is read.

Rows, and a model in memory, become a file or a folder in the run's ``inputs``, named by the setting and a hash of what
it holds: the recipe names it, and the same call finds it again. A function cannot be written: the recipe holds its name
in angle brackets, environment.json a mark of its code, and whoever continues the run gives it again.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypedDict

from prefiere.files import atomic, atomic_folder, remove_folder
from prefiere.run import RunError

EVENTS = ("on_log", "on_evaluate", "on_save")
"""What a run tells of: a row of metrics (step, row), one with held-out data or sampled answers (step, row), a
checkpoint (step, its folder)."""
_FUNCTION = re.compile(r"<[^<>]+>")


def is_given(name: str) -> bool:
    """Whether a recipe's name stands for a function that was given in Python: ``<score>``."""
    return _FUNCTION.fullmatch(name) is not None


class Mark(TypedDict):
    """What a function is known by: a hash of its code and of values that stay, and one of what it may change itself."""

    code: str
    state: str


@dataclass(frozen=True, slots=True)
class Input:
    """Rows or a model that a call holds. path: where the run keeps it. write: fills an empty file, or an empty folder
    where it is one. outline: the same without weights, where it has some."""

    path: Path
    write: Callable[[Path], None]
    folder: bool = False
    outline: Callable[[Path], None] | None = None


@dataclass(frozen=True, slots=True)
class InMemory:
    """What a call brings. functions: by the name that the recipe has. marks: what each one is known by. inputs: what
    is kept in the run. said: what to tell of them. callbacks: what is called along the run, by `EVENTS`."""

    functions: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    marks: Mapping[str, Mark] = field(default_factory=dict)
    inputs: tuple[Input, ...] = ()
    said: tuple[str, ...] = ()
    callbacks: Mapping[str, Callable[..., Any]] = field(default_factory=dict)

    def tell(self, event: str, step: int, what: Any) -> None:
        """Call what was given for an event. Raises RunError, naming it, where that fails."""
        if event not in self.callbacks:
            return
        try:
            self.callbacks[event](step, what)
        except Exception as e:  # it is the user's code: say where it failed, in one line
            at, said = traceback.extract_tb(e.__traceback__)[-1], " ".join(str(e).split())[:300]
            raise RunError(
                f"{event} failed at {at.filename}:{at.lineno}: {type(e).__name__}: {said}. Correct it and call again: "
                "the run goes on from its last checkpoint."
            ) from e

    def outlines(self) -> InMemory:
        """The same, of which no weights are kept."""
        return replace(self, inputs=tuple(replace(each, write=each.outline or each.write) for each in self.inputs))

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

    def same(self, recorded: Mapping[str, Any]) -> Iterator[str]:
        """What to tell of functions that hold other values than when the run began. ``recorded``: its marks.

        Raises RunError where one is another function.
        """
        for name, mark in self.marks.items():
            began = recorded.get(name, mark)
            if not isinstance(began, Mapping) or began.get("code") != mark["code"]:
                raise RunError(
                    f"{name} is another function than the one that this run began with. Give that one, or use "
                    "--fresh (fresh=True)."
                )
            if began.get("state") != mark["state"]:
                yield f"{name} is the function that this run began with, and holds other values (attributes, lists) now"
