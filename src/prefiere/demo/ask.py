"""From nothing to one's own ten votes: the demo's model is asked, a person prefers, the model learns it, and the same
person says blind whether it became better. Nothing here is special: the steps are collect, serve, dpo, compare --ask.
"""

from __future__ import annotations

import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from rich.console import Console

from prefiere import recipe as recipes
from prefiere.api.run import Run
from prefiere.api.training import train
from prefiere.asked.language import count_of
from prefiere.cli.collect import Answering
from prefiere.console import Display
from prefiere.data.schema import Text
from prefiere.demo import corpus
from prefiere.feedback import items, schema
from prefiere.feedback.collect import How, Queueing, collect_pairs
from prefiere.feedback.schema import Purpose
from prefiere.feedback.store import Store
from prefiere.feedback.testimony import blind_comparison
from prefiere.feedback.votes import in_force
from prefiere.report.people import who_said_so

VOTES = 10
FIRST = "¿Qué es un perro?"
"""The question that is offered first."""
DPO_OPTIONS = {"batch_size": VOTES, "max_steps": 20, "eval_size": 0, "learning_rate": 3.8e-4}
"""Ten pairs are one batch: twenty updates on them took the encyclopedic share from 38% to 83% after five votes. The
rate is the automatic one of this model for updates of 32 pairs: the same ten come again, and nothing else."""


def ask_demo(base: Path, out: Path, console: Console) -> dict[str, Any]:
    """Run the demo in which a person decides, into ``out``; what was voted there before counts. Returns the figures.

    Raises ValueError where a run stopped early, with its reason.
    """
    out.mkdir(parents=True, exist_ok=True)
    store = Store.open(out / "votes.db", create=True)
    questions: list[Text] = [p.prompt for p in corpus.preferences()]
    random.Random(1).shuffle(questions)
    offered = out / "questions.txt"
    offered.write_text("\n".join((FIRST, *_short(questions))) + "\n", encoding="utf-8")
    with _page(store.name, str(base), offered) as address:
        console.print(
            f"Open {address}/ask, pick a question, and say {VOTES} times which answer you prefer (? shows the keys).",
            markup=False, soft_wrap=True,
        )  # fmt: skip
        before = Answering(str(base))
        _queue(store, [before], questions, "ask", Display(console))
        _wait(store, "ask", console)
        round_id = _round(store, None, "training")
        run = _train(base, store.name, out / "dpo", console)
        _round(store, round_id, "comparing")
        after = Answering(str(run.folder))
        asked: list[Text] = list(corpus.held_out_prompts())
        _queue(store, [before, after], asked, "compare", Display(console))
        console.print(f"The model has learnt. At {address} it now answers beside its former self, blind.", markup=False)
        _wait(store, "compare", console)
        _round(store, round_id, "closed")
    found = blind_comparison(store, run.folder)
    store.close()
    assert found is not None  # the votes were waited for
    run.blind = found
    run.report()
    said = who_said_so(run)
    if said is not None:
        console.print(said.blind, markup=False, soft_wrap=True)
    console.print(f"Report: {run.folder / 'report.html'}", markup=False, soft_wrap=True)
    return {"votes": store.name, "run": str(run.folder), **found}


def _short(questions: Sequence[Text]) -> list[str]:
    """Some questions as text, to pick from."""
    texts = [q if isinstance(q, str) else q[0].content for q in questions]
    return [text for text in texts if text != FIRST][-8:]


def _queue(store: Store, models: list[Answering], prompts: list[Text], purpose: Purpose, display: Display) -> None:
    """Let the models answer until there are VOTES pairs of this purpose and no more, or no prompts are left."""
    how, queueing = How(max_new_tokens=64), Queueing(purpose=purpose, overlap=1)
    start, lacking = 0, VOTES - _count(store, purpose)
    with display.stage("sampling", VOTES, start=VOTES - lacking) as advance:
        while lacking > 0 and start < len(prompts):  # the model often says the same twice: then nothing is asked
            chunk = [(text, f"demo:{start + n}") for n, text in enumerate(prompts[start : start + lacking])]
            made = collect_pairs(store, models, chunk, how, queueing)["pairs queued"]
            start, lacking = start + len(chunk), lacking - made
            advance(made)


def _count(store: Store, purpose: Purpose) -> int:
    with store.read() as c:
        count = sa.select(sa.func.count()).select_from(schema.pair).where(schema.pair.c.purpose == purpose)
        return int(c.execute(count).scalar_one())


def _wait(store: Store, purpose: Purpose, console: Console) -> None:
    """Until so many votes of this purpose are in force, or every pair of it has one."""
    wanted = min(VOTES, _count(store, purpose))
    seen = -1
    while True:
        with store.read() as c:
            given = sum(v.purpose == purpose for v in in_force(c))
        if given != seen:
            console.print(f"  {given} of {count_of(wanted, 'vote')}", markup=False)
            seen = given
        if given >= wanted:
            return
        time.sleep(0.5)


def _train(base: Path, votes: str, out: Path, console: Console) -> Run:
    settings = recipes.load("dpo", None, {"model": str(base), "data": votes, "out": str(out), **DPO_OPTIONS})
    run = train(settings, fresh=out.is_dir(), console=console)
    if run.stopped:
        raise ValueError(f"the demo's run {out.name} did not finish: {run.stopped.text}")
    return run


def _round(store: Store, round_id: int | None, state: str) -> int:
    """Note where the round is: the page tells whoever waits."""
    with store.write() as c:
        if round_id is None:
            n = int(c.execute(sa.select(sa.func.count()).select_from(schema.round_)).scalar_one()) + 1
            return items.insert(c, schema.round_, n=n, state=state, recipe_digest="demo", started=time.time())
        c.execute(sa.update(schema.round_).where(schema.round_.c.id == round_id).values(state=state))
        return round_id


@contextmanager
def _page(votes: str, base: str, questions: Path) -> Iterator[str]:
    """The page in a process of its own, with the Ask page on the demo's model and questions for it; its address."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [sys.executable, "-m", "prefiere", "serve", votes, "--model", base, "--prompts", str(questions),
               "--port", str(port)]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        _up(port, process.poll)
        yield f"http://localhost:{port}"
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()


def _up(port: int, ended: Callable[[], int | None]) -> None:
    """Wait until something listens. Raises ValueError where the page's process ended instead."""
    while ended() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise ValueError("the page could not be served; `prefiere serve` says why.")
