"""The command line: one thin function per command. Everything heavy is imported inside the command that needs it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from prefiere.console import command, console, progress, table

app = typer.Typer(
    help="Align language models with human preferences, and see whether it worked.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
recipes = typer.Typer(help="Every setting with its default and meaning.", no_args_is_help=True)
app.add_typer(recipes, name="recipe")

Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object; all else goes to stderr.")]
Rest = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[RECIPE] [KEY=VALUE]...", help="A recipe file, and settings that override it.", show_default=False
    ),
]
Model = Annotated[str | None, typer.Option("--model", "-m", help="Hub id, folder of a model or adapter, or a run.")]
Data = Annotated[str | None, typer.Option("--data", "-d", help="File, folder or hub id, in any known layout.")]
Out = Annotated[str | None, typer.Option("--out", "-o", help="The run folder.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Of data order, split and sampling.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Start over instead of continuing what is in the run folder.")]


def main() -> None:
    """The console script."""
    app()


def _train(method: str, rest: list[str] | None, fresh: bool, **flags: Any) -> dict[str, Any]:
    """Read the settings and hand them to the method's training loop."""
    from prefiere import api, recipe

    paths = [text for text in rest or [] if "=" not in text]
    if len(paths) > 1:
        raise recipe.RecipeError(f"one recipe at most, not {', '.join(paths)}. Settings are written key=value.")
    overrides = [text for text in rest or [] if "=" in text]
    given = {key: value for key, value in flags.items() if value is not None}
    settings = recipe.load(method, paths[0] if paths else None, given, overrides)
    run = api.train(settings, fresh=fresh, console=progress())
    rows = run.metrics
    page = run.folder / "report.html"
    say = console().print
    if run.status["state"] == "finished":
        say(f"Model: {run.model}", f"Try it: prefiere chat {run.folder}", sep="\n", markup=False)
    say(f"Report: {page}", markup=False)
    made: dict[str, Any] = {"run": run.folder, "model": run.model, "report": page}
    return {**made, **run.status, "stopped": run.stopped, "metrics": rows[-1] if rows else {}}


@app.command()
@command
def sft(
    rest: Rest = None,
    model: Model = None,
    data: Data = None,
    out: Out = None,
    seed: Seed = None,
    fresh: Fresh = False,
    json: Json = False,
) -> dict[str, Any]:
    """Supervised fine-tuning: imitate the answers. The same command continues a run that was stopped."""
    return _train("sft", rest, fresh, model=model, data=data, out=out, seed=seed)


@app.command()
@command
def dpo(
    rest: Rest = None,
    model: Model = None,
    data: Data = None,
    out: Out = None,
    seed: Seed = None,
    fresh: Fresh = False,
    json: Json = False,
) -> dict[str, Any]:
    """Optimise preferences directly (DPO and its family). The same command continues a run that was stopped."""
    return _train("dpo", rest, fresh, model=model, data=data, out=out, seed=seed)


@app.command()
@command
def report(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Run folders; several are overlaid.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The HTML file.")] = Path("report.html"),
    json: Json = False,
) -> dict[str, Any]:
    """Write one self-contained HTML file about one or several runs."""
    from prefiere.report.render import render
    from prefiere.run import Run

    path = render([Run.open(run) for run in runs], out)
    console().print(f"Report: {path}")
    return {"report": path}


@recipes.command()
@command
def show(
    method: Annotated[Literal["sft", "dpo"] | None, typer.Argument(help="Only this command's.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="As the page docs/settings.md.")] = False,
    json: Json = False,
) -> dict[str, Any]:
    """List every setting: what it may be, its default, its meaning."""
    from prefiere import recipe

    names = [method] if method else list(recipe.METHODS)
    tables = {name: recipe.table(name) for name in names}
    if markdown:
        typer.echo(recipe.markdown(), nl=False)
    else:
        for name, rows in tables.items():
            console().print(
                table(
                    f"prefiere {name}", ("key", "default", "may be", "meaning"), [(k, d, m, w) for k, m, d, w in rows]
                )
            )
    keys = ("key", "may_be", "default", "meaning")
    return {name: [dict(zip(keys, row, strict=True)) for row in rows] for name, rows in tables.items()}


@recipes.command()
@command
def validate(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Recipes.")], json: Json = False
) -> dict[str, Any]:
    """Check recipes without running them."""
    from prefiere import recipe

    found = {str(path): recipe.validate(path) for path in files}
    for path, settings in found.items():
        console().print(f"{path}: a valid recipe for prefiere {settings.method}", markup=False)
    return {"recipes": {path: settings.model_dump(mode="json") for path, settings in found.items()}}


@recipes.command()
@command
def schema(json: Json = False) -> dict[str, Any] | None:
    """Print the JSON Schema of a recipe, for editors."""
    import json as json_module

    from prefiere import recipe

    if json:
        return recipe.schema()
    typer.echo(json_module.dumps(recipe.schema(), indent=2))
    return None
