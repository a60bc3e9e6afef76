"""The runs of a folder as the Runs page shows them: read as data, drawn as the report draws them, kept while unchanged.

A run folder may be a stranger's: links are not followed, code that it names is not imported, and what cannot be read is
one line among the others. Importing this takes seconds (matplotlib): only a server with ``--runs`` does.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from markupsafe import escape

from prefiere.asked.language import tongue
from prefiere.doctor.case import Case
from prefiere.doctor.diagnose import Diagnosis, diagnose
from prefiere.doctor.plain.tell import translated
from prefiere.doctor.words import duration
from prefiere.report import captions, panels
from prefiere.report.page import report_html
from prefiere.report.say import method_title
from prefiere.report.side_by_side import Answer, before_and_after
from prefiere.run import Run

MOST_RUNS, MOST_FOLDERS, DEEPEST = 200, 5_000, 3
"""Runs that are shown, the latest first; folders that are looked into for them, and how deep."""
FILES = ("recipe.yaml", "status.json", "environment.json", "data.json", "metrics.jsonl", "samples.jsonl",
         "calibration.json", "blind.json")  # fmt: skip
IDLE = 4
"""A run that grows is drawn again after so many times what the drawing took: votes come first."""

Shown = TypeVar("Shown")


@dataclass(frozen=True)
class RunLine:
    """A run in the list: where it is, and what the doctor says. ``problem``: why it cannot be read; then nothing else
    is known. ``share`` of its updates done in [0, 1]; ``left``: the time that the rest of them takes, in words."""

    name: str
    problem: str = ""
    method: str = ""
    model: str = ""
    state: str = ""
    reason: str = ""
    step: int = 0
    total: int = 0
    share: float | None = None
    spent: str = ""
    left: str = ""
    seen: str = ""
    diagnosis: Diagnosis | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing more comes of it by itself."""
        return self.state in ("finished", "stopped", "failed")


@dataclass(frozen=True)
class RunFigures:
    """The curves of a run and its answers before and after, which take a while to draw and to compare."""

    curves: list[captions.Figure]
    signals: list[captions.Figure]
    answers: list[Answer]
    steps: tuple[int, int]


@dataclass
class _Kept:
    """Something made of a run: of which state of its files, when it may be made again, and itself."""

    mark: tuple[Any, ...]
    due: float
    value: Any


@dataclass
class RunFolder:
    """A folder of runs, in the language that is spoken. One thread at a time reads and draws: matplotlib's settings are
    those of the process."""

    folder: Path
    _kept: dict[tuple[str, str], _Kept] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def listed(self) -> tuple[list[RunLine], int]:
        """A line for each run, the latest first, and how many more there are."""
        with self._lock:
            found = self._found()
            self._kept = {key: kept for key, kept in self._kept.items() if key[1] in found}
            return [self._line(n, found[n]) for n in list(found)[:MOST_RUNS]], max(0, len(found) - MOST_RUNS)

    def line(self, name: str) -> RunLine | None:
        """Where a run is, and its verdict; None where no run has this name. No other folder is ever opened."""
        path = self._found().get(name)
        return None if path is None else self._line(name, path)

    def figures(self, name: str) -> RunFigures | None:
        """What a run's page shows below its verdict; None where there is none, or where it cannot be read."""
        path = self._found().get(name)
        return None if path is None else self._made("figures", name, path, _figures, lambda error: None)

    def report(self, name: str) -> str | None:
        """The report of a run, made here from its data: the folder's own report.html is somebody else's page."""
        path = self._found().get(name)
        if path is None:
            return None
        return self._made("report", name, path, lambda p: report_html([Run(p)]), lambda e: str(escape(_sentence(e))))

    def _line(self, name: str, path: Path) -> RunLine:
        return self._made(
            "line", name, path, lambda p: _line(name, p), lambda error: RunLine(name, problem=_sentence(error))
        )

    def _made(
        self, what: str, name: str, path: Path, make: Callable[[Path], Shown], unreadable: Callable[[Exception], Shown]
    ) -> Shown:
        with self._lock:
            here = f"{what} {tongue()}"
            mark, kept = _mark(path), self._kept.get((here, name))
            if kept is not None and (kept.mark == mark or time.monotonic() < kept.due):
                found: Shown = kept.value
                return found
            began = time.monotonic()
            try:
                value = make(path)
            except Exception as e:  # a stranger's folder may hold anything: it must not take the others with it
                value = unreadable(e)
            now = time.monotonic()
            self._kept[here, name] = _Kept(mark, now + IDLE * (now - began), value)
            return value

    def _found(self) -> dict[str, Path]:
        """Name and path of every run, the latest first. A name is a path below the folder."""
        if os.path.lexists(self.folder / "recipe.yaml"):
            return {self.folder.resolve().name: self.folder}
        return {name: path for name, path, _ in sorted(_walk(self.folder), key=lambda run: -run[2])}


def _walk(top: Path) -> Iterator[tuple[str, Path, float]]:
    """(name, path, time of its last change) of the runs below a folder, without hidden ones. Links are not followed."""
    waiting, looked = [(top, "", 0)], 0
    while waiting and looked < MOST_FOLDERS:
        folder, name, depth = waiting.pop()
        looked += 1
        try:
            entries = {e.name: e for e in os.scandir(folder)}
        except OSError:
            continue
        if depth and "recipe.yaml" in entries:
            at = max(e.stat(follow_symlinks=False).st_mtime for n, e in entries.items() if n in FILES)
            yield os.fsencode(name).decode("utf-8", "replace"), folder, at
        elif depth < DEEPEST:
            inner = [e for n, e in entries.items() if n[0] != "." and e.is_dir(follow_symlinks=False)]
            waiting += [(Path(e.path), f"{name}/{e.name}".lstrip("/"), depth + 1) for e in inner]


def _mark(path: Path) -> tuple[Any, ...]:
    """What changes whenever a file of the run does."""
    found = []
    for name in FILES:
        try:
            at = os.lstat(path / name)
            found.append((name, at.st_ino, at.st_mtime_ns, at.st_size))
        except OSError:
            continue
    return tuple(found)


def _sentence(error: Exception) -> str:
    """One line on why a run cannot be read."""
    said = " ".join(str(error).split()) or type(error).__name__
    return said if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {said}"


def _line(name: str, path: Path) -> RunLine:
    case = Case(Run(path))
    status, method = case.status, str(case.recipe.get("method", ""))
    step, total = case.steps, int(status.get("total_steps") or 0)
    seconds, state = float(status.get("seconds") or 0.0), str(status.get("state", ""))
    rest = seconds / step * (total - step) if step and total > step and state == "running" else None
    return RunLine(
        name,
        method=method_title(method),
        model=str(case.recipe.get("model", "")),
        state=state,
        reason=str(status.get("reason") or ""),
        step=step,
        total=total,
        share=min(1.0, step / total) if total else None,
        spent=duration(seconds) if seconds else "",
        left=duration(rest) if rest is not None else "",
        seen=time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(max(m[2] for m in _mark(path)) / 1e9)),
        diagnosis=translated(diagnose(case.run), tongue()),
    )


def _figures(path: Path) -> RunFigures:
    case = Case(Run(path))
    answers, steps, _ = before_and_after(case.run.samples_at_ends())
    return RunFigures(
        captions.captioned(panels.panels_of([case]), [case], [""]),
        captions.captioned(panels.ANSWERS_PANELS, [case], [""]),
        answers,
        steps,
    )
