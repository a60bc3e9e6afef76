"""``prefiere recipe``: every setting explained, recipes checked, a schema for editors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from prefiere.console import Json, command, console, say, table
from prefiere.methods import METHODS

app = typer.Typer(help="Every setting with its default and meaning.", no_args_is_help=True)


@app.command()
@command
def show(
    method: Annotated[str | None, typer.Argument(help="Only this command's.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="As the page docs/settings.md.")] = False,
    json: Json = False,
) -> dict[str, Any]:
    """List every setting: what it may be, its default, its meaning."""
    from prefiere import recipe

    if method is not None and method not in METHODS:
        raise recipe.RecipeError(f"{method} is not a method: there are {', '.join(METHODS)}.")
    names = [method] if method else list(METHODS)
    tables = {name: recipe.settings_table(name) for name in names}
    if markdown:
        typer.echo(recipe.settings_page(), nl=False)
    else:
        for name, rows in tables.items():
            console().print(
                table(
                    f"prefiere {name}", ("key", "default", "may be", "meaning"), [(k, d, m, w) for k, m, d, w in rows]
                )
            )
    keys = ("key", "may_be", "default", "meaning")
    return {name: [dict(zip(keys, row, strict=True)) for row in rows] for name, rows in tables.items()}


@app.command()
@command
def validate(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Recipes.")], json: Json = False
) -> dict[str, Any]:
    """Check recipes without running them."""
    from prefiere import recipe

    found = {str(path): recipe.validate(path) for path in files}
    for path, settings in found.items():
        say(f"{path}: a valid recipe for prefiere {settings.method}")
    return {"recipes": {path: settings.model_dump(mode="json") for path, settings in found.items()}}


@app.command()
@command
def schema(json: Json = False) -> dict[str, Any] | None:
    """Print the JSON Schema of a recipe, for editors."""
    import json as json_module

    from prefiere import recipe

    if json:
        return recipe.schema()
    typer.echo(json_module.dumps(recipe.schema(), indent=2))
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
