"""From a diagnosis to the next run's recipe: which settings change, to what, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prefiere.doctor.case import Finding
from prefiere.doctor.diagnose import Diagnosis
from prefiere.doctor.remedies import Remedy


@dataclass(frozen=True, slots=True)
class Prescribed:
    """One setting to change, and the finding that asks for it."""

    remedy: Remedy
    finding: Finding


def prescribe(diagnosis: Diagnosis) -> tuple[Prescribed, ...]:
    """What to change, the gravest first: of each cause the setting that its first remedy names; where no cause names
    one, of the gravest symptom alone. One change for each setting, and none against another's push."""
    found = [f for f in diagnosis.findings if f.severity in ("bad", "warning")]
    causes = [f for f in found if f.cause or f.key == "few_held_out"]  # so that the next run shows more
    chosen: dict[str, Prescribed] = {}
    for finding in causes or found:
        remedy = next((r for r in finding.remedies if r.setting), None)
        if remedy is not None and remedy.setting not in chosen:
            chosen[remedy.setting] = Prescribed(remedy, finding)
        if chosen and not finding.cause:
            break
    return tuple(chosen.values())


def next_recipe(recipe: Mapping[str, Any], changes: tuple[Prescribed, ...], out: str) -> dict[str, Any]:
    """The run's settings with the changes made, for another run folder; settings of the run at their defaults stay as
    they were written."""
    return {**recipe, **{p.remedy.setting: p.remedy.value for p in changes}, "out": out}
