"""Answers of models become pairs once, whatever is killed; judges vote without taking anybody's place."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from feedback.conftest import fill, rows
from feedback.test_exchange import run, vote
from feedback.test_votes import valid
from prefiere.feedback import schema
from prefiere.feedback.collect import How, Queueing, collect_pairs
from prefiere.feedback.figures import figures
from prefiere.feedback.judging.voting import by_scores, vote_by

ASKED = [(f"¿Qué es {i}?", f"p.txt:{i}") for i in range(20)]


class Canned:
    """A model whose answers follow from its name, the prompt, the seed and the number of the sample."""

    run = step = None

    def __init__(self, name: str, dies_after: int | None = None, silent: bool = False):
        self.label = self.path = self.fingerprint = name
        self.calls, self.dies_after, self.silent = 0, dies_after, silent

    def __call__(self, prompts, samples, how, numbers: Sequence[int]) -> list[list[str]]:
        self.calls += 1
        if self.dies_after is not None and self.calls > self.dies_after:
            raise KeyboardInterrupt
        if self.silent:
            return [[" "] * samples for _ in prompts]
        return [[f"{self.label}: {p} {how.seed} {i}" for i in range(samples)] for p in prompts]


def test_one_model_answers_twice_and_two_answer_once_each(store):
    one, two = Canned("one"), Canned("two")
    assert collect_pairs(store, [one], ASKED, How(), Queueing()) == {"pairs queued": 20}
    assert collect_pairs(store, [one, two], ASKED, How(), Queueing(purpose="compare", overlap=2)) == {
        "pairs queued": 20
    }
    assert len(rows(store, schema.answer)) == 60
    assert {p["purpose"] for p in rows(store, schema.pair)} == {"ask", "compare"}
    models = {a["id"]: a["model_id"] for a in rows(store, schema.answer)}
    for pair in rows(store, schema.pair):
        assert (models[pair["a_id"]] == models[pair["b_id"]]) == (pair["purpose"] == "ask")


def test_what_is_there_is_not_sampled_again_and_a_killed_command_goes_on(sqlite_store):
    with pytest.raises(KeyboardInterrupt):
        collect_pairs(sqlite_store, [Canned("one", dies_after=1)], ASKED, How(), Queueing())
    assert len(rows(sqlite_store, schema.answer)) == 32
    again = Canned("one")
    assert collect_pairs(sqlite_store, [again], ASKED, How(), Queueing()) == {"pairs queued": 20}
    assert again.calls == 1
    once_more = Canned("one")
    assert collect_pairs(sqlite_store, [once_more], ASKED, How(), Queueing()) == {"pairs there before": 20}
    assert once_more.calls == 0
    assert collect_pairs(sqlite_store, [Canned("newer")], ASKED, How(), Queueing()) == {"pairs queued": 20}


def test_a_model_that_says_nothing_is_an_error_and_asks_nothing(sqlite_store):
    with pytest.raises(ValueError, match="mute: no pair of answers says anything"):
        collect_pairs(sqlite_store, [Canned("mute", silent=True)], ASKED, How(), Queueing())
    assert not rows(sqlite_store, schema.pair)


def test_a_prompt_without_text_stops_before_anything_is_written(sqlite_store):
    with pytest.raises(ValueError, match=r"p\.txt:9"):
        collect_pairs(sqlite_store, [Canned("one")], [*ASKED, ("  ", "p.txt:9")], How(), Queueing())
    assert not rows(sqlite_store, schema.prompt)


def test_a_judge_votes_on_all_and_takes_no_place(sqlite_store):
    fill(sqlite_store, 10, overlap=2)
    for name in ("ana", "beto"):
        vote(sqlite_store, name, [-2] * 10)
    fill(sqlite_store, 20, start=100)
    before = {p["id"]: p["open"] for p in rows(sqlite_store, schema.pair)}

    def longer_number(prompts, completions):
        return np.array([float(len(c)) for c in completions])

    def prefers_b(prompts, completions):
        return np.array([float(c.startswith("b")) for c in completions])

    assert vote_by(sqlite_store, "b!", by_scores(prefers_b), limit=10) == 10
    common = {v.pair_id for v in valid(sqlite_store) if v.judge}
    assert common == {v.pair_id for v in valid(sqlite_store) if not v.judge}  # those that people did come first
    assert vote_by(sqlite_store, "b!", by_scores(prefers_b)) == 20
    assert vote_by(sqlite_store, "b!", by_scores(prefers_b)) == 0
    assert vote_by(sqlite_store, "length", by_scores(longer_number)) == 30
    assert before == {p["id"]: p["open"] for p in rows(sqlite_store, schema.pair)}
    said = [v for v in valid(sqlite_store) if v.judge]
    assert {v.side for v in said} == {"b", "tie"}
    found = {p.pseudonym: p for p in figures(sqlite_store, 0.0).people}
    assert found["b!"].kind == "judge"
    assert found["b!"].eta < 0.6 < found["ana"].eta


def test_judges_of_comparisons_are_corrected_by_people(sqlite_store):
    asked = [(f"q{i}", "") for i in range(80)]
    collect_pairs(sqlite_store, [Canned("a"), Canned("b")], asked, How(), Queueing(purpose="compare", overlap=1))
    vote(sqlite_store, "ana", [-1, 1, 1, 1] * 10)
    vote_by(sqlite_store, "always b", by_scores(lambda p, c: np.array([float(t.startswith("b")) for t in c])))
    (judged,) = figures(sqlite_store, 0.0).judged.values()
    assert (judged.n, judged.judged) == (40, 40)
    assert judged.mean == pytest.approx(0.75)  # the judge alone says 1.0
    assert judged.low < 0.75 < judged.high


BASE = str(Path(__file__).parents[2] / "src" / "prefiere" / "demo" / "assets" / "base")


@pytest.mark.long
def test_the_commands_with_the_demos_model(tmp_path):
    where, prompts = str(tmp_path / "votes.db"), tmp_path / "p.txt"
    prompts.write_text("¿Qué es un perro?\nWhat is a cat?\n¿Qué es una mesa?\n")
    sample = ["--prompts", str(prompts), "--max-new-tokens", "16", "--json"]
    first = run("collect", where, "--model", BASE, *sample)
    assert first.exit_code == 0, first.stderr
    counts = json.loads(first.stdout)["counts"]
    assert counts["pairs queued"] >= 1
    assert sum(counts.values()) == 3  # the small model may say the same twice
    again = json.loads(run("collect", where, "--model", BASE, *sample).stdout)
    assert again["counts"]["pairs there before"] == counts["pairs queued"]
    assert json.loads(run("votes", "why", where, "1", "--json").stdout)["answer_a"]["label"] == BASE
    judged = run("judge", where, "--judge", "prefiere.demo.judge:encyclopedic", "--json")
    assert json.loads(judged.stdout)["votes"] == counts["pairs queued"]
    same = run("compare", BASE, BASE, "--ask", where, *sample)
    assert same.exit_code == 2
    assert "same model, weight for weight" in same.stderr
    empty = tmp_path / "empty.txt"
    empty.write_text("\n\n")
    for wrong in (["--model", BASE, "--prompts", str(empty)], ["--model", "/none/such/x", "--prompts", str(prompts)]):
        failed = run("collect", str(tmp_path / "new.db"), *wrong)
        assert failed.exit_code == 2, failed.output
        assert failed.stderr.startswith("error")
