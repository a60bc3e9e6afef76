"""``prefiere doctor``: what a run shows, and the next recipe. ``prefiere probe``: whether the machinery is sound."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.text import Text as Styled

from prefiere.asked.language import Tongue, tongue
from prefiere.console import Json, command, console, hush, say
from prefiere.files import write_text
from prefiere.run import Run, RunError

if TYPE_CHECKING:  # with scipy, which no other command needs
    from prefiere.doctor.diagnose import Diagnosis
    from prefiere.doctor.plain.tell import Told
    from prefiere.doctor.prescribe import Prescribed

STYLES = {"good": "bold green", "info": "bold", "warning": "bold yellow", "bad": "bold red"}
LINES = 20
"""Lines of the data that are named on a terminal; --json has all that are kept, and how many there are."""


@command
def doctor(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run folder.")],
    apply: Annotated[
        Path | None,
        typer.Option("--apply", metavar="RECIPE", help="Write the next run's recipe, with what it changes."),
    ] = None,
    json: Json = False,
) -> dict[str, Any]:
    """Say in plain words what a run shows, why, and what to change. Nothing of the run is altered."""
    from prefiere.doctor.diagnose import diagnose
    from prefiere.doctor.plain.tell import plain_verdict, plain_words, told
    from prefiere.doctor.prescribe import prescribe

    spoken, opened = tongue(), Run.open(run)
    found = diagnose(opened)
    show(found, spoken, console())
    changes = prescribe(found)
    result = found.to_dict() | {
        "verdict": plain_verdict(found, spoken),
        "plain": [
            {
                "key": t.finding.key,
                "headline": t.headline,
                "meaning": t.meaning,
                "saw": list(t.seen),
                "try": list(t.tries),
            }
            for t in (told(f, spoken) for f in found.findings)
        ],
        "changes": {c.remedy.setting: c.remedy.value for c in changes},
    }
    if apply is not None:
        write_recipe(opened, changes, apply, spoken)
        result["recipe"] = str(apply)
        around = plain_words(spoken).around
        say((around["changed"] if changes else around["unchanged"]).format(path=apply))
    return result


def show(found: Diagnosis, spoken: Tongue, to: Console) -> None:
    """The verdict, then each finding: what it means, what was seen, what to try, which lines."""
    from prefiere.doctor.plain.tell import plain_verdict, plain_words, told

    words = plain_words(spoken).around
    to.print(Styled(plain_verdict(found, spoken), STYLES[found.severity]), soft_wrap=True)
    for finding in found.findings:
        show_finding(told(finding, spoken), words, to)


def show_finding(t: Told, words: dict[str, str], to: Console) -> None:
    """How grave it is, its headline, how sure it is; then what it means, what was seen, what to try, which lines."""
    to.print()
    mark = Styled.assemble((f"{words[t.finding.severity]}  ", STYLES[t.finding.severity]), (t.headline, "bold"))
    mark.append(f"  ({words[t.finding.sure]})", "dim")
    to.print(mark, soft_wrap=True)
    to.print(f"  {t.meaning}", markup=False, soft_wrap=True)
    for name, lines in ((words["saw"], t.seen), (words["try"], t.tries)):
        if lines:
            to.print(f"  {name}:", markup=False, style="dim")
        for line in lines:
            to.print(f"    - {line}", markup=False, soft_wrap=True)
    if t.finding.lines:
        more = t.finding.lines_of - len(t.finding.lines[:LINES])
        rest = f", {words['more'].format(n=f'{more:,}')}" if more > 0 else ""
        to.print(f"  {words['lines']}: {', '.join(t.finding.lines[:LINES])}{rest}", markup=False, soft_wrap=True)


def write_recipe(run: Run, changes: tuple[Prescribed, ...], path: Path, spoken: Tongue) -> None:
    """The settings of a run with the changes made, each with its reason in a comment above it.

    Raises RunError where the file is there already: a recipe of somebody's is not replaced.
    """
    from prefiere.doctor.plain.tell import reason, setting_said
    from prefiere.doctor.prescribe import next_recipe

    if path.exists():
        raise RunError(f"{path} is there already. Name a new file.")
    recipe = next_recipe(run.recipe, changes, f"{run.folder}-next")
    text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)
    why = {c.remedy.setting: f"# {setting_said(c.remedy, spoken)}, {reason(c, spoken)}" for c in changes}
    lines = []
    for line in text.splitlines():
        key = line.partition(":")[0]
        lines += [why[key]] if key in why else []
        lines.append(line)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "\n".join(lines) + "\n")


@command
def probe(
    model: Annotated[str, typer.Option("--model", "-m", help="Hub id, folder of a model or adapter, or a run.")],
    rest: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings to probe as well.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Keep its two runs here [default: nowhere].")] = None,
    json: Json = False,
) -> dict[str, Any]:
    """Tell a fault of the machinery from one of the data: a known word and a known token, learnt in about a minute."""
    from tempfile import TemporaryDirectory

    from prefiere import recipe
    from prefiere.api.probe import probe as probed

    hush()
    given = {s.key: s.value for s in (recipe.override(text) for text in rest or [])}
    with TemporaryDirectory() as temporary:
        found = probed(model, out or temporary, **given)
    for task in (found.preference, found.reward):
        say(str(task))
    say(found.verdict)
    tasks = {"preference": asdict(found.preference), "reward": asdict(found.reward)}
    return {**tasks, "sound": found.sound, "verdict": found.verdict}
