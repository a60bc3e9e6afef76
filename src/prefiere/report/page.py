"""One HTML file that shows a run, or several on the same axes: no network, no script, whatever text the model wrote.

Everything comes from the run folders. Text of models and data is hostile until escaped: Jinja escapes all of it, and
``visible`` spells out characters that hide or reorder others.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from prefiere.asked.language import tongue
from prefiere.doctor.case import Case
from prefiere.doctor.diagnose import Diagnosis, diagnose
from prefiere.doctor.plain.tell import translated
from prefiere.doctor.words import data_in_words, duration, number, with_ends
from prefiere.files import visible, write_text
from prefiere.metrics import column
from prefiere.report import captions, curves, panels
from prefiere.report.caveats import caveat_figures
from prefiere.report.people import Testimony, who_said_so
from prefiere.report.say import method_title, phrase, told_column
from prefiere.report.side_by_side import LONGEST, Answer, before_and_after
from prefiere.run import Run, RunError

_GENERATOR = b'<meta name="generator" content="prefiere">'
KEY_SETTINGS = (
    *("model", "reward", "judge", "data", "eval_data", "loss_type", "beta", "kl_coef", "target_kl", "max_kl"),
    *("learning_rate", "batch_size", "num_ppo_epochs", "cliprange", "num_train_epochs", "max_steps", "lora", "seed"),
)
STATES = ("running", "finished", "stopped", "failed")
TILES = (
    "eval_rewards/accuracies",
    "eval_rewards/margins",
    "eval_loss",
    "eval_mean_token_accuracy",
    "samples/score",
    "samples/reward",
    "samples/kl",
    "samples/length",
    "samples/eos_rate",
)


@dataclass(frozen=True, slots=True)
class Sheet:
    """All that the page shows of one run."""

    name: str
    colour: str
    case: Case
    diagnosis: Diagnosis
    facts: Mapping[str, str]
    tiles: Mapping[str, tuple[str, str, str]]
    answers: tuple[Answer, ...]
    answer_steps: tuple[int, int]
    answers_left_out: int
    data: Mapping[str, Any]
    environment: Mapping[str, Any]
    choices: tuple[Mapping[str, Any], ...]
    said: Testimony | None


def render(runs: Sequence[Run], out: Path) -> Path:
    """Write the report of ``runs`` to ``out`` and return it. Raises RunError where a folder is no run or damaged."""
    out, html = Path(out), report_html(runs)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, html)
    return out


def is_report(path: Path) -> bool:
    """Whether a file is a report of ours, which a newer one may replace."""
    with path.open("rb") as f:
        return _GENERATOR in f.read(4000)


def report_html(runs: Sequence[Run]) -> str:
    """The report of ``runs``. Raises RunError where a folder is no run or damaged."""
    if not runs:
        raise RunError("a report needs at least one run.")
    cases = [Case(Run.open(run.folder)) for run in runs]
    names = _distinct([case.run for case in cases])
    sheets = [_sheet(case, names[i], curves.colour(i)) for i, case in enumerate(cases)]
    drawn = captions.captioned(panels.panels_of(cases), cases, names)
    alone = all(case.family == "reward" for case in cases)
    page = _environment().get_template("template.html")
    return page.render(
        sheets=sheets,
        frontier=captions.reward_against_kl(cases, names),
        curves=[f for f in drawn if f[0].scores == alone],
        scores=[f for f in drawn if f[0].scores and not alone],
        calibration=captions.calibration_figures(cases, names),
        caveats=caveat_figures(cases, names),
        times=captions.times(cases, names),
        signals=captions.captioned(panels.ANSWERS_PANELS, cases, names),
        families=sorted({case.family for case in cases}),
        facts=_beside([sheet.facts for sheet in sheets]),
        settings=_beside([{k: _shown(v) for k, v in case.recipe.items()} for case in cases]),
        glance=_glance(sheets),
        several=len(sheets) > 1,
    )


def _environment() -> Environment:
    """Escaping for everything, and no invisible character in any text that is put in."""

    def finalize(value: Any) -> Any:
        return _safe(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    environment = Environment(
        loader=PackageLoader("prefiere.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["say"] = _said
    environment.filters |= {"shown": _shown, "label": _label, "prose": _prose, "tags": captions.tags}
    return environment


def _sheet(case: Case, name: str, colour: str) -> Sheet:
    answers, steps, left_out = before_and_after(case.run.samples_at_ends())
    environment = case.run.environment
    return Sheet(
        name=name,
        colour=colour,
        case=case,
        diagnosis=translated(diagnose(case.run), tongue()),
        facts=dict(_facts(case)),
        tiles=dict(figures_at_a_glance(case)),
        answers=tuple(answers),
        answer_steps=steps,
        answers_left_out=left_out,
        data=data_in_words(case.run.data),
        environment={k: v for k, v in environment.items() if k != "choices"},
        choices=_choices(environment),
        said=who_said_so(case.run),
    )


def _choices(environment: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """What was decided automatically: ``name``, ``value``, ``why``."""
    choices = environment.get("choices")
    return tuple(c for c in choices if isinstance(c, Mapping)) if isinstance(choices, list) else ()


def _distinct(runs: Sequence[Run]) -> list[str]:
    """Folder names; whole paths where two are the same."""
    names = [run.name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.folder) for run in runs]


def _facts(case: Case) -> Iterable[tuple[str, str]]:
    """What was run on what, as (label, value)."""
    recipe, status = case.recipe, case.status
    method = str(recipe.get("method", "?"))
    yield phrase("fact.method"), method_title(method)
    chosen = {c.get("name"): c.get("value") for c in _choices(case.run.environment)}
    for key in KEY_SETTINGS:
        value = recipe.get(key)
        if value == "auto" and key in chosen:
            yield _label(key), phrase("automatic", value=_shown(chosen[key]))
        elif value is not None:
            yield _label(key), _shown(value)
    total = status.get("total_steps")
    cut = isinstance(total, int) and total != case.steps
    yield phrase("fact.updates"), phrase("of", n=f"{case.steps:,}", total=f"{total:,}") if cut else f"{case.steps:,}"
    if state := str(status.get("state") or ""):
        yield phrase("fact.state"), state_said(state)
    if status.get("reason"):
        yield phrase("fact.ended"), _shown(str(status["reason"]))
    if time := duration(status.get("seconds")):
        yield phrase("fact.time"), time
    speed, memory = case.series("tokens_per_second"), case.series("peak_memory_mb")
    if len(speed):
        yield phrase("fact.speed"), phrase("per_second", n=number(speed.end.mean))
    if len(memory):
        yield phrase("fact.memory"), phrase("peak", n=f"{memory.values.max():,.0f}")


def state_said(state: str) -> str:
    """What state a run is in; one that this version does not have is called as it is."""
    return phrase(f"state.{state}") if state in STATES else state


def figures_at_a_glance(case: Case) -> Iterable[tuple[str, tuple[str, str, str]]]:
    """The numbers that say most: (name, (before, after, its interval or nothing))."""
    for key in (k if len(case.series(k)) else column(k).rollouts or k for k in TILES):
        if key == "samples/length" and case.family != "policy":
            continue  # where answers are paid for, length is what they cheat with
        if (change := case.change(key)) is not None:
            name = told_column(column(key)).words
            after, *ends = with_ends(change.after, key)
            between = phrase("interval", low=ends[0], high=ends[1]) if ends else ""
            told = phrase("held_out", what=name) if key != column(key).name else name
            yield told, (number(change.before.mean, key), after, between)


def _glance(sheets: Sequence[Sheet]) -> list[str]:
    """The numbers that stand beside each other: those that most runs have, as many as fit."""
    held = Counter(name for sheet in sheets for name in sheet.tiles)
    kept = {name for name, _ in held.most_common(6)}
    return [name for name in held if name in kept]


def _beside(runs: Sequence[Mapping[str, str]]) -> list[tuple[str, list[str], bool]]:
    """(key, its value in each run, whether they differ), the differing ones first."""
    keys = dict.fromkeys(key for run in runs for key in run)
    rows = [(key, [run.get(key, "") for run in runs]) for key in keys]
    return sorted(((key, values, len(set(values)) > 1) for key, values in rows), key=lambda row: not row[2])


def _shown(value: Any) -> str:
    """A setting or figure of the run as text."""
    if isinstance(value, bool) or value is None:
        text = phrase({True: "yes", False: "no", None: "none"}[value])
    elif isinstance(value, float):
        text = f"{value:.6g}"
    elif isinstance(value, str | int):
        text = str(value)
    else:
        text = json.dumps(value, ensure_ascii=False)
    more = len(text) - LONGEST
    return text if more <= 0 else f"{text[:LONGEST]} {phrase('more_characters', n=f'{more:,}')}"


def _safe(text: str) -> str:
    """Text in which no character hides or reorders others; Windows' line ends are line ends."""
    return visible(text.replace("\r\n", "\n"))


def _said(key: str, **values: Any) -> Markup:
    """A sentence of the page, its values escaped and visible unless they are HTML already."""
    shown = {k: v if isinstance(v, Markup) else escape(_safe(str(v))) for k, v in values.items()}
    return Markup(phrase(key, **shown))


def _prose(text: str) -> Markup:
    """A sentence of a finding, escaped, with what stands in backticks as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(_safe(text)))))


def _label(key: Any) -> str:
    """``learning_rate`` as ``learning rate``."""
    return str(key).replace("_", " ")
