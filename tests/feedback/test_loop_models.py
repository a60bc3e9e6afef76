"""The loop with real models, in processes that are really killed: the same rows and the same weights."""

from __future__ import annotations

import hashlib
import os
import signal
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

import prefiere.train.setup  # noqa: F401 (what a loop imports, before it is forked)
from feedback.conftest import rows
from feedback.test_exchange import vote
from prefiere.api import training
from prefiere.cli.loop import Models
from prefiere.cli.main import app
from prefiere.feedback import schema
from prefiere.feedback.rounds.loop import Rounds
from prefiere.feedback.rounds.recipe import load_loop
from prefiere.feedback.store import Store
from prefiere.run import Run
from runs import model_folder

RECIPE = """\
store: votes.db
model: model
prompts: p.txt
out: runs
ask: {votes: 0}
compare: {votes: 0}
judge: rewarding:letters
max_new_tokens: 8
train: {max_steps: 3, batch_size: 4, learning_rate: 1e-3, eval_size: 2, sample_steps: 0, save_steps: 1}
"""


def killing(state: str, when: str) -> None:
    """Let this process kill itself: where a state was entered, where its work is done, or in the middle of a run."""
    arrow, log = Rounds._to, Run.log

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def to(self, now, target, c=None, **values):
        if when == "after" and now.state == state:
            die()
        found = arrow(self, now, target, c, **values)
        if when == "before" and c is None and target == state:
            die()
        return found

    def row(self, values):
        log(self, values)
        if values["step"] == 2:
            die()

    if when == "middle":
        Run.log = row  # type: ignore[method-assign]
    Rounds._to = to  # type: ignore[method-assign]


def loop(folder: Path, kill: tuple[str, str] | None = None) -> int:
    """`prefiere loop` in a process of its own; its exit status, negative for a signal.

    It is forked, since importing torch takes longer than a loop of tiny models.
    """
    child = os.fork()
    if not child:
        code = 99
        try:
            os.chdir(folder)
            training._write_report = lambda run: None  # figures take longer than all else, and nothing here reads them
            if kill:
                killing(*kill)
            done = CliRunner().invoke(app, ["loop", "r.yaml", "--json"])
            (folder / "said").write_text(f"{done.stdout}\n{done.stderr}\n{done.exception!r}")
            code = done.exit_code
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def made_folder(folder: Path, rounds: int) -> Path:
    folder.mkdir()
    model_folder(folder / "model")
    (folder / "p.txt").write_text("".join(f"{i} el perro?\n" for i in range(8)))
    (folder / "r.yaml").write_text(f"{RECIPE}rounds: {rounds}\n")
    return folder


def end_of(folder: Path):
    """Rounds, pairs, snapshots, votes, and a hash of the weights of each round's model."""
    store = Store.open(folder / "votes.db")
    found = {"weights": {p.parent.parent.name: hashlib.sha256(p.read_bytes()).hexdigest()
                         for p in sorted(folder.glob("runs/*/model/model.safetensors"))}}  # fmt: skip
    skip = {"started", "ended", "at", "run", "path"}
    for table in (schema.round_, schema.pair, schema.snapshot, schema.snapshot_row, schema.model, schema.answer):
        found[table.name] = [{k: v for k, v in r.items() if k not in skip} for r in rows(store, table)]
    found["votes"] = [r["score"] for r in rows(store, schema.event)]
    store.close()
    return found


@pytest.fixture(scope="module", params=[1, pytest.param(2, marks=pytest.mark.slow)])
def whole(request, tmp_path_factory):
    """How many rounds, and how a loop of them ends that nothing interrupts."""
    folder = made_folder(tmp_path_factory.mktemp("loop") / "whole", request.param)
    assert loop(folder) == 0, (folder / "said").read_text()
    return request.param, end_of(folder), folder


@pytest.mark.long
def test_each_round_leaves_a_model_and_its_provenance(whole):
    rounds, end, _ = whole
    assert [(r["n"], r["state"]) for r in end["round"]] == [(n, "closed") for n in range(1, rounds + 1)]
    assert sorted(end["weights"]) == [f"round-{n}" for n in range(1, rounds + 1)]
    assert len(set(end["weights"].values())) == rounds
    assert [(m["label"], m["round_id"]) for m in end["model"]] == [
        ("model", None), *((f"runs/round-{n}", n) for n in range(1, rounds + 1))
    ]  # fmt: skip
    assert {p["round_id"] for p in end["pair"]} == set(range(1, rounds + 1))


@pytest.mark.long
def test_what_people_say_of_the_comparison_is_in_the_runs_report(whole, monkeypatch):
    _, _, folder = whole
    monkeypatch.chdir(folder)
    store = Store.open("votes.db")
    with store.write() as c:
        c.execute(schema.pair.update().where(schema.pair.c.purpose != "compare").values(open=0))
    vote(store, "ana", [2])
    Models(store, load_loop("r.yaml"), Console(quiet=True)).report("runs/round-1")
    run = Run.open("runs/round-1")
    assert (run.blind["won"], run.blind["after"], run.blind["people"]) == (1, "runs/round-1", ["ana"])
    assert "ana" in (run.folder / "report.html").read_text(encoding="utf-8")
    store.close()


STATES = ["new", "sampling", "asking", "frozen", "training", "sampling_after", "comparing", "judged"]
REST = [(s, "after") for s in STATES] + [(s, "before") for s in (*STATES, "closed") if s not in ("new", "frozen")]


@pytest.mark.parametrize(
    ("state", "when"),
    [
        pytest.param("training", "middle", marks=pytest.mark.long),
        *(pytest.param(s, w, marks=pytest.mark.slow) for s, w in REST),
    ],
)
def test_killed_in_any_state_the_same_command_ends_with_the_same_rows_and_weights(whole, tmp_path, state, when):
    rounds, end, _ = whole
    folder = made_folder(tmp_path / "killed", rounds)
    assert loop(folder, (state, when)) == -signal.SIGKILL
    assert loop(folder) == 0, (folder / "said").read_text()
    found = end_of(folder)
    assert {name for name, rows_ in found.items() if rows_ != end[name]} == set()
