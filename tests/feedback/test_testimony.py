"""Who said so: what a run folder records of the votes it learnt from, and how its report says it."""

from __future__ import annotations

import json
import random
import re

import pytest

from feedback.conftest import fill
from feedback.test_exchange import vote
from prefiere.asked.language import speaking
from prefiere.data import formats
from prefiere.feedback import items, people, trace
from prefiere.feedback.store import Store
from prefiere.feedback.testimony import blind_comparison
from prefiere.feedback.votes import Said
from prefiere.report.page import report_html
from prefiere.report.people import who_said_so
from prefiere.stats import clustered_mean, sign_test
from synthetic_runs import make


def told(store: Store) -> dict:
    found = formats.read(store.name, kind="pairs").votes
    assert found is not None
    return json.loads(json.dumps(found))


def test_the_record_says_who_voted_how_often_and_how_far_they_agree(store):
    fill(store, 4, overlap=2)
    vote(store, "ana", [2, 2, 0, Said(both_bad=True)])
    vote(store, "beto", [2, -2])
    vote(store, "eva", [1])
    with store.write() as c:
        people.leave_out(c, people.person_named(c, "eva"))
    found = told(store)
    assert found["snapshot"] == 1
    assert re.fullmatch(r"[0-9a-f]{64}|[0-9a-f]{32}", found["digest"])
    assert (found["votes"], found["pairs"]) == (6, 4)
    assert [(p["name"], p["votes"]) for p in found["people"]] == [("ana", 4), ("beto", 2)]
    assert all(0.5 < p["eta"] < 1 for p in found["people"])
    assert (found["ties"], found["both_bad"], found["ideals"]) == (1, 1, 0)
    assert found["agreement"]["doubled"] == 2
    assert found["left_out"] == {"eva": "left out"}


def test_the_same_teachings_of_other_people_are_not_taken_for_theirs(tmp_path, monkeypatch):
    """Two stores of one name that teach the same: what is kept by contents must not say who said it."""
    said = []
    for name in ("ana", "beto"):
        folder = tmp_path / name
        folder.mkdir()
        store = Store.open(folder / "votes.db", create=True)
        fill(store, 2)
        vote(store, name, [2, 2])
        store.close()
        monkeypatch.chdir(folder)
        said.append(formats.read("votes.db", kind="pairs"))
    assert said[0].key() == said[1].key()
    assert [s.votes["people"][0]["name"] for s in said] == ["ana", "beto"]


def compared(store: Store, run: str, scores: list[int], voters: tuple[str, ...] = ("ana",)) -> None:
    """Blind comparisons of a run with its former self, ``scores`` from -3 (before) to 3 (after) of each voter."""
    with store.write() as c:
        before, after = items.add_model(c, "base", "base", "f0"), items.add_model(c, run, run, "f1", run=run)
        for i in range(len(scores)):
            p = items.add_prompt(c, f"q{i}")
            a, b = (
                items.add_answer(
                    c,
                    p,
                    f"{m} {i}",
                    items.Drawn(model_id=m, seed=0, sample=0, temperature=1, top_p=1, max_new_tokens=9),
                )
                for m in (before, after)
            )
            items.add_pair(c, p, a, b, purpose="compare", overlap=len(voters), rng=random.Random(0))
    for name in voters:
        vote(store, name, scores)


def test_the_blind_comparison_of_a_run_is_its_own(sqlite_store, tmp_path):
    run = tmp_path / "r"
    assert blind_comparison(sqlite_store, run) is None
    compared(sqlite_store, str(run.resolve()), [2, 3, 1, 1, 2, -1, 0])
    found = blind_comparison(sqlite_store, run)
    assert found is not None
    assert (found["won"], found["lost"], found["tied"], found["before"]) == (5, 1, 1, "base")
    seen = clustered_mean([1, 1, 1, 1, 1, 0], range(6), share=True)
    assert (found["share"], found["low"], found["high"]) == (seen.mean, seen.low, seen.high)
    assert found["p"] == sign_test(5, 1) == pytest.approx(14 / 64)  # twice the tail: (1 + 6) / 2^6
    assert blind_comparison(sqlite_store, tmp_path / "another") is None


