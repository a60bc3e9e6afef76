"""A diagnosis in plain words and a chosen language: what `prefiere doctor` prints, and what a report can show.

The findings' own sentences are for those who know the field; these are for everybody. Words stand in tables with the
same keys and the same braces in every language, which a test holds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from prefiere.asked.language import Tongue, within
from prefiere.doctor.case import Finding
from prefiere.doctor.diagnose import Diagnosis
from prefiere.doctor.prescribe import Prescribed
from prefiere.doctor.remedies import Remedy


@dataclass(frozen=True, slots=True)
class PlainWords:
    """What a language says. around: words around the findings. findings: by key a headline and what it means."""

    around: dict[str, str]
    findings: dict[str, tuple[str, str]]


@cache
def plain_words(tongue: Tongue) -> PlainWords:
    """The table of a language."""
    read = yaml.safe_load(files("prefiere.doctor.plain").joinpath(f"{tongue}.yaml").read_text(encoding="utf-8"))
    return PlainWords(read["around"], {k: (f["headline"], f["meaning"]) for k, f in read["findings"].items()})


@dataclass(frozen=True, slots=True)
class Told:
    """A finding in plain words: a headline, what it means, what was seen, what to try."""

    finding: Finding
    headline: str
    meaning: str
    seen: tuple[str, ...]
    tries: tuple[str, ...]


class _Filled(dict[str, str]):
    """Values of a finding; what it does not know shows as a dash."""

    def __missing__(self, key: str) -> str:
        return "–"


def told(finding: Finding, tongue: Tongue) -> Told:
    """A finding in a language; a key that no table has is said in the finding's own words."""
    headline, meaning = finding.title, finding.meaning
    if (known := plain_words(tongue).findings.get(finding.said_as or finding.key)) is not None:
        headline, meaning = (
            text.format_map(_Filled({k: within(v, tongue) for k, v in finding.values.items()})) for text in known
        )
    seen = tuple(within(line, tongue) for line in finding.seen)
    return Told(finding, headline, meaning, seen, _tries(finding, tongue))


def _tries(finding: Finding, tongue: Tongue) -> tuple[str, ...]:
    """What to try. In other languages than English, what sets something is said in the same words always."""
    if tongue == "en":
        return finding.remedy
    return tuple(setting_said(r, tongue) if r.setting else r.within(tongue) for r in finding.remedies)


def setting_said(remedy: Remedy, tongue: Tongue) -> str:
    """``set beta to 0.1``."""
    return plain_words(tongue).around["set"].format(setting=remedy.setting, value=_shown(remedy.value))


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def plain_verdict(diagnosis: Diagnosis, tongue: Tongue) -> str:
    """The whole diagnosis in a sentence or two of plain words."""
    words, found = plain_words(tongue).around, diagnosis.findings
    by_key = {f.key: told(f, tongue).headline for f in found}
    grave = [f for f in found if f.severity in ("bad", "warning")]
    if (good := diagnosis.praise) is not None:
        more = f" {words['but']}: {_lower(by_key[but.key])}" if (but := diagnosis.but) is not None else ""
        return by_key[good.key] + more
    if not grave:
        return by_key.get("empty", by_key.get("learnt", words["nothing"]))
    cause = diagnosis.cause
    likely = f" {words['cause']}: {_lower(by_key[cause.key])}" if cause is not None and not grave[0].cause else ""
    return by_key[grave[0].key] + likely


def translated(diagnosis: Diagnosis, tongue: Tongue) -> Diagnosis:
    """The diagnosis with headline and findings in the plain words of another language; in English as it is."""
    if tongue == "en":
        return diagnosis
    said = [told(f, tongue) for f in diagnosis.findings]
    findings = tuple(
        replace(t.finding, title=t.headline, meaning=t.meaning, seen=t.seen, advice=tuple(map(Remedy, t.tries)))
        for t in said
    )
    return replace(diagnosis, headline=plain_verdict(diagnosis, tongue), findings=findings)


def reason(change: Prescribed, tongue: Tongue) -> str:
    """Why a setting changes: the finding that asks for it."""
    return plain_words(tongue).around["because"].format(why=_lower(told(change.finding, tongue).headline))


def _lower(text: str) -> str:
    return text[0].lower() + text[1:]
