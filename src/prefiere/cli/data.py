"""What ``prefiere data`` shows: the layout, three examples as training sees them, and what would be dropped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text as Styled

from prefiere.asked.language import in_words, tongue
from prefiere.asked.words.account import encoded, said_reason
from prefiere.console import Display, progress
from prefiere.data import formats
from prefiere.data.audit import Auditor
from prefiere.data.convert import AnyRecord
from prefiere.data.layouts.names import likely, map_to_give
from prefiere.data.quality.blind import blind_verdict, drawn
from prefiere.data.quality.cleaned import RecordsLeftOut, cleaned
from prefiere.data.quality.faults import Faults, looked_through
from prefiere.data.schema import Comparison, Demonstration, Judgement, PreferencePair, Text
from prefiere.data.values import DataError
from prefiere.data.writers import write
from prefiere.files import visible
from prefiere.plan.shown import reading
from prefiere.settings import DPO

if TYPE_CHECKING:
    from prefiere.doctor.case import Finding
    from prefiere.doctor.rules.labels import SwappedLabels
    from prefiere.tokens.groups import PromptGroup

EXAMPLES = 3
SPREAD = 512
"""Examples that are kept to measure a model on, of as many as there are."""
ON_A_PROCESSOR = 1_000_000_000
"""Parameters of a model up to which it is measured on the data where there is no GPU."""
SHOWN = 1000  # characters of a text without a model; more is said to be there


def inspect(settings: DPO, *, model: str | None, console: Console) -> dict[str, Any]:
    """Read everything once (twice with a model), and show what came of it. Damaged lines are counted, not raised.

    ``model``: whose tokenizer and chat template the examples are shown with; None shows their text. Returns what was
    shown, for --json. Raises DataError or FileNotFoundError where there is nothing to read, or no record can be used.
    """
    source = open_source(settings)
    console.print(Styled.assemble((in_words("seen.layout"), "bold"), str(source.layout)))
    console.print(Styled.assemble((in_words("seen.files"), "bold"), ", ".join(source.files)), soft_wrap=True)
    auditor, faults = Auditor(), Faults()
    with reading(Display(progress()), settings.data, source, opening=False) as so_far:
        for number, record in enumerate(source):
            auditor.add(record)
            faults.add(record)
            if number % 1000 == 999:
                so_far(number + 1)
    found = auditor.found()
    read = source.describe()
    for line in source.unread_lines():
        label = in_words("seen.remark" if line in read["remarks"] else "seen.unread")
        console.print(Styled.assemble((label, "bold"), line), soft_wrap=True)
    if source.kind == "prompts" and (better := _as_pairs(read["unread_columns"])) is not None:
        said = in_words("seen.as_pairs", columns=better)
        console.print(Styled.assemble((in_words("seen.perhaps"), "bold"), said), soft_wrap=True)
    console.print(Styled.assemble((in_words("seen.records"), "bold"), str(source.counts)))
    for line in [*found.lines()[1:], *source.problems]:
        console.print(f"  {line}", markup=False, soft_wrap=True)
    result: dict[str, Any] = {"read": read, "audit": found.to_dict() | {"faults": faults.to_dict()}}
    if not source.counts.kept:
        raise DataError(in_words("seen.none", data=settings.data, why=source.counts))
    row: dict[str, float] = {}
    if model is None:
        shown: list[Styled] = [as_text(record) for record in islice(source, EXAMPLES)]
    else:
        shown, result["tokens"], groups = tokenized(settings, model, source, console)
        if groups:
            row, result["vocabulary"] = measured(settings, model, groups, console)
            result["start"] = row
    for example in shown:
        console.print()
        console.print(example)
    result["examples"] = [str(example) for example in shown]
    result |= say_findings(result, row, source.kind in ("pairs", "judgements"), console)
    if model is None:
        console.print(f"\n{in_words('seen.with_model')}", style="dim")
    return result


def say_findings(
    account: dict[str, Any], row: Mapping[str, float], preferences: bool, console: Console
) -> dict[str, Any]:
    """What the doctor says of the data before a run is begun, in plain words. row: what was measured with a model.
    ruined: whether a run on it would be."""
    from prefiere.cli.doctor import show_finding
    from prefiere.doctor.diagnose import plain_values
    from prefiere.doctor.plain.tell import plain_words, told

    found, spoken = _found(account, row, preferences), tongue()
    for finding in found:
        show_finding(told(finding, spoken), plain_words(spoken).around, console)
    return {"findings": plain_values(found), "ruined": any(f.severity == "bad" for f in found)}


def _found(account: dict[str, Any], row: Mapping[str, float], preferences: bool) -> list[Finding]:
    """The findings of an account of data, and what would ruin a run whatever explains it."""
    from prefiere.doctor.diagnose import consistent
    from prefiere.doctor.rules.data import findings_of
    from prefiere.doctor.rules.start import before_run

    found = findings_of(account, preferences=preferences, start=row) + before_run(
        row, vocabulary=account.get("vocabulary"), preferences=preferences, account=account
    )
    kept = consistent(found)
    return [f for f in found if f.severity == "bad" and f.key not in {k.key for k in kept}] + kept


def check(settings: DPO, console: Console, ask: Callable[[str], str]) -> dict[str, Any]:
    """Show 15 pairs without saying which answer was preferred, and say what a person's choices say of the labels.

    ask: puts a question and returns what was typed. Raises DataError for data without pairs.
    """
    source = open_source(settings)
    if source.kind != "pairs":
        kind = in_words(f"data.kind.{source.kind}")
        raise DataError(in_words("check.no_pairs", data=settings.data, kind=kind))
    shown, chosen = drawn(source, settings.seed), list[bool | None]()
    for n, pair in enumerate(shown, 1):
        console.print(f"\n{in_words('check.number', i=n, all=len(shown))}", style="bold")
        for name, text in zip((in_words("check.asked"), "1", "2"), (pair.pair.prompt, *pair.answers), strict=True):
            console.print(Styled.assemble((f"{name}: ", "bold"), visible(spoken(text))[:SHOWN]), soft_wrap=True)
        chosen.append({"1": True, "2": False}.get(ask(in_words("check.which")).strip()))
    found = blind_verdict(shown, chosen)
    console.print(f"\n{in_words(f'check.says.{found.says}')}", style="bold")
    chance = f"{found.chance:.1%}" if found.chance >= 0.001 else "< 0.1%"
    console.print(in_words(f"check.agreed.{found.says}", agreed=found.agreed, of=found.of, chance=chance))
    return {"says": found.says, "agreed": found.agreed, "of": found.of, "chance": found.chance}


def clean(settings: DPO, out: Path, run: str | None, console: Console) -> dict[str, Any]:
    """Write the data without what teaches the wrong thing, and say what was left out, and what was not read.

    run: the run whose swapped labels are left out, too. Raises DataError, and writes nothing, where the file is there
    already, where no record stays, where prompts are all that is read of rows that hold more, or where the run learnt
    from other data.
    """
    from prefiere.doctor.plain.tell import told

    if out.exists():
        raise DataError(in_words("clean.there_already", out=out))
    source, left, swapped = open_source(settings), RecordsLeftOut(), None
    if run is not None:
        from prefiere.doctor.rules.labels import swapped_in

        swapped = swapped_in(run)
    auditor, faults = Auditor(), Faults()
    kept = write(looked_through(_staying(source, left, swapped, settings.data), auditor, faults), out)
    console.print(in_words("clean.written", n=f"{kept:,}", out=out), markup=False, soft_wrap=True)
    if swapped is not None and not swapped.lines:
        console.print(f"  {in_words('clean.no_line', run=run)}", markup=False, soft_wrap=True)
    if left.beyond and source.kind != "prompts":
        console.print(f"  {in_words('clean.beyond', n=f'{left.beyond:,}')}", markup=False, soft_wrap=True)
    dropped = source.counts.dropped.total()
    lost = [in_words("clean.by_reader", n=f"{dropped:,}", counts=source.counts), *source.problems] if dropped else []
    of = source.counts.changed.most_common()
    changed = [in_words("clean.changed", n=f"{n:,}", why=said_reason(why)) for why, n in of]
    if _voted(settings, source):
        changed.append(in_words("clean.no_voters"))
    for line in [*([*left.lines(), *lost, *changed] or [in_words("clean.nothing")]), *source.unread_lines()]:
        console.print(f"  {line}", markup=False, soft_wrap=True)
    account = {"audit": auditor.found().to_dict() | {"faults": faults.to_dict()}}
    stays = [f for f in _found(account, {}, source.kind in ("pairs", "judgements")) if f.severity in ("bad", "warning")]
    for said in (in_words("clean.stays", what=told(finding, tongue()).headline) for finding in stays):
        console.print(f"  {said}", markup=False, soft_wrap=True)
    return {
        "written": str(out),
        "kept": kept,
        "left_out": left.counts | ({"dropped": dropped} if dropped else {}),
        "sources": left.sources,
        "beyond": left.beyond,
        "stays": [f.key for f in stays],
        "read": source.describe(),
    }


def _voted(settings: DPO, source: formats.Records[Any]) -> bool:
    """Whether pairs were made of comparisons that say who preferred an answer, or when."""
    if source.kind != "pairs" or source.layout.layout.holds != "comparisons":
        return False
    return any(
        c.annotator or c.created_at for c in formats.Records[Comparison](settings.data, "comparisons", **_how(settings))
    )


def _staying(
    source: formats.Records[Any], left: RecordsLeftOut, swapped: SwappedLabels | None, name: str
) -> Iterator[AnyRecord]:
    """The records that are written. Raises DataError at the end where these would not stand for the data, or where a
    run does not speak of it."""
    empty = True
    for record in cleaned(lambda: source, left, swapped.lines if swapped else ()):
        empty = False
        yield record
    if swapped is not None and (other := swapped.of_other_data(source.counts.read, left.missing)) is not None:
        raise DataError(in_words("clean.refused", data=name, why=other))
    if source.kind == "prompts" and source.unread:
        hidden = map_to_give(dict.fromkeys(source.unread))
        told = {"layout": source.layout, "columns": ", ".join(source.unread), "hidden": hidden}
        raise DataError(in_words("clean.prompts_alone", data=name, **told))
    if empty:
        why = "; ".join([*left.lines(), *source.problems[:1]])
        raise DataError(in_words("clean.none_stays", data=name, counts=source.counts, why=why))


def _as_pairs(columns: Sequence[str]) -> str | None:
    """The map to give where columns that are not read look like a preferred answer and another; else None."""
    chosen = likely("chosen", columns)
    rejected = likely("rejected", [c for c in columns if c != chosen])
    if chosen is None or rejected is None or likely("rejected", columns) == chosen:
        return None
    return map_to_give({"chosen": chosen, "rejected": rejected})


def open_source(settings: DPO) -> formats.Records[Any]:
    """The source as the richest kind of record that its layout holds."""
    holds = formats.read(settings.data, kind="prompts", **_how(settings)).layout.layout.holds
    return formats.Records(settings.data, "pairs" if holds == "comparisons" else holds, **_how(settings))


def _how(settings: DPO) -> dict[str, Any]:
    """How the data is read."""
    return {"split": settings.data_split, "columns": settings.columns, "on_bad": "drop"}


def tokenized(
    settings: DPO, model: str, source: formats.Records[Any], console: Console
) -> tuple[list[Styled], dict[str, Any], list[PromptGroup]]:
    """The first examples with their scored tokens coloured, the account of all of them, and at most `SPREAD` from all
    over the data."""
    from prefiere.models.load import load_tokenizer
    from prefiere.models.source import find_model, generation_config
    from prefiere.tokens.encoder import Encoder
    from prefiere.tokens.tokenizer import describe, eos_ids_of
    from prefiere.tokens.truncation import EncodeReport, Truncation

    found = find_model(model, trust=settings.trust_remote_code)
    tokenizer = load_tokenizer(found)
    if source.kind == "prompts":
        return [as_text(record) for record in islice(source, EXAMPLES)], {}, []
    encoder = Encoder(
        tokenizer,
        Truncation(settings.max_length, settings.max_prompt_length, settings.max_completion_length),
        eos_ids=eos_ids_of(generation_config(found), tokenizer),
        template=settings.template,
        template_kwargs=settings.template_kwargs,
        on_bad="drop",
    )
    report, shown, kept, every = EncodeReport(), list[Styled](), list[Any](), 1
    with console.status(in_words("seen.tokenizing", data=settings.data)):
        for i, group in enumerate(encoder.encode(source, report)):
            if len(shown) < EXAMPLES:
                shown.append(describe(group, tokenizer))
            if i % every == 0:
                kept.append(group)
            if len(kept) > SPREAD:
                kept, every = kept[::2], 2 * every
    console.print(Styled(in_words("seen.tokens"), "bold"))
    for line in (lines := encoded(report.to_dict())):
        console.print(f"  {line}", markup=False, soft_wrap=True)
    if not report.groups:
        raise DataError(in_words("seen.none_left", data=settings.data, why="; ".join(lines)))
    return shown, report.to_dict(), kept


def measured(
    settings: DPO, model: str, groups: Sequence[PromptGroup], console: Console
) -> tuple[dict[str, float], int | None]:
    """What model and examples are to each other before a run, as its step 0 has it, and how many tokens the model
    knows; nothing, and why in a line, where that is for a run to say."""
    import torch

    from prefiere.asked.columns import spoken_column
    from prefiere.doctor.rules.start import at_step_0
    from prefiere.doctor.words import interval
    from prefiere.evaluate.start import before_a_run
    from prefiere.kernels.memory import OutOfMemory
    from prefiere.metrics import START, column
    from prefiere.models.load import count_parameters, load_tokenizer
    from prefiere.models.source import ModelError, config_of, find_model
    from prefiere.plan.choices import choose_dtype
    from prefiere.plan.device import Device
    from prefiere.sample.sampling import Sampling

    row, size, why = dict[str, float](), None, ""
    found = find_model(model, trust=settings.trust_remote_code)
    device = Device.of(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        parameters, size = count_parameters(found), int(config_of(found).get_text_config().vocab_size)
        if device.kind == "cpu" and parameters > ON_A_PROCESSOR:
            why = in_words("seen.takes_long", size=f"{parameters / 1e9:.1f}")
        else:
            dtype = getattr(torch, str(choose_dtype(settings, device, parameters).value))
            sampling = Sampling(
                1, settings.sample_temperature, max_new_tokens=settings.max_new_tokens, seed=settings.seed
            )
            with console.status(in_words("seen.measuring", model=model)):
                row = before_a_run(
                    found, load_tokenizer(found), groups, sampling, dtype=dtype, max_length=settings.max_length
                )
    except (ModelError, OutOfMemory) as e:  # the data was read all the same
        why = str(e)
    console.print(Styled(in_words("seen.model"), "bold"))
    if not row:
        console.print(f"  {in_words('seen.not_measured', why=why)}", markup=False, soft_wrap=True)
    for key in (*(c.name for c in START), "samples/ref_logp"):
        if (level := at_step_0(row, key)) is not None:
            told = spoken_column(column(key), tongue())
            words = told.words if key != "samples/ref_logp" else in_words("example.own_answers")
            shown = interval(level).within(tongue())
            console.print(f"  {words}: {shown} {told.unit}".rstrip(), markup=False, soft_wrap=True)
    return row, size


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
            out.append(in_words("example.more_characters", n=f"{len(whole) - SHOWN:,}"), "dim")
    return out


def spoken(text: Text) -> str:
    """Text as it is; messages as ``role: content`` lines."""
    return text if isinstance(text, str) else "\n".join(f"{m.role}: {m.content}" for m in text)
