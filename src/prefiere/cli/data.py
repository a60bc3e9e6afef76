"""What ``prefiere data`` shows: the layout, three examples as training sees them, and what would be dropped."""

from __future__ import annotations

from itertools import islice
from typing import Any

from rich.console import Console
from rich.text import Text as Styled

from prefiere.data import formats
from prefiere.data.audit import audit
from prefiere.data.schema import Demonstration, Judgement, PreferencePair, Text
from prefiere.data.values import DataError
from prefiere.files import visible
from prefiere.settings import DPO

EXAMPLES = 3
SHOWN = 1000  # characters of a text without a model; more is said to be there


def inspect(settings: DPO, *, model: str | None, console: Console) -> dict[str, Any]:
    """Read everything once (twice with a model), and show what came of it. Damaged lines are counted, not raised.

    ``model``: whose tokenizer and chat template the examples are shown with; None shows their text. Returns what was
    shown, for --json. Raises DataError or FileNotFoundError where there is nothing to read, or no record can be used.
    """
    source = open_source(settings)
    console.print(Styled.assemble(("Layout  ", "bold"), str(source.layout)))
    console.print(Styled.assemble(("Files   ", "bold"), ", ".join(source.files)), soft_wrap=True)
    with console.status(f"reading {settings.data}"):
        found = audit(source)
    read = source.describe()
    for line in source.unread_lines():
        console.print(Styled.assemble(("Unread  ", "bold"), line), soft_wrap=True)
    console.print(Styled.assemble(("Records ", "bold"), str(source.counts)))
    for line in [*found.lines()[1:], *source.problems]:
        console.print(f"  {line}", markup=False, soft_wrap=True)
    result: dict[str, Any] = {"read": read, "audit": found.to_dict()}
    if not source.counts.kept:
        raise DataError(f"{settings.data}: no record can be used ({source.counts})")
    if model is None:
        shown: list[Styled] = [as_text(record) for record in islice(source, EXAMPLES)]
    else:
        shown, result["tokens"] = tokenized(settings, model, source, console)
    for example in shown:
        console.print()
        console.print(example)
    result["examples"] = [str(example) for example in shown]
    if model is None:
        console.print("\nWith --model M the examples are shown in tokens, with the scored ones in colour.", style="dim")
    return result


def open_source(settings: DPO) -> formats.Records[Any]:
    """The source as the richest kind of record that its layout holds."""
    options: dict[str, Any] = {"split": settings.data_split, "columns": settings.columns, "on_bad": "drop"}
    holds = formats.read(settings.data, kind="prompts", **options).layout.layout.holds
    return formats.Records(settings.data, "pairs" if holds == "comparisons" else holds, **options)


def tokenized(
    settings: DPO, model: str, source: formats.Records[Any], console: Console
) -> tuple[list[Styled], dict[str, Any]]:
    """The first examples with their scored tokens coloured, and the account of all of them."""
    from prefiere.models.load import load_tokenizer
    from prefiere.models.source import find_model, generation_config
    from prefiere.tokens.encoder import Encoder
    from prefiere.tokens.tokenizer import describe, eos_ids_of
    from prefiere.tokens.truncation import EncodeReport, Truncation

    found = find_model(model, trust=settings.trust_remote_code)
    tokenizer = load_tokenizer(found)
    if source.kind == "prompts":
        return [as_text(record) for record in islice(source, EXAMPLES)], {}
    encoder = Encoder(
        tokenizer,
        Truncation(settings.max_length, settings.max_prompt_length, settings.max_completion_length),
        eos_ids=eos_ids_of(generation_config(found), tokenizer),
        template=settings.template,
        template_kwargs=settings.template_kwargs,
        on_bad="drop",
    )
    report, shown = EncodeReport(), list[Styled]()
    with console.status(f"tokenizing {settings.data}"):
        for group in encoder.encode(source, report):
            if len(shown) < EXAMPLES:
                shown.append(describe(group, tokenizer))
    console.print(Styled("Tokens", "bold"))
    for line in report.lines():
        console.print(f"  {line}", markup=False, soft_wrap=True)
    if not report.groups:
        raise DataError(f"{settings.data}: no example is left to learn from ({'; '.join(report.lines())})")
    return shown, report.to_dict()


def as_text(record: Any) -> Styled:
    """A record as text: what it is, then each part under its name."""
    parts = {"prompt": record.prompt}
    if isinstance(record, PreferencePair):
        parts |= {"chosen": record.chosen, "rejected": record.rejected}
    elif isinstance(record, Judgement):
        parts |= {"desirable" if record.desirable else "undesirable": record.completion}
    elif isinstance(record, Demonstration):
        parts |= {"completion": record.completion}
    out = Styled(record.source, "bold")
    for name, text in parts.items():
        style = "green" if name in ("chosen", "desirable", "completion") else "dim" if name == "prompt" else ""
        out.append(f"\n{name}\n", "bold")
        whole = visible(spoken(text))
        out.append(whole[:SHOWN], style)
        if len(whole) > SHOWN:
            out.append(f" … ({len(whole) - SHOWN:,} more characters)", "dim")
    return out


def spoken(text: Text) -> str:
    """Text as it is; messages as ``role: content`` lines."""
    return text if isinstance(text, str) else "\n".join(f"{m.role}: {m.content}" for m in text)
