"""``prefiere recipe``: every setting explained, recipes checked, a schema for editors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from prefiere.cli.train import SettingsCommand
from prefiere.console import Json, command, console, progress, say, table
from prefiere.files import write_text
from prefiere.methods import METHODS

app = typer.Typer(help="Every setting with its default and meaning.", no_args_is_help=True)


@app.command()
@command
def show(
    method: Annotated[str | None, typer.Argument(help="Only this command's.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="As the page docs/settings.md.")] = False,
    json: Json = False,
) -> dict[str, Any]:
    """List the settings of a method: what each may be, its default, its meaning."""
    from prefiere import recipe
    from prefiere.asked import pages

    if method is not None and method not in METHODS:
        raise recipe.RecipeError(f"{method} is not a method: there are {', '.join(METHODS)}.")
    tables = {name: pages.settings_table(name) for name in ([method] if method else METHODS)}
    if markdown:
        typer.echo(pages.settings_page(), nl=False)
    elif method is None:
        names = [(name, str(len(tables[name])), row.help) for name, row in METHODS.items()]
        console().print(table("", ("method", "settings", "what it does"), names))
        say("\nprefiere recipe show METHOD lists its settings; docs/settings.md has all of them.")
    else:
        rows = [(k, d, m, w) for k, m, d, w in tables[method]]
        console().print(table(f"prefiere {method}", ("key", "default", "may be", "meaning"), rows))
    keys = ("key", "may_be", "default", "meaning")
    return {name: [dict(zip(keys, row, strict=True)) for row in rows] for name, rows in tables.items()}


@app.command(cls=SettingsCommand)
@command
def validate(
    rest: Annotated[list[str], typer.Argument(metavar="FILE | SETTING", help="Recipes, and settings over them.")],
    json: Json = False,
) -> dict[str, Any]:
    """Check recipes without running them."""
    from prefiere import recipe
    from prefiere.asked import arguments

    words = arguments.as_settings(rest, others=True)
    files = [*words.others, *([words.recipe] if words.recipe else [])]
    if not files:
        raise recipe.RecipeError("name at least one recipe: prefiere recipe validate recipe.yaml.")
    found = {path: recipe.validate(path, words.settings, words.problems) for path in files}
    for path, settings in found.items():
        say(f"{path}: a valid recipe for prefiere {settings.method}")
    return {"recipes": {path: settings.model_dump(mode="json") for path, settings in found.items()}}


@app.command("from")
@command
def from_file(
    file: Annotated[
        str, typer.Argument(help="A YAML file of TRL, LLaMA-Factory or Axolotl, or a text with a command of TRL.")
    ],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The recipe, a new file. Default: stdout.")] = None,
    tool: Annotated[
        Literal["trl", "llama-factory", "axolotl"] | None,
        typer.Option("--tool", help="Whose file it is, where its keys do not say so."),
    ] = None,
    method: Annotated[
        str | None, typer.Option("--method", help="The trainer, where a file of TRL does not say it: dpo, sft, ...")
    ] = None,
    json: Json = False,
) -> dict[str, Any]:
    """Write a recipe from another tool's file, and list what of it has no counterpart."""
    from prefiere.asked.migrate import migrate
    from prefiere.recipe import RecipeError

    found = migrate(file, tool, method)
    if out is not None:
        if out.exists():
            raise RecipeError(f"{out} is there already. Name a new file, or remove that one.")
        write_text(out, found.text())
        say(f"{out}: a recipe for prefiere {found.settings['method']}, from {file}, a file of {found.tool}", progress())
    elif not json:
        typer.echo(found.text(), nl=False)
    for line in found.lines() if out is not None else ():
        say(line, progress())
    return {
        "tool": found.tool,
        "recipe": found.settings,
        "differs": found.differs,
        "left": found.left,
        "idle": found.idle,
        "defaults": sorted(found.of_tool),
    }


@app.command("schema")
@command
def print_schema(json: Json = False) -> dict[str, Any] | None:
    """Print the JSON Schema of a recipe, for editors."""
    import json as json_module

    from prefiere.asked.pages import schema

    if json:
        return schema()
    typer.echo(json_module.dumps(schema(), indent=2))
    return None


def variables(text: str | None) -> dict[str, Any] | None:
    """Variables of a chat template, written as a YAML map. Raises RecipeError at anything else."""
    if text is None:
        return None
    import yaml

    from prefiere.recipe import RecipeError

    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError:
        found = None
    if not isinstance(found, dict):
        raise RecipeError(f"--template-kwargs takes a map, as in '{{enable_thinking: false}}', not {text!r}.")
    return found
