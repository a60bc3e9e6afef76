"""What comes out of a store is what people said: snapshots, exports, ``--data STORE``, leaving out, forgetting."""

from __future__ import annotations

import dataclasses
import json
import random
import re

import pytest

from feedback.conftest import fill, rows
from feedback.test_votes import NOW, Desk
from prefiere.cli.main import app
from prefiere.data import formats
from prefiere.feedback import exchange, items, people, schema, snapshot, trace
from prefiere.feedback.figures import figures
from prefiere.feedback.store import Store, StoreError
from prefiere.feedback.votes import Said


def vote(store, name, scores, *, start=None):
    """Let somebody vote on all that they are given: scores as the pair's own sides (-3 is a by far)."""
    desk = Desk(store, name)
    for said in scores:
        lease = desk.take(start or NOW)
        if isinstance(said, Said):
            desk.say(lease, lease.seq, said)
        else:
            desk.say(lease, lease.seq, Said(score=-said if lease.swapped else said, ms=4000, input="key"))


def test_pairs_are_what_was_said(store):
    fill(store, 3)
    vote(store, "ana", [-2, 3, 0])
    got = formats.read(store.name, kind="pairs")
    by_prompt = {p.prompt: p for p in got}
    said = {r["id"]: r for r in rows(store, schema.pair)}
    assert len(by_prompt) == 3
    assert "#1@" in got.files[0]
    decided = [p for p in by_prompt.values() if p.label > 0.5]
    assert {p.chosen[0] for p in decided} == {"a", "b"}
    assert sorted(p.label for p in by_prompt.values())[0] == 0.5
    for p in by_prompt.values():
        assert int(p.source.rsplit(":", 1)[1]) in said


def test_a_snapshot_is_taken_once_and_stays_readable(store):
    fill(store, 3)
    vote(store, "ana", [-2, 3])
    first = list(formats.read(store.name, kind="pairs"))
    assert list(formats.read(store.name, kind="pairs")) == first
    assert len(rows(store, schema.snapshot)) == 1
    vote(store, "ana", [1])
    assert len(list(formats.read(store.name, kind="pairs"))) == 3
    assert list(formats.read(f"{store.name}#1", kind="pairs")) == first
    with pytest.raises(StoreError, match="no snapshot 9"):
        formats.read(f"{store.name}#9", kind="pairs")
    with pytest.raises(ValueError, match="by its number"):
        formats.read(f"{store.name}#one", kind="pairs")


def test_both_bad_and_ideals_go_where_each_loss_can_use_them(store):
    fill(store, 2)
    vote(store, "ana", [Said(both_bad=True, ideal="mejor"), -3])
    pairs = list(formats.read(store.name, kind="pairs"))
    assert sorted((p.chosen, p.rejected[0]) for p in pairs if p.chosen == "mejor") == [("mejor", "a"), ("mejor", "b")]
    assert len(pairs) == 3
    judged = list(formats.read(store.name, kind="judgements"))
    assert sorted((j.completion[0], j.desirable) for j in judged) == sorted(
        [("a", False), ("b", False), ("m", True), ("a", True), ("b", False)]
    )
    assert [d.completion for d in formats.read(store.name, kind="demonstrations")] == ["mejor"]
    assert len(list(formats.read(store.name, kind="prompts"))) == 2
    said = {c.preference: c for c in formats.read_comparisons(store.name)}
    assert set(said) == {"both_bad", "a"}
    assert (said["a"].annotator, said["a"].strength) == ("ana", 1.0)
    assert said["a"].created_at is not None


@pytest.mark.parametrize("kind", ["pairs", "judgements", "demonstrations", "comparisons"])
def test_a_store_without_votes_says_what_to_do(sqlite_store, kind):
    fill(sqlite_store, 2)
    with pytest.raises(ValueError, match=r"serve|votes in it yet|key E"):
        formats.read(sqlite_store.name, kind=kind)


def test_eval_pairs_are_another_split_and_never_learnt_from(sqlite_store):
    fill(sqlite_store, 2)
    fill(sqlite_store, 1, purpose="eval", start=50)
    fill(sqlite_store, 1, purpose="compare", start=60)
    vote(sqlite_store, "ana", [-1] * 4)
    assert {p.prompt for p in formats.read(sqlite_store.name, kind="pairs")} == {"¿Qué es 0?", "¿Qué es 1?"}
    held = formats.read(sqlite_store.name, kind="pairs", split="eval")
    assert [p.prompt for p in held] == ["¿Qué es 50?"]


def test_hard_text_comes_out_as_it_went_in(store, tmp_path):
    hard = "NUL \x00 and bidi \u202e and 🐕"
    rng_rows = [{"prompt": hard, "answer_a": "x\x00", "answer_b": "y", "preference": "a", "annotator": "Ana ☕"}]
    path = tmp_path / "hard.jsonl"
    path.write_text("\n".join(map(json.dumps, rng_rows)), encoding="utf-8")
    exchange.read_in(store, str(path))
    (back,) = formats.read_comparisons(store.name)
    assert (back.prompt, back.answer_a, back.annotator) == (hard, "x\x00", "Ana ☕")


