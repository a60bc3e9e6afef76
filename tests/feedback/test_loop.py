"""The loop goes on wherever it was killed and ends as if it had not been: without torch here, on stand-in models."""

from __future__ import annotations

import json
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from feedback.conftest import rows
from feedback.test_collect import Canned
from feedback.test_exchange import run, vote
from feedback.test_votes import Desk
from prefiere.feedback import items, people, schema
from prefiere.feedback.collect import collect_pairs
from prefiere.feedback.judging.voting import by_scores, vote_by
from prefiere.feedback.leases import Nothing
from prefiere.feedback.rounds import waiting
from prefiere.feedback.rounds.loop import Rounds
from prefiere.feedback.rounds.recipe import Asking, LoopRecipe, load_loop
from prefiere.feedback.rounds.verdict import verdict_of
from prefiere.feedback.science.text import text_features
from prefiere.feedback.store import Store, StoreError
from prefiere.recipe import RecipeError
from prefiere.run import Stop

STATES = ["new", "sampling", "asking", "frozen", "training", "sampling_after", "comparing", "judged", "closed"]


class Killed(BaseException):
    """The process is gone."""


class Quiet:
    live = False

    def __init__(self):
        self.said: list[str] = []

    def say(self, text):
        self.said.append(text)

    @contextmanager
    def stage(self, name, total, start=0):
        yield lambda n=1: None


class Stand:
    """Models whose answers follow from their names; a judge that likes the later rounds' answers, or the earlier."""

    def __init__(self, store, *, better="after", stop=None):
        self.store, self.better, self.stop, self.trained, self.reported = store, better, stop, [], []

    def collect(self, models, prompts, how, queueing):
        asked = [(f"q{i}", f"p:{i}") for i in range(12)]
        collect_pairs(self.store, [Canned(Path(name).name) for name in models], asked, how, queueing)

    def features(self, said):
        return text_features([str(answer) for _, answer in said])

    def judge(self, round_id):
        def scores(prompts, completions):
            return np.array([float("round" in c) * (1 if self.better == "after" else -1) + 0.1 * float(c.endswith("1"))
                             for c in completions])  # fmt: skip

        vote_by(self.store, "judge", by_scores(scores), round_id=round_id)

    def train(self, model, data, out):
        self.trained.append((model, data.rpartition("/")[2], out))
        return self.stop

    def report(self, out):
        self.reported.append(out)


def asked(store, **keys):
    given = {"store": store.name, "model": "base", "prompts": "p.txt", "out": str(Path(store.name).parent / "runs"),
             "rounds": 2, "ask": {"votes": 0}, "compare": {"votes": 0}, "judge": "m:f"}  # fmt: skip
    return LoopRecipe(**given | keys)


def end_of(store):
    """Everything that a loop leaves, but times."""
    found = {}
    for table in (schema.round_, schema.pair, schema.snapshot, schema.snapshot_row, schema.model, schema.answer):
        times = {"started", "ended", "at", "recipe_digest"}  # the digest knows the folder
        found[table.name] = [{k: v for k, v in r.items() if k not in times} for r in rows(store, table)]
    found["votes"] = [{k: r[k] for k in ("score", "both_bad")} for r in rows(store, schema.event)]
    return json.loads(json.dumps(found).replace(str(Path(store.name).parent), ""))


