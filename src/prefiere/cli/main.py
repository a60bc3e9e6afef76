"""The command line: one thin function per command. Everything heavy is imported inside the command that needs it."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from prefiere.asked.language import in_words, speaking, tongue
from prefiere.asked.spoken_help import asked_for, speak, spoken_headings
from prefiere.cli import doctor, env, estimate, feedback, recipe, train, votes
from prefiere.cli.train import Commands, SettingsCommand
from prefiere.console import Json, command, console, hush, progress, say

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(recipe.app, name="recipe")
app.callback()(env.version_option)
train.add_to(app)
app.command(cls=SettingsCommand)(estimate.estimate)
app.command()(env.env)
app.command()(doctor.doctor)
app.command(cls=SettingsCommand, context_settings={"ignore_unknown_options": False})(doctor.probe)
for _command in (feedback.serve, feedback.collect, feedback.judge, feedback.loop):
    app.command()(_command)
app.add_typer(votes.app, name="votes")


def main() -> None:
    """The console script."""
    # Threads that wait for work soon sleep: spinning made sampling six times slower on a busy machine, and with no
    # spinning at all a small model trained no faster on two cores than on one.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    logging.getLogger("bitsandbytes").setLevel(logging.CRITICAL)  # it misses kernels that nothing here needs
    with speaking(asked_for(sys.argv[1:])):
        shown = typer.main.get_command(app)
        speak(shown, tongue())
        with spoken_headings():
            shown()


@app.command()
@command
def demo(
    prefer: Annotated[
        Literal["encyclopedic", "casual"], typer.Option(help="Which style of answer to prefer.")
    ] = "encyclopedic",
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Train the base model again, too.")] = False,
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the demo's runs go.")] = Path("runs/demo"),
    ask: Annotated[bool, typer.Option("--ask", help="Decide yourself: ten votes, and what they change.")] = False,
    json: Json = False,
) -> dict[str, Any]:
    """Align a small bilingual model, shipped with the package, and see what changed. No network."""
    from prefiere.demo.main import base_model, demo

    hush()
    if ask:
        from prefiere.demo.ask import ask_demo

        return ask_demo(base_model(out, console(), rebuild=rebuild), out / "ask", console())
    return demo(prefer=prefer, rebuild=rebuild, out=out, console=console())


@app.command(cls=SettingsCommand)
@command
def data(
    rest: Annotated[
        list[str], typer.Argument(metavar="DATA | SETTING", help="File, folder or hub id; settings, as for dpo.")
    ],
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Shows the examples in its tokens, and is measured on them.")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Judge 15 pairs without knowing their labels.")] = False,
    clean: Annotated[
        Path | None, typer.Option("--clean", metavar="OUT", help="Write the data without what would be learnt wrongly.")
    ] = None,
    run: Annotated[
        str | None, typer.Option("--run", help="With --clean: leave out the labels that this run found swapped, too.")
    ] = None,
    json: Json = False,
) -> dict[str, Any]:
    """Show the layout, three examples with the loss mask coloured, what would be dropped, and what would go wrong.

    Exits with 4 where a run on this data would be ruined.
    """
    from prefiere import recipe
    from prefiere.asked import arguments
    from prefiere.cli import data as shown
    from prefiere.settings import DPO

    words = arguments.as_settings(rest, others=True)
    sources = [*words.others, *(str(g.value) for g in words.settings if g.key == "data")]
    if run is not None and clean is None:
        words.problems.append("--run names the run whose swapped labels --clean leaves out: give --clean OUT, too.")
    if check and clean is not None:
        words.problems.append("--check and --clean are two commands: give one of them.")
    if len(sources) != 1:
        words.problems.append(
            f"name one source of data, not {', '.join(sources) or 'none'}: prefiere data pairs.jsonl."
        )
    flags = {"model": model or "", "data": next(iter(sources), "?"), "out": ""}
    settings = recipe.load("dpo", words.recipe, flags, words.settings, words.problems)
    assert isinstance(settings, DPO)
    if check:
        return shown.check(settings, console(), lambda text: str(console().input(text)))
    if clean is not None:
        return shown.clean(settings, clean, run, console())
    return shown.inspect(settings, model=model, console=console())


Prompts = Annotated[
    str | None, typer.Option("--prompts", "-p", help="Text with one prompt a line, or data in any known layout.")
]
Temperature = Annotated[float, typer.Option("--temperature", min=0.0, help="0 is greedy.")]
TopP = Annotated[float, typer.Option("--top-p", min=0.0, max=1.0, help="Sample from the nucleus of this mass.")]
NewTokens = Annotated[int, typer.Option("--max-new-tokens", min=1, help="Of an answer.")]
Samples = Annotated[int, typer.Option("--samples", "-n", min=1, help="Answers to each prompt.")]
SampleSeed = Annotated[int, typer.Option("--seed", help="The same seed, the same answers.")]
TemplateKwargs = Annotated[
    str | None, typer.Option("--template-kwargs", help="Variables of the chat template, as {enable_thinking: false}.")
]
Trust = Annotated[bool, typer.Option("--trust-remote-code", help="Run code, and load pickles, that come with a model.")]


@app.command()
@command
def sample(
    model: Annotated[str, typer.Argument(help="Hub id, folder, run, or a server's: http://host:8000/v1#NAME.")],
    prompts: Annotated[
        str, typer.Option("--prompts", "-p", help="Text with one prompt a line, or data in any layout.")
    ],
    samples: Samples = 1,
    temperature: Temperature = 1.0,
    top_p: TopP = 1.0,
    max_new_tokens: NewTokens = 128,
    seed: SampleSeed = 0,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Answer the first so many prompts only.")] = None,
    template_kwargs: TemplateKwargs = None,
    trust: Trust = False,
    json: Json = False,
) -> dict[str, Any]:
    """Answer the prompts of a file."""
    from prefiere.api import use
    from prefiere.cli.models import show_answers
    from prefiere.console import Display

    hush()
    asked = use.texts_of(prompts, limit)
    with Display(progress()).stage(in_words("progress.sampling"), len(asked) * samples) as advance:
        answers = use.sample(
            model,
            asked,
            samples=samples,
            temperature=temperature,
            top_p=top_p,
            max_new_tokens=max_new_tokens,
            seed=seed,
            template_kwargs=recipe.variables(template_kwargs),
            trust=trust,
            progress=advance,
        )
    show_answers(answers, console())
    return {"model": model, "answers": answers}


@app.command()
@command
def chat(
    model: Annotated[str, typer.Argument(help="Hub id, folder of a model or adapter, or a run.")],
    temperature: Temperature = 0.7,
    top_p: TopP = 1.0,
    max_new_tokens: NewTokens = 256,
    seed: SampleSeed = 0,
    template_kwargs: TemplateKwargs = None,
    trust: Trust = False,
    json: Json = False,
) -> dict[str, Any]:
    """Talk with a model."""
    from prefiere.api import use
    from prefiere.cli import models

    hush()
    how: dict[str, Any] = {"temperature": temperature, "top_p": top_p, "max_new_tokens": max_new_tokens, "seed": seed}
    talker = use.chat(model, **how, template_kwargs=recipe.variables(template_kwargs), trust=trust)
    if not talker.remembers:
        progress().print(in_words("use.no_template", model=model), style="dim", markup=False)
    return models.chat(talker, models.typed(console()), console())


@app.command()
@command
def compare(
    before: Annotated[str, typer.Argument(metavar="RUN | BEFORE", help="A run alone: its model before and after.")],
    after: Annotated[str | None, typer.Argument(metavar="[AFTER]", help="The other model.")] = None,
    prompts: Prompts = None,
    judge: Annotated[
        str | None, typer.Option(help="Scores answers: module:function, a reward model, or none. Default: the run's.")
    ] = None,
    samples: Samples = 1,
    temperature: Temperature = 1.0,
    top_p: TopP = 1.0,
    max_new_tokens: NewTokens = 128,
    seed: SampleSeed = 0,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Prompts at most.")] = 64,
    template_kwargs: TemplateKwargs = None,
    trust: Trust = False,
    ask: Annotated[str | None, typer.Option("--ask", metavar="STORE", help="Let people judge, blind.")] = None,
    json: Json = False,
) -> dict[str, Any]:
    """Ask two models the same prompts with the same seeds, side by side, judged where there is a judge."""
    from prefiere.api import use
    from prefiere.cli.models import show_comparison
    from prefiere.console import Display

    hush()
    if ask is not None:
        how = (temperature, top_p, max_new_tokens, seed)
        return feedback.compare_by_people(ask, before, after, prompts, how, limit=limit, trust=trust)
    with Display(progress()).phase(in_words("progress.sampling")):
        found = use.compare(
            before,
            after,
            prompts=prompts,
            judge=judge,
            samples=samples,
            temperature=temperature,
            top_p=top_p,
            max_new_tokens=max_new_tokens,
            seed=seed,
            limit=limit,
            template_kwargs=recipe.variables(template_kwargs),
            trust=trust,
        )
    show_comparison(found, console())
    return found.to_dict()


@app.command(cls=SettingsCommand)
@command
def score(
    rest: Annotated[
        list[str],
        typer.Argument(
            metavar="RM | SETTING",
            help="Reward models: runs, folders or hub ids; and settings of reading, as for reward.",
        ),
    ],
    data: Annotated[str, typer.Option("--data", "-d", help="Pairs or single answers, in any known layout.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="A JSONL file with the scores of each example.")
    ] = None,
    trust: Trust = False,
    json: Json = False,
) -> dict[str, Any]:
    """Score answers; of pairs, how right the scores are, how sure, and how much of it is length."""
    from prefiere import recipe
    from prefiere.asked import arguments

    words = arguments.as_settings(rest, others=True)
    models = words.others
    if not models:
        words.problems.append(in_words("met.which_reward_model"))
    flags = {"model": next(iter(models), "?"), "data": data, "out": ""}
    settings = recipe.load("reward", words.recipe, flags, words.settings, words.problems)
    given = settings.model_dump(include=settings.model_fields_set - {"method", "model", "data", "out"})
    odd = sorted(
        given.keys() - {"data_split", "columns", "on_bad", "max_length", "pairs_per_prompt", "template_kwargs"}
    )
    if odd:
        raise recipe.RecipeError(f"{odd[0]} is a setting of training: scoring does not have it.")
    from prefiere.cli import score
    from prefiere.console import Display

    hush()
    return score.score(models, data, out=out, trust=trust, display=Display(progress()), console=console(), **given)


@app.command()
@command
def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A finished run.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="A new folder.")],
    merge: Annotated[bool, typer.Option("--merge", help="Merge an adapter into its base.")] = False,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option("--dtype", help="Of the weights [default: as in the checkpoint]."),
    ] = None,
    gguf: Annotated[
        Literal["f32", "f16", "bf16", "q8_0"] | None,
        typer.Option("--gguf", case_sensitive=False, help="Also one file for llama.cpp and Ollama, with such weights."),
    ] = None,
    step: Annotated[
        int | None, typer.Option("--step", min=1, help="The model of this step's checkpoint [default: the last].")
    ] = None,
    push: Annotated[str | None, typer.Option("--push", metavar="ORG/NAME", help="Upload it to the hub.")] = None,
    public: Annotated[bool, typer.Option("--public", help="With --push: for everybody to read.")] = False,
    prompts: Prompts = None,
    trust: Trust = False,
    json: Json = False,
) -> dict[str, Any]:
    """Write a run's model as a plain transformers or PEFT folder with a card, its answers verified."""
    from prefiere.publish import export as publishing

    hush()
    wanted = publishing.Wanted(merge, dtype, gguf, step, push, public, prompts, trust)
    return publishing.publish(run, out, wanted, console())


@app.command()
@command
def report(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Run folders; several are overlaid.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="The HTML file [default: the run's own; of several, report.html]."),
    ] = None,
    ask: Annotated[
        str | None, typer.Option("--ask", help="Keep in the runs what people said of them, blind, in this store.")
    ] = None,
    json: Json = False,
) -> dict[str, Any]:
    """Write one self-contained HTML file about one or several runs."""
    from prefiere.report.page import is_report, render
    from prefiere.run import Run, RunError

    opened = [Run.open(run) for run in runs]
    if out is None:
        out = Path(opened[0].folder if len(opened) == 1 else ".") / "report.html"
        if len(opened) > 1 and out.exists() and not is_report(out):
            raise RunError(in_words("met.no_report", out=out))
    if ask is not None:
        from prefiere.cli.feedback import keep_blind

        keep_blind(ask, opened)
    path = render(opened, out)
    say(in_words("console.report", path=path))
    return {"report": path}
