"""The logs of a run, a JSON row a line: made to survive a power cut, cut back to a checkpoint by rows, and read out.

What the last seconds before a power cut leave of a file is anything: half a row, zeros, nothing. Rows are therefore cut
by what they say of their step, never by the length of the file.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from prefiere.asked.language import count_of, in_words
from prefiere.console import rough_time
from prefiere.files import atomic, sync
from prefiere.methods import FIGURES, Family
from prefiere.metrics import column
from prefiere.stats import Moments
from prefiere.untrusted import open_plain

ROW_LOGS = ("metrics.jsonl", "samples.jsonl", "pairs.jsonl")


def holds_rows(path: Path) -> bool:
    """Whether a log has a whole row. Raises UnreadableFile for a link or what is no file."""
    return any(row is not None for _, row in _lines(path))


def sync_logs(folder: Path) -> dict[str, int]:
    """Make the logs survive a power cut. Returns how many rows each has."""
    rows = {}
    for name in ROW_LOGS:
        if (path := folder / name).is_file():
            sync(path)
            with open_plain(path) as f:
                rows[name] = sum(block.count(b"\n") for block in iter(lambda f=f: f.read(1 << 20), b""))  # type: ignore[misc]
    sync(folder)
    return rows


def cut_logs(folder: Path, step: int, rows: Mapping[str, int]) -> list[str]:
    """Keep of each log the rows up to a step, of which there should be ``rows``. Lines that are no rows go, and so do
    rows that came after those.

    Returns what is missing, in words.
    """
    missing = []
    for name in ROW_LOGS:
        path, most = folder / name, rows.get(name)
        kept = sum(_step(row) <= step for _, row in _lines(path))
        if kept < sum(1 for _ in _lines(path)) or (most is not None and kept > most):
            with atomic(path) as temporary, temporary.open("wb") as f:
                f.writelines(islice((line for line, row in _lines(path) if _step(row) <= step), most))
        if (lost := (most or 0) - kept) > 0:
            missing.append(f"missing or damaged: {count_of(lost, 'row')} of {name} up to step {step}")
    return missing


def _lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any] | None]]:
    """The lines of a log, each with its row; None for a line that is none."""
    if os.path.lexists(path):
        with open_plain(path) as f:
            for line in f:
                yield line, _row(line)


def _row(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _step(row: Mapping[str, Any] | None) -> float:
    """The step of a row, later than all for what is no row."""
    step = (row or {}).get("step")
    return float(step) if isinstance(step, int | float) and not isinstance(step, bool) else math.inf


def spoken(row: Mapping[str, Any], total: int, shown: str, family: Family, left: float | None) -> str:
    """A row as one line for people: step, the metric ``shown``, the family's main figures, speed, seconds ``left``."""
    told = [column(name) for name in FIGURES[family]]
    trained = dict.fromkeys([shown, *(c.training for c in told)])
    measured = dict.fromkeys([f"eval_{shown}", *(c.measured for c in told)])
    parts = [in_words("progress.step", step=f"{row['step']:,}", total=f"{total:,}")]
    parts += [_figure(key, row[key]) for key in trained if key and isinstance(row.get(key), int | float)]
    for key, sampled in (("progress.held_out", False), ("progress.sampled", True)):
        of = [k for k in measured if column(k).sampled == sampled and isinstance(row.get(k), int | float)]
        parts += [in_words(key, figures=", ".join(_figure(k, row[k]) for k in of))] if of else []
    if isinstance(speed := row.get("tokens_per_second"), int | float):
        parts.append(f"{speed:,.0f} tokens/s")
    if left is not None and row["step"] < total:
        parts.append(in_words("progress.left", time=rough_time(left)))
    return "  ".join(parts)


def noted(metrics: Mapping[str, Moments], shown: str, family: Family) -> str:
    """An update's metric ``shown`` and its family's first figure, beside a bar."""
    names = dict.fromkeys([shown, *(column(name).training for name in FIGURES[family])])
    return "  ".join(_figure(name, metrics[name].mean) for name in [n for n in names if n in metrics][:2])


def _figure(key: str, value: float) -> str:
    name = key.removeprefix("eval_")
    told = column(key)
    shown = value if abs(value) > told.rounding else 0.0
    return f"{name} {shown:.1%}" if told.share else f"{name} {shown:.4g}"
