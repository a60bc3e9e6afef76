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
        alarms = sum(r["verdict"] == "alarm" for r in healthy)
        low, high = wilson(alarms, len(healthy))
        lines += [
            "",
            f"False alarms: {alarms} of {len(healthy)} healthy runs (95%: {100 * low:.1f} to {100 * high:.1f}%).",
        ]
    after = [r["after"] for r in planted if r.get("after")]
    if after:
        well, ruined = sum(bool(a.get("healthy")) for a in after), sum(bool(a.get("destroyed")) for a in after)
        lines += ["", f"Remedies applied literally: {len(after)}; healthy afterwards {well}, destroyed {ruined}."]
    return "\n".join(lines)


def _line(name: str, rows: Sequence[dict[str, Any]]) -> str:
    counts = Counter(r["verdict"] for r in rows)
    green = sum(r.get("severity") == "good" for r in rows)
    return f"| {name} | {len(rows)} | " + " | ".join(str(counts[v]) for v in VERDICTS) + f" | {green} |"