def test_two_rounds_each_from_the_model_of_the_one_before(store, tmp_path):
    work = Stand(store)
    recipe = asked(store, out=str(tmp_path / "runs"))
    first, second = Rounds(store, recipe, work, Quiet()).run()
    assert [first.state, second.state] == ["closed", "closed"]
    one, two = str(tmp_path / "runs" / "round-1"), str(tmp_path / "runs" / "round-2")
    assert [(r.before_model, r.after_model, r.run) for r in (first, second)] == [("base", one, one), (one, two, two)]
    assert [(m, o) for m, _, o in work.trained] == [("base", one), (one, two)]
    assert work.reported == [one, two]
    pairs = rows(store, schema.pair)
    assert [(p["round_id"], p["purpose"]) for p in pairs].count((1, "ask")) == 12
    assert {(p["round_id"], p["purpose"]) for p in pairs} == {(r, k) for r in (1, 2) for k in ("ask", "compare")}
    assert [(m["label"], m["round_id"]) for m in rows(store, schema.model)] == [
        ("base", None), ("round-1", 1), ("round-2", 2)
    ]  # fmt: skip
    learnt = [r["snapshot_id"] for r in rows(store, schema.snapshot_row)]
    assert (learnt.count(first.snapshot_id), learnt.count(second.snapshot_id)) == (12, 24)  # old pairs stay in
    assert first.reason == "the model after is preferred in 100% (71% to 100%) of 12 pairs, by the judge alone"
    again = Stand(store)
    assert [r.state for r in Rounds(store, recipe, again, Quiet()).run()] == ["closed", "closed"]
    assert not again.trained


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """How a loop ends that nothing interrupts."""
    store = Store.open(tmp_path_factory.mktemp("whole") / "votes.db", create=True)
    Rounds(store, asked(store), Stand(store), Quiet()).run()
    yield end_of(store)
    store.close()


def dying(state, when, arrow=Rounds._to):
    """`Rounds._to`, but once it raises: where ``state`` was entered and nothing done (before), or its work is done
    and its arrow not yet followed (after)."""
    died = []

    def to(self, now, target, c=None, **values):
        if when == "after" and now.state == state and not died:
            died.append(1)
            raise Killed
        found = arrow(self, now, target, c, **values)
        if when == "before" and c is None and target == state and not died:
            died.append(1)
            raise Killed
        return found

    return to


KILLS = [(s, "before") for s in STATES if s not in ("new", "frozen")] + [(s, "after") for s in STATES if s != "closed"]
"""A new round is inserted, and frozen entered in the snapshot's transaction; nothing follows closed."""


@pytest.mark.parametrize(("state", "when"), KILLS)
def test_killed_in_any_state_it_ends_as_the_uninterrupted_one(sqlite_store, whole, state, when):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Rounds, "_to", dying(state, when))
        with pytest.raises(Killed):
            Rounds(sqlite_store, asked(sqlite_store), Stand(sqlite_store), Quiet()).run()
    assert not all(r["state"] == "closed" for r in rows(sqlite_store, schema.round_)) or state == "closed"
    Rounds(sqlite_store, asked(sqlite_store), Stand(sqlite_store), Quiet()).run()
    end = end_of(sqlite_store)
    assert {name for name, found in end.items() if found != whole[name]} == set()


def test_it_stops_where_the_model_after_loses(sqlite_store):
    work = Stand(sqlite_store, better="before")
    (only,) = Rounds(sqlite_store, asked(sqlite_store), work, Quiet()).run()
    assert only.state == "stopped"
    assert only.reason.startswith("the model after lost: the model after is preferred in 0% (0% to 29%) of 12 pairs")
    assert rows(sqlite_store, schema.round_)[0]["ended"] is not None
    assert len(Rounds(sqlite_store, asked(sqlite_store), work, Quiet()).run()) == 1  # and stays stopped


def test_it_stops_where_the_guard_stopped_the_run(sqlite_store):
    work = Stand(sqlite_store, stop=Stop("degenerate", "guard: the answers repeat themselves"))
    (only,) = Rounds(sqlite_store, asked(sqlite_store), work, Quiet()).run()
    assert (only.state, only.reason) == ("stopped", "guard: the answers repeat themselves")
    assert only.after_model is None


def test_it_waits_for_people_and_says_so(sqlite_store):
    recipe = asked(sqlite_store, judge=None, rounds=1, ask={"votes": 4}, compare={"votes": 3}, overlap=1)
    display = Quiet()

    def people_vote():
        for wanted in (4, 3):
            while not rows(sqlite_store, schema.pair) or isinstance(Desk(sqlite_store, "ana").look(), Nothing):
                time.sleep(0.05)
            vote(sqlite_store, "ana", [2] * wanted)
            while wanted == 4 and rows(sqlite_store, schema.round_)[0]["state"] != "comparing":
                vote(sqlite_store, "ana", [2] * (not isinstance(Desk(sqlite_store, "ana").look(), Nothing)))
                time.sleep(0.02)

    ana = threading.Thread(target=people_vote)
    ana.start()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(waiting, "_LOOK", 0.05)
        (only,) = Rounds(sqlite_store, recipe, Stand(sqlite_store), display).run()
    ana.join()
    assert only.state == "closed"
    assert "by people" in only.reason
    said = "\n".join(display.said)
    assert "round 1: asking: waits for 4 votes. `prefiere serve" in said
    assert "round 1: comparing: waits for 3 votes" in said
    assert rows(sqlite_store, schema.round_)[0]["snapshot_id"] == 1