def test_votes_of_a_file_without_times_are_none_of_the_last_hour(sqlite_store, tmp_path, monkeypatch):
    """They have the time at which they were read, and nobody has voted then."""
    fill(sqlite_store, 1)
    vote(sqlite_store, "ana", [-2])
    path = tmp_path / "said.jsonl"
    path.write_text('{"prompt": "q", "answer_a": "x", "answer_b": "y", "preference": "a", "annotator": "ana"}')
    monkeypatch.setattr("time.time", lambda: NOW)
    exchange.read_in(sqlite_store, str(path))
    found = figures(sqlite_store, NOW + 60)
    assert (found.votes, found.last_hour) == (2, 1)


def test_votes_of_a_file_come_out_again(sqlite_store, tmp_path):
    said = [
        {"prompt": "q1", "answer_a": "x", "answer_b": "y", "preference": "a", "annotator": "ana", "strength": 1 / 3},
        {"prompt": "q1", "answer_a": "y", "answer_b": "x", "preference": "a", "annotator": "beto"},
        {"prompt": "q2", "answer_a": "x", "answer_b": "y", "preference": "tie", "annotator": "ana",
         "created_at": "2026-03-01T10:00:00+00:00"},
        {"prompt": "q3", "answer_a": "x", "answer_b": "y", "preference": "both_bad"},
    ]  # fmt: skip
    path = tmp_path / "said.jsonl"
    path.write_text("\n".join(map(json.dumps, said)))
    assert exchange.read_in(sqlite_store, str(path)) == {
        "pairs added": 3, "pairs there before": 1, "votes added": 4
    }  # fmt: skip
    assert exchange.read_in(sqlite_store, str(path))["votes there before"] == 4
    back = [(c.prompt, c.answer_a, c.preference, c.annotator) for c in formats.read_comparisons(sqlite_store.name)]
    assert back == [("q1", "x", "a", "ana"), ("q1", "x", "b", "beto"), ("q2", "x", "tie", "ana"),
                    ("q3", "x", "both_bad", "said.jsonl")]  # fmt: skip
    for out in (tmp_path / "out.jsonl", tmp_path / "out.xlsx"):  # a sheet has a header
        exchange.write_out(sqlite_store, out, "comparisons")
        assert list(formats.read_comparisons(out)) == [
            dataclasses.replace(c, source=f"{out}:{i}")
            for i, c in enumerate(formats.read_comparisons(sqlite_store.name), 1 + (out.suffix == ".xlsx"))
        ]


def test_gold_of_a_file_is_the_measure_of_people(sqlite_store, tmp_path):
    path = tmp_path / "gold.jsonl"
    path.write_text(json.dumps({"prompt": "q", "chosen": "good", "rejected": "bad"}))
    exchange.read_in(sqlite_store, str(path), into="gold")
    assert [(g["side"], g["set_by"]) for g in rows(sqlite_store, schema.gold)] == [("a", "gold.jsonl")]
    assert rows(sqlite_store, schema.pair)[0]["open"] == 0
    with pytest.raises(ValueError, match="nobody has preferred"):
        formats.read(sqlite_store.name, kind="pairs")


def built(path, names):
    """A store in which some of three people have voted; always the same pairs."""
    store = Store.open(path, create=True)
    fill(store, 4, overlap=3)
    for name in names:
        vote(store, name, {"ana": [-2, 1, 3, 0], "beto": [2, 2, -1, -1], "caro": [-3, -3, 1, 1]}[name])
    return store


def learnt(store):
    return [
        (p.prompt, p.chosen, p.rejected, p.label, p.weight) for p in formats.read(store.name, kind="pairs")
    ]  # fmt: skip


@pytest.mark.parametrize("how", ["leave_out", "forget"])
@pytest.mark.long
def test_without_somebody_is_as_if_they_had_never_been(tmp_path, how):
    with_her, never = built(tmp_path / "a.db", ["beto", "ana", "caro"]), built(tmp_path / "b.db", ["beto", "caro"])
    before = learnt(with_her)
    if how == "leave_out":
        with with_her.write() as c:
            people.leave_out(c, people.person_named(c, "ana"))
    else:
        people.forget(with_her, "ana")
    assert learnt(with_her) == learnt(never) != before
    with with_her.read() as one, never.read() as other:
        digests = [snapshot.snapshot_digest(snapshot.snapshot_contents(c, snapshot.labelled(c))) for c in (one, other)]
    assert digests[0] == digests[1]
    if how == "leave_out":
        with with_her.write() as c:
            people.leave_out(c, people.person_named(c, "ana"), False)
        assert learnt(with_her) == before


