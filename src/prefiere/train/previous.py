"""The run that a new one replaces: kept in its folder until the new one can be continued.

``--fresh`` moves what the folder holds into ``.previous``. It goes when the new run has its first checkpoint. A new run
that ends before (an error, a kill) has nothing that could be continued: the old one is put back in its place. A kill in
the middle of a move is finished by the next command, which sees by the name of the folder how far the move was.
"""

from __future__ import annotations

import os
from pathlib import Path

from prefiere.files import remove_folder, sync
from prefiere.run import INPUTS, given_as

LOGS = (
    "metrics.jsonl",
    "samples.jsonl",
    "pairs.jsonl",
    "status.json",
    "trackers.json",
    "report.html",
    "data.json",
    "environment.json",
    "calibration.json",
    "blind.json",
    "recipe.yaml",
)
FOLDERS = ("checkpoints", "model")

_WHOLE, _PART = ".previous", ".previous.part"
# .previous.part: being filled, or emptied: what the folder itself holds is the old run's. .previous: it holds the whole
# old run, and what lies in the folder is the new one's.


def put_aside(folder: Path) -> None:
    """Move the run out of the way, if there is one."""
    if not (folder / "recipe.yaml").is_file():
        return
    part = folder / _PART
    part.mkdir()
    for name in (*FOLDERS, *LOGS):
        if os.path.lexists(folder / name):
            (folder / name).rename(part / name)
    sync(part)
    part.rename(folder / _WHOLE)
    sync(folder)


def put_back(folder: Path) -> bool:
    """Put the old run back where the new one has no checkpoint yet; drop it where it has.

    Returns whether it was put back.
    """
    whole, part = folder / _WHOLE, folder / _PART
    if whole.is_dir() and not whole.is_symlink():
        if any((folder / "checkpoints").glob("step-*")):
            drop(folder)
            return False
        for name in (*FOLDERS, *LOGS):
            path = folder / name
            if path.is_dir() and not path.is_symlink():
                remove_folder(path)
            else:
                path.unlink(missing_ok=True)
        whole.rename(part)
    if not part.is_dir() or part.is_symlink():
        return False
    for name in (*LOGS, *FOLDERS):
        if os.path.lexists(part / name):
            (part / name).rename(folder / name)
    part.rmdir()
    _forget_inputs(folder)
    sync(folder)
    return True


def _forget_inputs(folder: Path) -> None:
    """Delete what was given in Python to a run that is not there any more: what the recipe does not name."""
    inputs = folder / INPUTS
    if inputs.is_symlink() or not inputs.is_dir() or not (folder / "recipe.yaml").is_file():
        return
    named = (folder / "recipe.yaml").read_text(encoding="utf-8")
    for path in inputs.iterdir():
        if given_as(path) is not None and path.name not in named:
            remove_folder(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def drop(folder: Path) -> None:
    """Delete the old run: the new one can be continued."""
    if (folder / _WHOLE).is_dir() and not (folder / _WHOLE).is_symlink():
        remove_folder(folder / _WHOLE)
        _forget_inputs(folder)
