"""``prefiere estimate``: will a recipe fit, how long does it take, and what to change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from prefiere.cli.train import Rest
from prefiere.console import Json, command, console, hush, progress, table
from prefiere.settings import Settings

if TYPE_CHECKING:
    from prefiere.console import Display

WORDS = {
    "weights": "weights as they are held, frozen roles included",
    "trained": "Adam's moments of what is trained",
    "update": "activations, logits and gradients of an update, at their peak",
    "sampling": "KV cache and logits of sampled answers (in turn with updates)",
    "loading": "reading the weights (before updates)",
    "fixed": "the process itself",
}
TORCH_ONLY = "memory in use; malloc keeps some of what is freed, and a process's resident set can be twice this"


@command
def estimate(
    rest: Rest = None,
    gpu: Annotated[
        str | None, typer.Option("--gpu", help="t4, l4, a10g, a100, h100, h200, ... or cpu. Default: what is here.")
    ] = None,
    gpus: Annotated[int, typer.Option("--gpus", min=1, help="So many of them on each node, a process on each.")] = 1,
    nodes: Annotated[int, typer.Option("--nodes", min=1, help="So many machines.")] = 1,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Instead of the recipe's.")] = None,
    data: Annotated[str | None, typer.Option("--data", "-d", help="Instead of the recipe's.")] = None,
    json: Json = False,
) -> dict[str, Any]:
    """Say whether a recipe fits, how long it takes, and what to change. Loads no weights."""
    from prefiere import recipe
    from prefiere.asked import arguments
    from prefiere.console import Display

    words = arguments.as_settings(rest or [])
    named = recipe.method_in(words.recipe) if words.recipe else None
    given = {"model": model, "data": data, "out": None if words.recipe else "runs/estimated"}
    settings = recipe.load(
        None if words.method or named else "dpo",
        words.recipe,
        {key: value for key, value in given.items() if value},
        words.settings,
        words.problems,
    )
    hush()
    if gpu is None and gpus * nodes > 1:
        raise ValueError("--gpus: name the card as well, such as --gpu h100 --gpus 8")
    return show(settings, gpu, Display(progress()), console(), gpus=gpus, nodes=nodes)


def show(
    settings: Settings, gpu: str | None, display: Display, console: Console, *, gpus: int = 1, nodes: int = 1
) -> dict[str, Any]:
    """Print what a recipe needs and what to change until it fits."""
    from prefiere.estimate.estimate import forecast

    f = forecast(settings, gpu, display, gpus=gpus, nodes=nodes)
    found, gib = f.estimate, 2**30
    r = found.rhythm
    rows = [[WORDS[part], f"{getattr(found.memory, part) / gib:.2f}"] for part in WORDS]
    console.print(table("", ("memory", "GiB"), rows))
    for change in f.changes:
        console.print(f"set {change}", markup=False)
    if f.spread:
        console.print(f.spread, markup=False)
    console.print(f.verdict, markup=False)
    if f.card is None:
        console.print(TORCH_ONLY, style="dim")
    console.print(f.duration, markup=False)
    console.print(f.pace, markup=False)
    return {
        "device": f.named,
        "gpus": gpus,
        "nodes": nodes,
        "shard": f.shard,
        "available": f.available,
        "peak": found.memory.peak,
        "memory": {part: getattr(found.memory, part) for part in WORDS},
        "host": found.memory.host,
        "seconds": found.seconds,
        "steps": found.steps,
        "rhythm": {"eval_steps": r.validate, "sample_steps": r.answer, "save_steps": r.save},
        "overhead": found.overhead,
        "tokens": found.tokens,
        "changes": f.changes,
        "fits": f.fits,
    }
