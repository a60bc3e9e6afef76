"""What the commands about a finished model show: answers, a conversation, two models side by side."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text as Styled

from prefiere.asked.language import in_words
from prefiere.console import table
from prefiere.evaluate.compare import Compared
from prefiere.evaluate.talk import Talker
from prefiere.files import visible

SHOWN = 8  # prompts shown side by side; --json has all


def show_answers(answers: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Each answer under its prompt."""
    for row in answers:
        console.print(Styled(visible(row["prompt"]), "bold"))
        console.print(Styled(visible(row["completion"]) + ("" if row["ended"] else " […]")))
        console.print()


def chat(talker: Talker, said: Iterable[str], console: Console) -> dict[str, Any]:
    """Answer each line, word by word, until there are no more. An empty line begins a new conversation."""
    for line in said:
        if line.strip():
            talker(line.strip(), lambda piece: console.print(Styled(visible(piece)), end="", soft_wrap=True))
            console.print()
        else:
            talker.turns.clear()
            console.print(in_words("use.new_conversation"), style="dim")
    return {"turns": [turn.as_dict() for turn in talker.turns]}


def typed(console: Console) -> Iterable[str]:
    """Lines that a person types, until Ctrl-D; of a pipe, its lines."""
    if not sys.stdin.isatty():
        yield from sys.stdin
        return
    console.print(in_words("use.how_to_talk"), style="dim")
    while True:
        try:
            yield console.input("[bold]> [/bold]")
        except EOFError:
            return


def show_comparison(found: Compared, console: Console) -> None:
    """Answers side by side, then signals and the judge's figures."""
    rows = [[visible(text) for text in (p.prompt, p.before, p.after)] for p in found.pairings[:SHOWN]]
    heads = [in_words(f"use.{name}") for name in ("prompt", "before", "after")]
    columns = (heads[0], f"{heads[1]}: {found.before}", f"{heads[2]}: {found.after}")
    console.print(table("", columns, rows, lines=True))
    if len(found.pairings) > SHOWN:
        console.print(in_words("use.more", n=f"{len(found.pairings) - SHOWN:,}"), style="dim")
    figures = [(name, f"{b:.3g}", f"{a:.3g}") for name, (b, a) in found.signals.items() if name != "score"]
    for name, estimate in (
        ("score_before", found.score_before),
        ("score_after", found.score_after),
        ("gain", found.gain),
    ):
        if estimate is not None:
            told = f"{estimate.mean:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"
            console.print(f"{in_words(f'use.{name}')}: {told}", markup=False)
    if found.judge is not None:
        counts = {"won": found.wins, "lost": found.losses, "tied": found.ties}
        console.print(in_words("use.judged", judge=found.judge, **counts), markup=False)
        console.print(in_words("use.sign_test", p=f"{found.p_value:.3g}"))
    console.print(table("", (in_words("use.of_answers"), *heads[1:]), figures))
