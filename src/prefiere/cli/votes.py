"""``prefiere votes``: what people said, looked at, moved and taken out."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from prefiere.asked.language import count_of, in_words
from prefiere.console import Json, command, console, say, table

if TYPE_CHECKING:
    from prefiere.feedback.store import Store

app = typer.Typer(help="The votes of a store: who gave them, how far they agree, what became of them.",
                  no_args_is_help=True)  # fmt: skip

Where = Annotated[str, typer.Argument(metavar="STORE", help="A file (votes.db), or postgresql://...")]
Who = Annotated[str, typer.Argument(metavar="NAME", help="The person's pseudonym.")]


@contextmanager
def opened(name: str, create: bool = False) -> Iterator[Store]:
    """An open store, closed at the end."""
    from prefiere.feedback.store import Store

    store = Store.open(name, create=create)
    try:
        yield store
    finally:
        store.close()


@app.command()
@command
def people(
    store: Where,
    add: Annotated[
        str | None, typer.Option("--add", metavar="NAME", help="Invite somebody: prints their link.")
    ] = None,
    link: Annotated[str | None, typer.Option("--link", metavar="NAME", help="A new link for somebody.")] = None,
    role: Annotated[
        Literal["annotate", "admin"], typer.Option(help="With --add: an admin sees the board.")
    ] = "annotate",
    restore: Annotated[
        str | None, typer.Option("--restore", metavar="NAME", help="Count somebody's votes again.")
    ] = None,
    json: Json = False,
) -> dict[str, Any]:
    """List who votes, how much, how fast, how reliably; invite somebody with --add."""
    from prefiere.feedback import people as everybody
    from prefiere.feedback.figures import figures
    from prefiere.files import visible

    result: dict[str, Any] = {}
    with opened(store, create=add is not None) as s:
        with s.write() as c:
            if add is not None:
                everybody.add(c, add, role=role)
            if name := add or link:
                result["link"] = "/join/" + everybody.new_token(c, everybody.person_named(c, name))
            if restore is not None:
                who = everybody.person_named(c, restore)
                everybody.set_aside(c, who, False)
                everybody.leave_out(c, who, False)
        found = figures(s, time.time()).people
    if "link" in result:
        say(f"{add or link}: open {result['link']} on the server's address. It is shown once.")
    columns = ("name", "kind", "role", "votes", "s/pair", "right (95%)", "gold", "left", "fast", "state")
    rows = [
        (visible(p.pseudonym), p.kind, p.role, p.votes, _n(p.seconds), _range(p.eta, p.eta_low, p.eta_high),
         f"{p.gold_right}/{p.gold}" if p.gold else "-", _share(p.left), p.fast, p.state)
        for p in found
    ]  # fmt: skip
    console().print(table("", columns, rows))
    return result | {"people": [vars(p) for p in found]}


@app.command()
@command
def agree(store: Where, json: Json = False) -> dict[str, Any]:
    """Show how far people agree, which side and length they lean to, and which model they prefer."""
    from dataclasses import asdict

    from prefiere.feedback.figures import PUBLISHED, figures
    from prefiere.feedback.rounds.learning import brought_sentence, sentence
    from prefiere.files import visible

    with opened(store) as s:
        f = figures(s, time.time())
    low, high = PUBLISHED
    say(
        f"{count_of(f.votes, 'vote')} on {count_of(f.asked, 'pair')} "
        f"({count_of(f.ties, 'tie')}, {f.both_bad:,} both bad); {f.open_slots:,} open"
    )
    names = {
        "share": "same side",
        "cohen": "Cohen's kappa",
        "fleiss": "Fleiss' kappa",
        "krippendorff": "Krippendorff's alpha (-3 to 3)",
    }
    rows = [(names[k], _range(m.value, m.low, m.high)) for k, m in f.agreement.items()]
    rows += [("left side", _range(*f.left)), ("longer answer", _range(f.longer.mean, f.longer.low, f.longer.high))]
    console().print(table("", ("of the votes", "value (95%)"), rows))
    doubled = count_of(f.doubled, "pair has", "pairs have")
    say(f"{doubled} two votes or more; people elsewhere take the same side in {low:.0%} to {high:.0%}")
    say(sentence(f.curve))
    if f.order is not None:
        say(brought_sentence(f.order))
    for title, ranks in (("", f.ranking), ("at equal length", f.ranking_by_length)):
        if ranks:
            shown = [
                (visible(str(r.model)), f"{r.strength:+.2f} ({r.low:+.2f} to {r.high:+.2f})", r.votes) for r in ranks
            ]
            console().print(table(title, ("model", "log-odds (95%)", "votes"), shown))
    for name, j in f.judged.items():
        say(f"judge {visible(name)}: {_range(j.mean, j.low, j.high)} for b with people's correction, "
            f"{_range(j.people, j.people_low, j.people_high)} by people alone "
            f"({count_of(j.n, 'pair')} of both)")  # fmt: skip
    return asdict(f)


@app.command()
@command
def prioritise(
    store: Where,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Read the answers by this model's hidden states [default: their words]."),
    ] = None,
    json: Json = False,
) -> dict[str, Any]:
    """Ask next what tells most: order the open pairs by their answers; a fifth of the questions stays random."""
    from prefiere.feedback.rounds import learning
    from prefiere.feedback.science.active import FIRST_RANDOM

    features = learning.BY_WORDS
    if model is not None:
        from prefiere.console import hush
        from prefiere.evaluate.hidden import answer_features

        hush()
        features = learning.Features("hidden", partial(answer_features, model), learning.HIDDEN_WIDTH)
    with opened(store) as s:
        scored = learning.prioritise(s, features)
    nothing = f"nothing in order yet: it takes votes on {FIRST_RANDOM} pairs, and open pairs"
    say(f"{count_of(scored, 'pair')} in order" if scored else nothing)
    return {"scored": scored}


@app.command("import")
@command
def import_(
    store: Where,
    data: Annotated[str, typer.Argument(metavar="DATA", help="File, folder or hub id, in any known layout.")],
    into: Annotated[
        Literal["votes", "pairs", "gold"], typer.Option("--as", help="What was said; what to ask; what is right.")
    ] = "votes",
    purpose: Annotated[Literal["ask", "eval"], typer.Option(help="eval pairs are never learnt from.")] = "ask",
    overlap: Annotated[
        int | None, typer.Option("--overlap", min=1, help="People a pair. Default: one, two for 12% of pairs.")
    ] = None,
    json: Json = False,
) -> dict[str, Any]:
    """Add the comparisons of a file: as votes, as pairs to ask about, or as gold to measure people by."""
    from prefiere.asked.words.account import made
    from prefiere.feedback.exchange import read_in

    with opened(store, create=True) as s:
        counts = read_in(s, data, into=into, purpose=purpose, overlap=overlap)
    say(made(counts) or in_words("made.nothing"))
    return {"counts": dict(counts)}


@app.command()
@command
def export(
    store: Where,
    out: Annotated[Path, typer.Option("--out", "-o", help="A .jsonl, .parquet or .xlsx file.")],
    kind: Annotated[
        Literal["pairs", "comparisons", "judgements", "demonstrations", "prompts"],
        typer.Option("--as", help="comparisons: the votes themselves; the others are what a run learns from."),
    ] = "pairs",
    snapshot: Annotated[int | None, typer.Option("--snapshot", help="An earlier one, by its number.")] = None,
    json: Json = False,
) -> dict[str, Any]:
    """Write the votes, or what they teach, as a file."""
    from prefiere.feedback.exchange import write_out

    with opened(store) as s:
        written = write_out(s, out, kind, snapshot)
    say(in_words(f"exported.{kind}", n=f"{written:,}", path=out))
    return {"records": written, "out": out}


@app.command("leave-out")
@command
def leave_out(store: Where, name: Who, json: Json = False) -> dict[str, Any]:
    """Leave a person's votes out of every later snapshot; `votes people --restore NAME` takes them back in."""
    from prefiere.feedback import people as everybody

    with opened(store) as s, s.write() as c:
        everybody.leave_out(c, everybody.person_named(c, name))
    say(f"{name}: left out. Nothing is deleted; the next run learns without these votes.")
    return {"left_out": name}