def test_asking_ends_at_votes_at_a_time_or_when_nobody_is_left_to_ask(sqlite_store, monkeypatch):
    slept = []
    monkeypatch.setattr(waiting.time, "sleep", slept.append)
    collect_pairs(sqlite_store, [Canned("m")], [("q", ""), ("r", "")], *_round_of(sqlite_store))
    look = {"name": "asking", "votes": 5}
    waiting.wait_for_people(sqlite_store, Quiet(), 1, "ask", deadline=0.0, **look)
    vote(sqlite_store, "ana", [1, 1])
    waiting.wait_for_people(sqlite_store, Quiet(), 1, "ask", **look)  # five were wanted, and two places is all there is
    assert not slept
    assert waiting.so_far(sqlite_store, 1, "ask") == waiting.SoFar(2, 0)


def _round_of(store):
    from prefiere.feedback.collect import How, Queueing

    return How(), Queueing(round_id=1, overlap=1)


def test_a_time_is_hours_after_the_beginning_or_a_moment():
    assert Asking(until="1.5h").deadline(100.0) == 100.0 + 5400
    assert Asking(until="2026-12-01T18:00+00:00").deadline(0.0) == 1796148000.0
    assert Asking(until="enough").deadline(0.0) is None
    assert Asking(until="enough").enough


def test_nobody_voted_in_time_stops_the_round(sqlite_store):
    recipe = asked(sqlite_store, judge=None, ask={"until": "0h"}, compare={"votes": 1})
    (only,) = Rounds(sqlite_store, recipe, Stand(sqlite_store), Quiet()).run()
    assert (only.state, only.reason) == ("stopped", "nobody has voted, so there is nothing to learn from")


def test_pairs_that_were_queued_before_become_the_first_rounds(sqlite_store):
    from prefiere.feedback.collect import How, Queueing

    collect_pairs(sqlite_store, [Canned("base")], [(f"q{i}", "") for i in range(12)], How(), Queueing())
    Rounds(sqlite_store, asked(sqlite_store, rounds=1), Stand(sqlite_store), Quiet()).run()
    assert [(p["round_id"], p["purpose"]) for p in rows(sqlite_store, schema.pair)][:12] == [(1, "ask")] * 12


def test_folders_of_another_loop_are_left_alone(sqlite_store, tmp_path):
    (tmp_path / "runs" / "round-1").mkdir(parents=True)
    with pytest.raises(StoreError, match="runs of a loop with other settings"):
        Rounds(sqlite_store, asked(sqlite_store), Stand(sqlite_store), Quiet()).run()
    assert not rows(sqlite_store, schema.round_)


def test_two_processes_do_not_follow_one_arrow(sqlite_store):
    loop = Rounds(sqlite_store, asked(sqlite_store), Stand(sqlite_store), Quiet())
    now = loop._current()
    loop._to(now, "sampling")
    with pytest.raises(StoreError, match="another process is at work on round 1"):
        loop._to(now, "sampling")


