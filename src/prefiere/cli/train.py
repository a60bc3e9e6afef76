"""The training commands: one for each method, its settings read from flags, recipe and key=value alike."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import Annotated, Any, get_args

import typer
from typer.core import TyperCommand, TyperGroup

from prefiere.asked.language import in_words, tongue
from prefiere.console import Json, command, console, hush, progress, say, table
from prefiere.methods import FIGURES, METHODS, Method
from prefiere.run import Run, RunError


def _complete(incomplete: str) -> list[str]:
    keys = dict.fromkeys(key for row in METHODS.values() for key in row.settings.model_fields)
    return [f"{key}=" for key in keys if key.startswith(incomplete)]


Rest = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="RECIPE | SETTING",
        help="A recipe file (or --config FILE), and settings over it: --key value, --key=value or key=value.",
        show_default=False,
        autocompletion=_complete,
    ),
]
Model = Annotated[str | None, typer.Option("--model", "-m", help="Hub id, folder of a model or adapter, or a run.")]
Data = Annotated[str | None, typer.Option("--data", "-d", help="File, folder or hub id, in any known layout.")]
Out = Annotated[str | None, typer.Option("--out", "-o", help="The run folder.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Of data order, split and sampling.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Start over instead of continuing what is in the run folder.")]
Rewards = Annotated[
    list[str] | None,
    typer.Option("--reward", "-r", help="Reward model (folder, hub id, run) or module:function; several may be given."),
]
Asked = Annotated[
    str | None, typer.Option("--prompts", "-p", help="Text with one prompt a line, or data in any layout.")
]


class Commands(TyperGroup):
    """All commands. What is a command of its own elsewhere, and a loss of ``dpo`` here, is said to be that."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that the first word names."""
        losses = get_args(METHODS["dpo"].settings.model_fields["loss_type"].annotation)
        if args and args[0] in losses and self.get_command(ctx, args[0]) is None:
            ctx.fail(in_words("seen.a_loss", loss=args[0]))
        return super().resolve_command(ctx, args)


class SettingsCommand(TyperCommand):
    """A command that takes settings as ``--key value``: they are read in asked/arguments.py."""

    ignore_unknown_options = True

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """The words that are no options of the command. A long name after one dash is refused before anything is read:
        ``-max_steps=5`` would be ``-m`` with the value ``ax_steps=5``."""
        from prefiere.asked.arguments import one_dash

        own = {name.removeprefix("--") for p in self.params for name in p.opts if name.startswith("--")}
        words = args[: args.index("--")] if "--" in args else args
        wrong = [told for word in words if (told := one_dash(word, own)) is not None]
        if wrong and not ctx.resilient_parsing:  # a shell completes words that are not whole yet
            ctx.fail("\n".join(wrong))
        return super().parse_args(ctx, args)


class TrainingCommand(SettingsCommand):
    """A command whose help has the settings that matter, and where the others stand."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """The command's options, then the settings of its method."""
        super().format_help(ctx, formatter)
        from prefiere.asked.pages import first_settings

        rows = first_settings(str(self.name))
        heads = [in_words(f"help.{name}") for name in ("key", "default", "meaning")]
        console().print(table(in_words("help.first"), heads, rows))
        say(f"\n{in_words('help.others', method=self.name)}")


def _on_data(method: Method) -> Callable[..., dict[str, Any]]:
    """The command of a method that learns from data as it is."""

    def train(
        rest: Rest = None,
        model: Model = None,
        data: Data = None,
        out: Out = None,
        seed: Seed = None,
        fresh: Fresh = False,
        json: Json = False,
    ) -> dict[str, Any]:
        return run_method(method.name, rest, fresh, model=model, data=data, out=out, seed=seed)

    return train


def _on_policy(method: Method) -> Callable[..., dict[str, Any]]:
    """The command of a method that learns from its own answers to prompts."""

    def train(
        rest: Rest = None,
        model: Model = None,
        reward: Rewards = None,
        prompts: Asked = None,
        out: Out = None,
        seed: Seed = None,
        fresh: Fresh = False,
        json: Json = False,
    ) -> dict[str, Any]:
        rewards = reward[0] if reward and len(reward) == 1 else reward or None
        return run_method(method.name, rest, fresh, model=model, reward=rewards, data=prompts, out=out, seed=seed)

    return train


def add_to(app: typer.Typer) -> None:
    """Add the command of every method."""
    for row in METHODS.values():
        train = _on_policy(row) if row.family == "policy" else _on_data(row)
        train.__doc__ = f"{row.help} The same command continues a run that was stopped."
        app.command(row.name, cls=TrainingCommand)(command(train))


def run_method(method: str, rest: list[str] | None, fresh: bool, **flags: Any) -> dict[str, Any]:
    """Read the settings and hand them to the method's training loop."""
    from prefiere.asked.arguments import settings_of

    settings = settings_of(method, rest or [], flags)  # all that is wrong is said before torch is there
    import prefiere.train.setup  # noqa: F401 (with it, all that training imports)
    from prefiere.api import training
    from prefiere.train.host import leave_imports_alone
    from prefiere.world import leave_group

    hush()
    leave_imports_alone()
    run = training.train(settings, fresh=fresh, console=progress())
    leave_group()
    rows, page = run.metrics, run.folder / "report.html"
    finished = run.status["state"] == "finished"
    findings = how_it_went(run)
    folder = shlex.quote(str(run.folder))
    if finished:
        say(in_words("console.model", path=run.model))
        say(in_words("console.score" if method == "reward" else "console.use", run=folder))
    if page.is_file():  # where it failed, the run has said why
        say(in_words("console.report", path=page))
    made: dict[str, Any] = {"run": run.folder, "model": run.model if finished else None}
    made["report"] = page if page.is_file() else None
    return {
        **made,
        **run.status,
        **findings,
        "stopped": run.stopped.text if run.stopped else None,
        "metrics": rows[-1] if rows else {},
    }


def how_it_went(run: Run) -> dict[str, Any]:
    """Say what a run shows: the verdict, the three figures that say most of its method, and what to do next.

    Returns verdict and findings for --json. A folder that is damaged meanwhile is said; the run is over all the same.
    """
    from prefiere.doctor.case import Case  # with scipy, which no other command of this file needs
    from prefiere.doctor.diagnose import diagnose
    from prefiere.doctor.plain.tell import translated
    from prefiere.doctor.words import evidence_line

    try:
        case, told = Case(run), diagnose(run)
    except RunError as e:
        say(in_words("console.no_verdict", why=e))
        return {"verdict": None, "findings": []}
    here = translated(told, tongue())
    say(f"\n{here.headline}")
    for name in FIGURES[case.family]:
        if (seen := case.seen(name)) is not None:
            say(f"  {evidence_line(seen.key, seen.change, *case.where).within(tongue())}")
    grave = here.cause or next((f for f in here.findings if f.severity in ("bad", "warning")), None)
    for remedy in grave.remedy[:2] if grave is not None else ():
        say(f"  {in_words('console.next', remedy=remedy)}")
    say("")
    return {"verdict": told.headline, "findings": told.to_dict()["findings"]}
