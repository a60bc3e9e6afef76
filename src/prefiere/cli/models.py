"""What the commands about a finished model do: answer prompts, chat, compare two models."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from rich.console import Console
from rich.text import Text as Styled

from prefiere.console import Display, table
from prefiere.data import formats
from prefiere.data.schema import Message, Text
from prefiere.evaluate.compare import Compared, ask
from prefiere.evaluate.manner import manner_of
from prefiere.files import visible
from prefiere.kernels.memory import within_memory
from prefiere.models.check.weights import ids_fit
from prefiere.models.load import load_model, load_tokenizer
from prefiere.models.source import find_model
from prefiere.sample.local import generate
from prefiere.sample.sampling import Sampling, Vocabulary
from prefiere.tokens.encoder import Encoder
from prefiere.tokens.tokenizer import eos_ids_of

SHOWN = 8  # prompts shown side by side; --json has all


def sample(
    model: str,
    prompts: str,
    sampling: Sampling,
    *,
    limit: int | None,
    trust: bool,
    template_kwargs: Mapping[str, Any] | None,
    display: Display,
    console: Console,
) -> dict[str, Any]:
    """Answer the prompts of a file, and show each answer under its prompt."""
    asked = read_prompts(prompts, limit)
    with display.stage("sampling", len(asked) * sampling.samples) as advance:
        manner = manner_of(model, template_kwargs)
        answers = ask(find_model(model, trust=trust), asked, sampling, manner=manner, progress=advance)
    for row in answers.rows:
        console.print(Styled(visible(row["prompt"]), "bold"))
        console.print(Styled(visible(row["completion"]) + ("" if row["ended"] else " […]")))
        console.print()
    keys = ("prompt", "completion", "sample", "ended", "tokens", "logp")
    return {"model": model, "answers": [{k: row[k] for k in keys} for row in answers.rows]}


def read_prompts(name: str, limit: int | None) -> list[Text]:
    """Prompts of any data file: text with one a line, or any known layout."""
    return [record.prompt for record in formats.read(name, kind="prompts", limit=limit)]


class Talker:
    """A model that answers a conversation. Without a chat template it continues each text on its own."""

    @within_memory("loading", "take a smaller model")
    def __init__(
        self,
        model: str,
        sampling: Sampling,
        *,
        trust: bool = False,
        template_kwargs: Mapping[str, Any] | None = None,
    ):
        source = find_model(model, trust=trust)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.tokenizer = load_tokenizer(source)
        self.model = load_model(source, dtype=torch.bfloat16 if device == "cuda" else torch.float32, device=device)
        ids_fit(self.model, self.tokenizer, source.base)
        eos_ids = eos_ids_of(self.model, self.tokenizer)
        self.vocabulary = Vocabulary.of(self.tokenizer, eos_ids)
        self.encoder = Encoder(self.tokenizer, eos_ids=eos_ids, **manner_of(model, template_kwargs))
        self.sampling, self.turns = sampling, list[Message]()

    @property
    def remembers(self) -> bool:
        return bool(self.tokenizer.chat_template)

    @within_memory("answering", "set a smaller --max-new-tokens, or take a smaller model")
    def __call__(self, said: str) -> str:
        """The answer to what was said, in the light of the conversation so far."""
        self.turns.append(Message("user", said))
        prompt: Text = tuple(self.turns) if self.remembers else said
        sampling = replace(self.sampling, samples=1, seed=self.sampling.seed + len(self.turns))
        (answer,) = generate(self.model, self.encoder.encode_prompts([prompt]), sampling, self.vocabulary)
        text = self.encoder.decode(answer.tokens).strip()
        self.turns.append(Message("assistant", text))
        return text


def chat(talker: Talker, said: Iterable[str], console: Console) -> dict[str, Any]:
    """Answer each line, until there are no more. An empty line begins a new conversation."""
    for line in said:
        if line.strip():
            console.print(Styled(visible(talker(line.strip()))))
        else:
            talker.turns.clear()
            console.print("(a new conversation)", style="dim")
    return {"turns": [turn.as_dict() for turn in talker.turns]}


def typed(console: Console) -> Iterable[str]:
    """Lines that a person types, until Ctrl-D; of a pipe, its lines."""
    if not sys.stdin.isatty():
        yield from sys.stdin
        return
    console.print("Empty line: a new conversation. Ctrl-D: the end.", style="dim")
    while True:
        try:
            yield console.input("[bold]> [/bold]")
        except EOFError:
            return


def show_comparison(found: Compared, console: Console) -> None:
    """Answers side by side, then signals and the judge's figures."""
    rows = [[visible(text) for text in (p.prompt, p.before, p.after)] for p in found.pairings[:SHOWN]]
    console.print(table("", ("prompt", f"before: {found.before}", f"after: {found.after}"), rows, lines=True))
    if len(found.pairings) > SHOWN:
        console.print(f"... and {len(found.pairings) - SHOWN:,} more (--json has all)", style="dim")
    figures = [(name, f"{b:.3g}", f"{a:.3g}") for name, (b, a) in found.signals.items() if name != "score"]
    for name, estimate in (
        ("score before", found.score_before),
        ("score after", found.score_after),
        ("gain", found.gain),
    ):
        if estimate is not None:
            console.print(f"{name}: {estimate.mean:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]", markup=False)
    if found.judge is not None:
        console.print(f"by {found.judge}: {found.wins} won, {found.losses} lost, {found.ties} tied", markup=False)
        console.print(f"sign test p = {found.p_value:.3g}")
    console.print(table("", ("of the answers", "before", "after"), figures))