def test_the_verdict_is_the_peoples_and_a_judge_only_narrows_it(sqlite_store):
    asked_ = [(f"q{i}", "") for i in range(60)]
    how, _ = _round_of(sqlite_store)
    from prefiere.feedback.collect import Queueing

    collect_pairs(sqlite_store, [Canned("a"), Canned("b")], asked_, how,
                  Queueing(purpose="compare", overlap=1, round_id=1))  # fmt: skip
    with sqlite_store.read() as c:
        assert not verdict_of(c, 1).lost
        assert "nobody compared" in verdict_of(c, 1).sentence
    vote_by(sqlite_store, "b!", by_scores(lambda p, c: np.array([float(t.startswith("b")) for t in c])), round_id=1)
    with sqlite_store.read() as c:
        assert (verdict_of(c, 1).share, verdict_of(c, 1).votes) == (1.0, 60)
    vote(sqlite_store, "ana", [-1] * 15 + [1] * 3 + [0] * 2 + [-1] * 10)
    with sqlite_store.read() as c:
        found = verdict_of(c, 1)
    assert (found.share, found.votes) == (pytest.approx(4 / 30), 30)  # the judge always says b: it tells nothing
    assert found.lost
    assert "people, and a judge" in found.sentence


def test_the_page_says_what_the_newest_round_is_at(sqlite_store):
    ana = Desk(sqlite_store, "ana")
    with sqlite_store.write() as c:
        items.insert(c, schema.round_, n=1, state="training", recipe_digest="old", started=0.0)
        items.insert(c, schema.round_, n=1, state="sampling", recipe_digest="new", started=0.0)
    said = []
    for state in (*STATES, "stopped"):
        with sqlite_store.write() as c:
            c.execute(schema.round_.update().where(schema.round_.c.recipe_digest == "new").values(state=state))
        said.append(ana.look().reason)
    nothing = "no_pairs"
    assert said == ["sampling", "sampling", nothing, "training", "training", "sampling", *[nothing] * 4]


RECIPE = """\
store: votes.db
model: base
prompts: p.txt
ask: {votes: 5}
compare: {votes: 5}
train:
  batch_size: 4
"""


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("store: x\nmodle: base\n", "r.yaml:2: modle is not a key of a loop: it has store, model"),
        (RECIPE.replace("model: base\n", ""), "r.yaml: model is missing."),
        (RECIPE.replace("ask: {votes: 5}", "ask: {}"), "r.yaml:4: ask: say when a round has asked enough"),
        (
            RECIPE.replace("ask: {votes: 5}", "ask: {vote: 5}"),
            "r.yaml:4: ask.vote is not a key of a loop: it has votes",
        ),
        (RECIPE.replace("ask: {votes: 5}", "ask: {until: soon}"), "r.yaml:4: ask: until must be 48h, a time"),
        (RECIPE.replace("ask: {votes: 5}", "ask: {votes: 0}"), "ask.votes is 0 and there is no judge"),
        (RECIPE + "  modle: x\n", "r.yaml:6: train: modle is not a setting. Did you mean model?"),
        (RECIPE + "  data: x\n", "r.yaml:6: train.data is for the loop to say"),
        (RECIPE + "rounds: two\n", "r.yaml:8: rounds: Input should be a valid integer"),
        ("- a\n", "r.yaml: a recipe is lines of `key: value`"),
    ],
)
def test_a_wrong_recipe_is_one_line_with_its_place(tmp_path, wrong, said):
    path = tmp_path / "r.yaml"
    path.write_text(wrong)
    with pytest.raises(RecipeError) as e:
        load_loop(path)
    assert said in str(e.value)
    assert "\n" not in str(e.value)
    failed = run("loop", str(path))
    assert failed.exit_code == 2
    assert failed.stderr.startswith("error: ")


def test_how_long_people_are_asked_may_change_while_a_loop_runs(tmp_path):
    (tmp_path / "a.yaml").write_text(RECIPE)
    (tmp_path / "b.yaml").write_text(RECIPE.replace("votes: 5", "votes: 9") + "rounds: 3\n")
    (tmp_path / "c.yaml").write_text(RECIPE + "seed: 1\n")
    a, b, c = (load_loop(tmp_path / f"{x}.yaml").digest() for x in "abc")
    assert a == b != c


def test_people_left_out_do_not_end_a_round(sqlite_store):
    collect_pairs(sqlite_store, [Canned("m")], [("q", ""), ("r", "")], *_round_of(sqlite_store))
    vote(sqlite_store, "ana", [1])
    with sqlite_store.write() as c:
        people.leave_out(c, people.person_named(c, "ana"))
    assert waiting.so_far(sqlite_store, 1, "ask").votes == 0
