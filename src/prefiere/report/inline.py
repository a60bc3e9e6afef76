"""A run in a cell of a notebook: verdict, findings, figures before and after, curves. No script and no style sheet.

The colours are variables of one element around it all, so that nothing else on the notebook's page changes.
"""

from __future__ import annotations

from markupsafe import Markup, escape

from prefiere.asked.language import tongue
from prefiere.doctor.case import Case
from prefiere.doctor.diagnose import diagnose
from prefiere.doctor.plain.tell import translated
from prefiere.files import visible
from prefiere.report import curves, panels
from prefiere.report.page import figures_at_a_glance, state_said
from prefiere.report.say import phrase, told_column
from prefiere.run import Run

_COLOURS = {"ink": "currentColor", "muted": "#808080", "line": "#80808055", "train": "#808080", "run-1": "#3b7dd8"}
_MARKS = {"good": "#2e9e5b", "info": "#808080", "warning": "#c98a00", "bad": "#d1453b"}


def inline_html(run: Run) -> str:
    """One element that shows a run. Raises RunError where the folder is damaged."""
    case, found = Case(run), translated(diagnose(run), tongue())
    colours = ";".join(f"--{name}:{value}" for name, value in _COLOURS.items())
    parts = [Markup('<div style="{};max-width:72em">').format(Markup(colours))]
    parts.append(_text("<p><b>{}</b> {}</p>", run.name, _state(case)))
    mark = Markup("border-left:4px solid {};padding-left:.6em").format(_MARKS[found.severity])
    parts.append(Markup('<p style="{}"><b>{}</b></p>').format(mark, visible(found.headline)))
    shown = [f for f in found.findings if f.title != found.headline][:5]
    parts += [_text("<p>{} <span style='opacity:.75'>{}</span></p>", f.title, f.meaning) for f in shown]
    figures = dict(figures_at_a_glance(case))
    if figures:
        rows = Markup("").join(
            _text("<tr><td>{}</td><td>{}</td><td>{}</td></tr>", n, b, f"{a} ({i})" if i else a)
            for n, (b, a, i) in figures.items()
        )
        head = _text("<tr><th></th><th>{}</th><th>{}</th></tr>", phrase("cell.before"), phrase("cell.after"))
        parts.append(Markup("<table>{}{}</table>").format(head, rows))
    parts.append(Markup('<div style="display:flex;flex-wrap:wrap;gap:1em">'))
    for panel in panels.panels_of([case]):
        if (svg := curves.draw_panel(panel, [case])) is not None:
            box = '<figure style="margin:0;width:22em"><figcaption>{}</figcaption>{}</figure>'
            column = told_column(panel.column)
            parts.append(Markup(box).format(visible(column.title or column.words), Markup(svg)))
    parts.append(Markup("</div></div>"))
    return str(Markup("\n").join(parts))


def _text(pattern: str, *values: str) -> Markup:
    """HTML with values put in, escaped and with no character that hides or reorders others."""
    return Markup(pattern).format(*(escape(visible(v)) for v in values))


def _state(case: Case) -> str:
    state = str(case.status.get("state") or "")
    total = case.status.get("total_steps")
    n = f"{case.steps:,}"
    done = phrase("cell.updates_of", n=n, total=f"{total:,}") if total else phrase("cell.updates", n=n)
    told = state_said(state) if state else phrase("cell.not_begun")
    return f"{told}, {done}"
