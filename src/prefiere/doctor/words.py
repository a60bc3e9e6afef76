"""How numbers, changes and the account of the data are put in words, the same in figures, findings and tables."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from prefiere.asked.columns import column_said
from prefiere.asked.language import Worded, saying, words
from prefiere.doctor.series import Change, Level
from prefiere.metrics import column

_ROOM, _MOST_DIGITS = "prefiere.doctor.plain", 6


def number(value: float, key: str = "", more: int = 0) -> str:
    """A metric's value as people read it: two or three figures and ``more``, or per cent for a share."""
    if not math.isfinite(value):
        return "?"
    told, size = column(key), abs(value)
    if told.share:
        return f"{100 * value:.{more}f}%"
    if size <= told.rounding:
        return "0.00"
    if size < 1e-4:
        return f"{value:.{1 + more}e}".replace("-", "−")
    digits = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 0.1 else 3 if size >= 0.001 else 5
    return f"{value:,.{digits + more}f}".replace("-", "−")


def with_interval(level: Level, key: str = "") -> str:
    """``0.41 (0.36 to 0.46)``: a mean and its 95% interval, in so many digits that its ends differ, and that half is
    not among a share's where the interval leaves it out."""
    return str(interval(level, key))


def with_ends(level: Level, key: str) -> tuple[str, ...]:
    """A mean and the ends of its interval, the mean alone where it has none."""
    if not level.known or level.low == level.high:
        return (number(level.mean, key),)
    low, high = (max(0.0, level.low), min(1.0, level.high)) if column(key).share else (level.low, level.high)
    told: tuple[str, ...] = ()
    for more in range(_MOST_DIGITS):
        least, most, half = (number(value, key, more) for value in (low, high, 0.5))
        if least == most:
            continue
        told = told or (number(level.mean, key, more), least, most)
        if not (column(key).share and ((level.above(0.5) and least == half) or (level.below(0.5) and most == half))):
            return number(level.mean, key, more), least, most
    return told or (number(level.mean, key),)


def line(key: str, /, **values: str | Worded) -> Worded:
    """A line of evidence in every language: a sentence of doctor/plain, its braces filled in."""
    return saying(_ROOM, f"evidence.{key}", **values)


def language_named(name: str) -> Worded | str:
    """A language as `data.quality.languages` names it, in every language; another name as it stands, cut."""
    known = words(_ROOM, "en")
    return saying(_ROOM, f"language.{name}") if f"language.{name}" in known else name[:20]


def form(name: str) -> Worded | str:
    """A form of writing as `data.quality.marks` names it (``=lists``), in every language."""
    key = f"form.{name.removeprefix('=').replace(' ', '_')}"
    return line(key) if f"evidence.{key}" in words(_ROOM, "en") else name[:20]


def left(name: str) -> Worded | str:
    """What `data.quality.leftovers` calls so, in every language; another name as it stands, cut."""
    return line(f"left.{name}") if f"evidence.left.{name}" in words(_ROOM, "en") else name[:20]


def interval(level: Level, key: str = "") -> Worded:
    """`with_interval` in every language."""
    mean, *ends = with_ends(level, key)
    return line("interval", mean=mean, low=ends[0], high=ends[1]) if ends else line("alone", mean=mean)


def figure(sentence: str, key: str, level: Level) -> Worded:
    """A metric's name, value and unit in a sentence of the evidence (``figure``: ``entropy: 0.41 (0.36 to 0.46)``)."""
    named, unit = column_said(column(key))
    return line(sentence, words=named, value=interval(level, key), unit=unit)


def evidence_line(key: str, change: Change, *where: str) -> Worded:
    """``margin on held-out data: 0.00 → 0.41 (0.36 to 0.46), 200 measured``: a change as a line of evidence.

    where: the run's loss type and family, as for `metrics.column`.
    """
    told = column(key, *where)
    split: str | Worded = "" if not told.held_out else line("on_held_out" if key != told.name else "on_training")
    named, unit = column_said(told)
    count: str | Worded = line("measured", n=f"{change.after.n:,}") if change.after.n else ""
    values: dict[str, str | Worded] = {"before": number(change.before.mean, key), "after": interval(change.after, key)}
    return line("change" if told.unit else "bare_change", words=named, where=split, unit=unit, count=count, **values)


def data_in_words(data: Any) -> Any:
    """data.json for reading: what happened to no example is left out, places and lengths become words."""
    if isinstance(data, Mapping):
        if set(data) == {"count", "sources"}:
            places = list(data["sources"] or [])
            return f"{data['count']:,}" + (f" (first: {', '.join(map(str, places[:3]))})" if places else "")
        kept = {k: v for k, v in data.items() if not (isinstance(v, Mapping) and v.get("count", 1) == 0)}
        return {
            k: _lengths(v) if k.endswith("_lengths") else data_in_words(v) for k, v in kept.items() if v not in ([], {})
        }
    if isinstance(data, list) and not any(isinstance(v, Mapping | list) for v in data):
        more = f" … and {len(data) - 10:,} more" if len(data) > 10 else ""
        return ", ".join(map(str, data[:10])) + more
    return [data_in_words(v) for v in data] if isinstance(data, list) else data


def _lengths(quantiles: Any) -> Any:
    """Lengths in tokens at 0, 50, 90, 99 and 100 per cent, as a sentence."""
    if not (isinstance(quantiles, list) and len(quantiles) == 5):
        return data_in_words(quantiles)
    least, half, most, nearly, longest = quantiles
    return f"{least} to {longest} tokens; half up to {half}, 90% up to {most}, 99% up to {nearly}"


def duration(seconds: Any) -> str:
    """``1 h 5 min``, ``3 min 20 s``, ``8 s``."""
    if not isinstance(seconds, int | float):
        return ""
    minutes, s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {s} s" if minutes else f"{s} s"