def test_forgetting_leaves_no_trace_in_the_files_and_names_who_holds_copies(tmp_path):
    store = Store.open(tmp_path / "votes.db", create=True)
    fill(store, 2, overlap=2)
    secret, pseudonym = "un secreto muy mio", "anastasia-pseudonym"
    with store.write() as c:
        people.add(c, pseudonym, name="Anastasia Apellido", token="t0k3n")
    vote(store, pseudonym, [Said(score=1, text=secret, ideal=secret + " ideal"), -1])
    vote(store, "beto", [1, 1])
    exchange.write_out(store, tmp_path / "out.jsonl", "pairs")
    run = tmp_path / "runs" / "r1"
    run.mkdir(parents=True)
    run.joinpath("data.json").write_text(json.dumps({"files": [f"{store.name}#1@abc"]}))
    gone = people.forget(store, pseudonym)
    assert (gone.votes, gone.snapshots, gone.exports) == (2, (1,), (str(tmp_path / "out.jsonl"),))
    assert trace.runs_that_hold(store.name, pseudonym, gone.snapshots, tmp_path / "runs") == [str(run)]
    files = list(tmp_path.glob("votes.db*"))
    for word in (secret, pseudonym, "Apellido"):
        assert not any(word.encode() in p.read_bytes() for p in files)
    with pytest.raises(StoreError, match="forgotten"):
        formats.read(f"{store.name}#1", kind="pairs")
    (who,) = [p for p in rows(store, schema.person) if p["forgotten_at"]]
    assert (who["forgotten_votes"], who["token_hash"], who["name"]) == (2, None, None)
    assert {p["open"] for p in rows(store, schema.pair)} == {1}  # somebody else may be asked
    with pytest.raises(StoreError, match="nobody of this name"):
        people.forget(store, pseudonym)


def test_why_leads_from_a_pair_to_person_time_model_and_snapshot(sqlite_store):
    fill(sqlite_store, 1)
    vote(sqlite_store, "ana", [-3])
    (pair,) = formats.read(sqlite_store.name, kind="pairs")
    found = trace.why(sqlite_store, int(pair.source.rsplit(":", 1)[1]))
    assert (found["prompt"], found["answer_a"]["content"]) == (pair.prompt, pair.chosen)
    (said,) = found["said"]
    assert (said["person"], said["side"], said["strength"], said["counts"]) == ("ana", "a", 3, True)
    assert said["at"].startswith("2026-")
    assert found["learnt"][0]["snapshot_id"] == 1
    with pytest.raises(StoreError, match="no pair 77"):
        trace.why(sqlite_store, 77)


def run(*words):
    from typer.testing import CliRunner

    return CliRunner().invoke(app, list(words))


@pytest.mark.long
def test_the_commands(tmp_path):
    store = built(tmp_path / "votes.db", ["ana", "beto"])
    store.close()
    name = str(tmp_path / "votes.db")
    added = json.loads(run("votes", "people", name, "--add", "caro", "--role", "admin", "--json").stdout)
    assert added["link"].startswith("/join/")
    assert [p["votes"] for p in added["people"]] == [4, 4, 0]
    agreed = json.loads(run("votes", "agree", name, "--json").stdout)
    assert (agreed["votes"], agreed["doubled"]) == (8, 4)
    assert json.loads(run("votes", "export", name, "-o", str(tmp_path / "o.jsonl"), "--json").stdout)["records"] == 4
    assert run("votes", "leave-out", name, "ana").exit_code == 0
    assert json.loads(run("votes", "agree", name, "--json").stdout)["votes"] == 4
    assert run("votes", "people", name, "--restore", "ana").exit_code == 0
    told = run("votes", "why", name, "1").stdout
    assert "beto" in told
    assert re.search(r"^learnt: .*label [\d.]+", told, re.M)
    assert not re.search(r"\d\.\d{4}", told)  # figures, not what floats hold
    assert "forgotten, with 4 votes" in run("votes", "forget", name, "beto", "--runs", str(tmp_path)).stdout
    for wrong in (["people", "none.db"], ["forget", name, "nadie"], ["why", name, "x"]):
        assert run("votes", *wrong).exit_code == 2


def test_terminal_output_spells_control_characters_out(tmp_path):
    store, evil = Store.open(tmp_path / "votes.db", create=True), "\x1b[31m\x1b]0;title\x07\u202e[bold]"
    with store.write() as c:
        p = items.add_prompt(c, "q" + evil)
        models = [items.add_model(c, f"{m}{evil}", m, m) for m in ("uno", "dos")]
        a, b = (
            items.add_answer(
                c, p, f"{m}{evil}", items.Drawn(model_id=m, seed=0, sample=0, temperature=1, top_p=1, max_new_tokens=9)
            )
            for m in models
        )
        items.add_pair(c, p, a, b, purpose="compare", rng=random.Random(0))
    vote(store, "eva" + evil, [Said(score=-1, text="note" + evil)])
    store.close()
    said = {"people": "eva", "agree": "uno", "why": "note"}
    for command, told in said.items():
        for options in ((), ("--json",)):
            pair = ("1",) if command == "why" else ()
            out = run("votes", command, str(tmp_path / "votes.db"), *pair, *options).stdout
            assert told in out
            assert "\x1b" not in out
            assert "\x07" not in out
            assert "\u202e" not in out or options  # in JSON it stands between quotes, for programs
            assert "[bold]" in out  # markup of the terminal's own is text, too
