"""The table of what was planted and what was said."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from prefiere.stats import wilson

VERDICTS = ("exact", "symptom", "wrong", "nothing", "refused")


def table_of(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: by cause how often it was named exactly, as a symptom, wrongly, or not at all; alarms; remedies."""
    planted = [r for r in rows if r["cause"] is not None]
    healthy = [r for r in rows if r["cause"] is None]
    lines = ["| cause | runs | exact | symptom | wrong | nothing | refused | green headline |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for cause in dict.fromkeys(r["cause"] for r in planted):
        lines.append(_line(cause, [r for r in planted if r["cause"] == cause]))
    if planted:
        lines.append(_line("**all**", planted))
    if healthy:
        lines += ["", *_alarms(healthy)]
    after = [r["after"] for r in planted if r.get("after")]
    if after:
        well, ruined = sum(bool(a.get("healthy")) for a in after), sum(bool(a.get("destroyed")) for a in after)
        lines += ["", f"Remedies applied literally: {len(after)}; healthy afterwards {well}, destroyed {ruined}."]
    return "\n".join(lines)


def _alarms(healthy: Sequence[dict[str, Any]]) -> list[str]:
    """Alarms among runs whose model came to no harm, as the witness saw it, and among those that did."""
    ruined = [r for r in healthy if r.get("sound") is False]
    sound = [r for r in healthy if r.get("sound") is not False]
    alarms = sum(r["verdict"] == "alarm" for r in sound)
    low, high = wilson(alarms, len(sound))
    said = [f"False alarms: {alarms} of {len(sound)} healthy runs (95%: {100 * low:.1f} to {100 * high:.1f}%)."]
    if ruined:
        found = sum(r["verdict"] == "alarm" for r in ruined)
        said += ["", f"Planned as healthy, and ruined: {len(ruined)}; warned about: {found}."]
    return said


def _line(name: str, rows: Sequence[dict[str, Any]]) -> str:
    counts = Counter(r["verdict"] for r in rows)
    green = sum(r.get("severity") == "good" for r in rows)
    return f"| {name} | {len(rows)} | " + " | ".join(str(counts[v]) for v in VERDICTS) + f" | {green} |"