@app.command()
@command
def forget(
    store: Where,
    name: Who,
    runs: Annotated[Path, typer.Option("--runs", help="Where runs are, to name those that learnt from them.")] = Path(
        "runs"
    ),
    json: Json = False,
) -> dict[str, Any]:
    """Delete a person: name, link, votes, notes and ideal answers. Only the number of their votes stays."""
    from prefiere.feedback.people import forget
    from prefiere.feedback.trace import runs_that_hold

    with opened(store) as s:
        gone = forget(s, name)
    learnt = sorted({*gone.runs, *runs_that_hold(store, name, gone.snapshots, runs)})
    say(f"{name}: forgotten, with {count_of(gone.votes, 'vote')}.")
    for what, holds in (("snapshot", gone.snapshots), ("export", gone.exports), ("run", learnt)):
        for one in holds:
            say(f"  {what} {one} held them" + ("; delete it yourself" if what != "snapshot" else "; it is cut"))
    return {"votes": gone.votes, "snapshots": gone.snapshots, "exports": gone.exports, "runs": learnt}


@app.command()
@command
def why(
    store: Where,
    pair: Annotated[str, typer.Argument(metavar="PAIR", help="Its number, or a source as in a report: votes.db#3:17.")],
    json: Json = False,
) -> dict[str, Any]:
    """Say who said what of a pair, when, which models answered, and which runs learnt from it."""
    from prefiere.data.values import DataError
    from prefiere.feedback.trace import why

    number = pair.rsplit(":", 1)[-1].rsplit("/", 1)[-1]
    if not number.isdigit():
        raise DataError(f"{pair}: name a pair by its number, as 17, or as a report does, votes.db#3:17.")
    with opened(store) as s:
        found = why(s, int(number))
    _show(found)
    return found


