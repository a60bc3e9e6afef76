"""The commands that ask people: ``serve``, ``collect``, ``judge``, ``loop``, and what ``compare --ask`` does."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from prefiere.cli.votes import Where, opened
from prefiere.console import Json, command, say
from prefiere.run import Run


@command
def serve(
    store: Where,
    model: Annotated[
        list[str] | None, typer.Option("--model", "-m", help="Answers what people ask on the page; two answer blind.")
    ] = None,
    prompts: Annotated[
        str | None, typer.Option("--prompts", "-p", help="Questions to pick from, with --model; the first nine.")
    ] = None,
    runs: Annotated[
        Path | None, typer.Option("--runs", help="Show every run in this folder on the page, live.")
    ] = None,
    guidelines: Annotated[
        Path | None, typer.Option("--guidelines", help="Markdown that people read before they vote.")
    ] = None,
    host: Annotated[str, typer.Option("--host", help="Where to listen; other machines reach 0.0.0.0.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes any free one.")] = 8600,
    token: Annotated[bool, typer.Option("--token", help="Ask for a link on this machine, too.")] = False,
    json: Json = False,
) -> dict[str, Any]:
    """Ask people which of two answers they prefer, in their browser, until Ctrl-C."""
    from prefiere.feedback.page.serve import serve
    from prefiere.feedback.store import StoreError

    models = model or []
    if len(models) > 2:
        raise StoreError("name one model, which answers twice, or two, which answer once each: --model M [--model M2].")
    if prompts is not None and not models:
        raise StoreError("--prompts are questions for a model: name it with --model M, or use `prefiere collect`.")
    questions = _questions(prompts) if prompts is not None else []
    process = [sys.executable, "-m", "prefiere.cli.sampler", *models] if models else []
    with opened(store, create=True) as s:
        return serve(s, guidelines=guidelines, host=host, port=port, tokens=token, say=say, sampler=process, runs=runs,
                     questions=questions)  # fmt: skip


def _questions(name: str) -> list[str]:
    """The first prompts of a file that are text, or one message of a user."""
    from prefiere.data import formats
    from prefiere.feedback.page.app import MOST_QUESTIONS

    found = (r.prompt for r in formats.read(name, kind="prompts"))
    alone = (p if isinstance(p, str) else p[0].content for p in found if isinstance(p, str) or len(p) == 1)
    return list(itertools.islice((text.strip() for text in alone if text.strip()), MOST_QUESTIONS))


@command
def collect(
    store: Where,
    model: Annotated[list[str], typer.Option("--model", "-m", help="One answers twice; two answer once each, blind.")],
    prompts: Annotated[str, typer.Option("--prompts", "-p", help="Text with one prompt a line, or data.")],
    temperature: Annotated[float, typer.Option("--temperature", min=0.0, help="Of one model, above 0.")] = 1.0,
    top_p: Annotated[float, typer.Option("--top-p", min=0.0, max=1.0, help="Of the nucleus to sample from.")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Of an answer.")] = 128,
    seed: Annotated[int, typer.Option("--seed", help="The same seed, the same answers.")] = 0,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="The first so many prompts only.")] = None,
    overlap: Annotated[
        int | None, typer.Option("--overlap", min=1, help="People a pair. Default: one, two for 12% of pairs.")
    ] = None,
    purpose: Annotated[Literal["ask", "eval"], typer.Option(help="eval pairs are never learnt from.")] = "ask",
    trust: Annotated[bool, typer.Option("--trust-remote-code", help="Run code that comes with a model.")] = False,
    json: Json = False,
) -> dict[str, Any]:
    """Let a model answer prompts and queue the pairs; again with a newer model for the next round."""
    from prefiere.cli.collect import run_collect
    from prefiere.console import Display, hush, progress
    from prefiere.feedback.collect import How, Queueing

    hush()
    how = How(temperature, top_p, max_new_tokens, seed)
    queueing = Queueing(purpose=purpose, overlap=overlap, seed=seed)
    with opened(store, create=True) as s:
        return run_collect(s, model, prompts, how, queueing, limit=limit, trust=trust, display=Display(progress()))


def compare_by_people(
    store: str, before: str, after: str | None, prompts: str | None, how: tuple[float, float, int, int], *,
    limit: int, trust: bool,
) -> dict[str, Any]:  # fmt: skip
    """Queue two models' answers to the same prompts for people who do not see which is which.

    how: temperature, top_p, max_new_tokens, seed.
    """
    from prefiere.cli.collect import run_compare
    from prefiere.console import Display, progress
    from prefiere.feedback.collect import How

    display = Display(progress())
    with opened(store, create=True) as s:
        found = run_compare(s, before, after, prompts, How(*how), limit=limit, trust=trust, display=display)
    say(f"Ask people with `prefiere serve {store}`; `prefiere votes agree {store}` says who wins.")
    return found


def keep_blind(store: str, runs: Sequence[Run]) -> None:
    """Keep in each run what people said, blind, of its model before and after. Raises StoreError where nobody did."""
    from prefiere.feedback.store import StoreError
    from prefiere.feedback.testimony import blind_comparison

    with opened(store) as s:
        found = [blind_comparison(s, run.folder) for run in runs]
    for run, said in zip(runs, found, strict=True):
        if said is None:
            what = f"nobody has compared {run.folder} blind yet: `prefiere compare {run.folder} --ask {store}`."
            raise StoreError(what)
    for run, said in zip(runs, found, strict=True):
        run.blind = said or {}


@command
def judge(
    store: Where,
    judge: Annotated[
        str,
        typer.Option("--judge", "-j", help="module:function, a reward model, or an endpoint: http://host/v1#MODEL."),
    ],
    model: Annotated[str | None, typer.Option("--judge-model", help="Of an endpoint: which model.")] = None,
    guidelines: Annotated[
        Path | None, typer.Option("--guidelines", help="Of an endpoint: what people are told, it is told, too.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Pairs at most.")] = None,
    json: Json = False,
) -> dict[str, Any]:
    """Let a rule, a reward model or an LLM vote, as a person of kind judge: people's votes correct its figures.

    An endpoint is asked for chat completions, each pair in both orders; its key is read from PREFIERE_JUDGE_KEY.
    """
    from prefiere.cli.collect import open_judge, run_judge
    from prefiere.console import Display, hush, progress
    from prefiere.feedback.page.serve import read_guidelines

    hush()
    with opened(store) as s:
        asked = open_judge(judge, model, read_guidelines(guidelines) or "")
        return run_judge(s, asked, limit=limit, display=Display(progress()))


@command
def loop(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="YAML: store, model, prompts, ask, compare, train.")],
    json: Json = False,
) -> dict[str, Any]:
    """Run rounds of feedback: sample, ask, learn, compare, ask again. The same command continues what was stopped."""
    from prefiere.feedback.rounds.recipe import load_loop

    asked = load_loop(recipe)
    with opened(asked.store, create=True) as s:
        from prefiere.cli.loop import run_loop
        from prefiere.console import hush, progress

        hush()
        found = run_loop(s, asked, progress())
    for r in found["rounds"]:
        say(f"round {r['n']}: {r['state']}" + (f": {r['reason']}" if r["reason"] else ""))
    say(f"Model: {found['model']}")
    return found