def test_votes_of_several_people_on_one_pair_are_not_independent(sqlite_store, tmp_path):
    """Three people who agree on five prompts have shown no more than one of them: 5 coins, not 15."""
    run = tmp_path / "r"
    compared(sqlite_store, str(run.resolve()), [2, 2, 2, 2, -2], ("ana", "beto", "eva"))
    found = blind_comparison(sqlite_store, run)
    assert found is not None
    assert (found["won"], found["lost"], found["share"]) == (12, 3, 0.8)
    assert found["p"] == pytest.approx(12 / 32)  # twice the tail: (1 + 5) / 2^5
    alone = clustered_mean([1, 1, 1, 1, 0], range(5), share=True)
    assert (found["low"], found["high"]) == pytest.approx((alone.low, alone.high))


def test_ties_alone_have_no_share(sqlite_store, tmp_path):
    run = make(tmp_path / "r")
    compared(sqlite_store, str(run.folder.resolve()), [0, 0])
    run.blind = blind_comparison(sqlite_store, run.folder) or {}
    said = who_said_so(run)
    assert said is not None
    assert said.blind == "The trained model won 0, lost 0 and tied 2 of 2 blind comparisons by ana."


@pytest.mark.long
def test_the_report_says_who_said_so_from_the_folder_alone_and_forget_finds_it(store, tmp_path):
    fill(store, 3, overlap=2)
    vote(store, "ana<b>", [2, 2, 0])
    vote(store, "beto", [2, 2, 1])
    run = make(tmp_path / "runs" / "deep" / "r", steps=5, drop=("rewards/", "samples/", "logps/", "eval_rewards/"))
    plain = report_html([run])
    assert "Who said so" not in plain
    record = told(store)
    run.data = {"train": {"votes": record}}
    compared(store, str(run.folder.resolve()), [2, 3, 1, 1])
    run.blind = blind_comparison(store, run.folder) or {}
    shown = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", report_html([run])))
    assert "Who said so" in shown
    assert "6 on 3 pairs" in shown
    assert "ana&lt;b&gt;" in shown
    assert "1 (17%)" in shown  # ties
    assert "people elsewhere: 63 to 77%" in shown
    assert f"1 @ {record['digest'][:12]}" in shown
    assert "won 4, lost 0 and tied 0 of 4 blind comparisons by ana" in shown
    assert "sign test p = 0.12" in shown  # 2 / 2^4
    with speaking("es"):
        spoken = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", report_html([run])))
    for words in ("6 sobre 3 pares", "empates", "ambas malas", "personas en otros lugares: del 63 al 77%"):
        assert words in spoken
    assert "ganó 4, perdió 0 y empató 0 de 4 comparaciones a ciegas de ana" in spoken
    assert "(28 a 100%) de las decididas, prueba de los signos p = 0.12." in spoken
    for name in ("ana<b>", "beto"):
        gone = people.forget(store, name)
        assert trace.runs_that_hold(store.name, name, gone.snapshots, tmp_path / "runs") == [str(run.folder)]
    assert trace.runs_that_hold(store.name, "nobody", (), tmp_path / "runs") == []


@pytest.mark.parametrize("record", [
    {"train": {"votes": {"people": "x", "agreement": 3, "left_out": [1], "votes": "many"}}}, {"train": {"votes": []}},
    {"train": []}, {"train": {"votes": {"people": [1, {"name": {}, "eta": "x"}], "agreement": {"doubled": 2}}}},
])  # fmt: skip
def test_a_record_of_another_shape_is_shown_as_far_as_it_goes(tmp_path, record):
    run = make(tmp_path / "r", steps=5, drop=("rewards/", "samples/", "logps/", "eval_"))
    run.data, run.blind = record, {"won": "x", "people": 3}
    assert "Who said so" in report_html([run])