def _show(found: dict[str, Any]) -> None:
    from prefiere.data.schema import question
    from prefiere.feedback.schema import text_of
    from prefiere.files import visible

    def text(value: Any) -> str:
        return visible(question(text_of(value)))

    say(f"pair {found['pair']} ({found['purpose']})\nprompt: {text(found['prompt'])}")
    for side in ("a", "b"):
        one = found[f"answer_{side}"]
        of = ", ".join(f"{k} {one[k]}" for k in ("label", "run", "step", "seed", "sample") if k in one)
        say(f"{side}: {text(one['content'])}" + (f"\n   ({visible(of)})" if of else ""))
    columns = ("at", "person", "what", "side", "strength", "note", "counts")
    rows = [
        (e["at"], visible(e["person"]), e["kind"], e["side"] or e["reason"] or "", e["strength"] or "",
         visible(e["note"] or ""), "yes" if e["counts"] else "no")
        for e in found["said"]
    ]  # fmt: skip
    console().print(table("", columns, rows))
    for learnt in found["learnt"]:
        figures = {k: f"{v:.3g}" if isinstance(v, float) else visible(str(v)) for k, v in learnt.items()}
        say("learnt: " + ", ".join(f"{k} {v}" for k, v in figures.items()))


def _n(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _share(value: float | None) -> str:
    return "-" if value is None or value != value else f"{value:.0%}"


def _range(value: float | None, low: float | None, high: float | None) -> str:
    if value is None or value != value:
        return "-"
    if low is None or high is None or low != low:
        return f"{value:.2f}"
    return f"{value:.2f} ({low:.2f} to {high:.2f})"
