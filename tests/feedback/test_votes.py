"""Leases and votes: nobody is asked twice, nothing is lost, nothing counts twice, whatever clients do."""

from __future__ import annotations

import random
import threading

import pytest
import sqlalchemy as sa

from feedback.conftest import fill, rows
from prefiere.feedback import items, leases, people, schema
from prefiere.feedback.leases import Lease, Nothing, next_lease
from prefiere.feedback.store import Store
from prefiere.feedback.votes import NotTheirs, Said, in_force, post

NOW = 1_790_000_000.0


class Desk:
    """One person in front of a store."""

    def __init__(self, store: Store, name: str, seed: int = 0):
        self.store, self.rng = store, random.Random(seed)
        with store.write() as c:
            self.id = people.find_or_add(c, name)

    def take(self, now: float = NOW) -> Lease:
        found = self.look(now)
        assert isinstance(found, Lease)
        return found

    def look(self, now: float = NOW) -> Lease | Nothing:
        with self.store.write() as c:
            return next_lease(self.store, c, self.id, now=now, rng=self.rng)

    def say(self, lease: Lease | str, seq: int, said: Said, now: float = NOW) -> str:
        with self.store.write() as c:
            return post(self.store, c, self.id, lease if isinstance(lease, str) else lease.id, seq, said, now)


def slots(store: Store) -> dict[int, tuple[int, int]]:
    return {r["id"]: (r["open"], r["overlap"]) for r in rows(store, schema.pair)}


def valid(store: Store) -> list[sa.RowMapping]:
    """The votes in force, after checking by hand that slots add up: open = overlap - leases that are open or done."""
    held = rows(store, schema.lease)
    for pair in rows(store, schema.pair):
        if pair["purpose"] != "gold":
            used = sum(le["pair_id"] == pair["id"] and le["state"] in ("open", "done") for le in held)
            assert pair["open"] == pair["overlap"] - used
    with store.read() as c:
        return in_force(c, counted=False)


def test_a_person_sees_every_pair_once_and_then_why_there_is_no_more(store):
    ids = fill(store, 5)
    ana = Desk(store, "ana")
    seen = []
    for _ in ids:
        lease = ana.take()
        seen.append(lease.pair_id)
        assert ana.say(lease, 0, Said(score=-2)) == "new"
    assert sorted(seen) == sorted(ids)
    assert ana.look() == Nothing("all_done")
    assert len(valid(store)) == 5


def test_the_same_lease_is_given_until_it_is_answered(store):
    fill(store, 3)
    ana = Desk(store, "ana")
    first = ana.take()
    assert ana.take().id == first.id


def test_overlap_is_never_exceeded_and_reasons_are_given(store):
    fill(store, 1, overlap=2)
    desks = [Desk(store, n) for n in ("ana", "beto", "caro")]
    held = [d.take() for d in desks[:2]]
    assert desks[2].look() == Nothing("held", 2, NOW + 900)
    desks[0].say(held[0], 0, Said(score=1))
    assert desks[2].look() == Nothing("held", 1, NOW + 900)
    desks[1].say(held[1], 0, Said(score=1))
    assert desks[2].look() == Nothing("all_done")
    assert desks[0].look() == Nothing("all_done")
    assert len(valid(store)) == 2


def test_an_empty_store_says_that_there_are_no_pairs(sqlite_store):
    assert Desk(sqlite_store, "ana").look() == Nothing("no_pairs")


def test_a_lease_that_expired_is_given_to_others_and_to_the_same_person_again(store):
    """A person whose leases expire must not end with "nothing left" while every slot is open."""
    fill(store, 1)
    ana, beto = Desk(store, "ana"), Desk(store, "beto")
    first = ana.take()
    assert beto.look() == Nothing("held", 1, NOW + 900)
    later = ana.take(NOW + 1000)
    assert later.id != first.id
    assert later.pair_id == first.pair_id
    assert beto.take(NOW + 5000).pair_id == first.pair_id
    valid(store)


@pytest.mark.parametrize("meanwhile", ["free", "taken", "mine_open", "mine_done"])
def test_a_late_vote_is_kept(store, meanwhile):
    fill(store, 1)
    ana, beto = Desk(store, "ana"), Desk(store, "beto")
    late = ana.take()
    other = {"free": None, "taken": beto, "mine_open": ana, "mine_done": ana}[meanwhile]
    if other is None:
        with store.write() as c:
            leases.expire(c, NOW + 1000)
    else:
        again = other.take(NOW + 1000)
        if meanwhile == "mine_done":
            assert ana.say(again, 0, Said(score=-1), NOW + 1001) == "new"
    expected = "late" if meanwhile == "mine_done" else "new"
    assert ana.say(late, 0, Said(score=2), NOW + 1002) == expected
    votes = valid(store)
    assert len(rows(store, schema.event)) == (2 if meanwhile == "mine_done" else 1)
    assert [v.person_id for v in votes] == [ana.id]
    if meanwhile == "taken":
        assert list(slots(store).values()) == [(0, 2)]  # one more slot for the work that was done
        assert beto.say(again, 0, Said(score=0), NOW + 1003) == "new"
        assert len(valid(store)) == 2


def test_a_vote_posted_again_changes_nothing_and_another_one_is_a_conflict(store):
    fill(store, 2)
    ana = Desk(store, "ana")
    lease = ana.take()
    said = Said(score=3, reason=None, text="más claro \x00", ideal="mejor así \ud800", ms=900)
    assert ana.say(lease, 0, said) == "new"
    assert ana.say(lease, 0, Said(score=3, text="más claro \x00", ideal="mejor así \ud800", ms=1200)) == "again"
    for other in (Said(score=2), Said(both_bad=True), Said(kind="skip"), Said(score=3)):
        assert ana.say(lease, 0, other) == "conflict"
    assert ana.say(lease, 1, Said(score=1)) == "conflict"  # it is done: undo it first
    assert ana.say(lease, 7, said) == "conflict"
    assert [v.score for v in valid(store)] == [3 if not lease.swapped else -3]
    assert rows(store, schema.note)[0]["text"] == "más claro \x00"


def test_six_racing_posts_of_two_contents(store):
    fill(store, 1)
    ana = Desk(store, "ana")
    lease = ana.take()
    outcomes, start = [], threading.Barrier(6)

    def send(score):
        start.wait()
        outcomes.append(ana.say(lease, 0, Said(score=score)))

    threads = [threading.Thread(target=send, args=(s,)) for s in (1, 1, 1, -2, -2, -2)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert sorted(outcomes) == ["again"] * 2 + ["conflict"] * 3 + ["new"]
    assert len(valid(store)) == 1


def test_two_tabs_of_one_person_hold_one_pair(store):
    fill(store, 30)
    for turn in range(5):
        ana = Desk(store, f"ana{turn}")
        found, start = [], threading.Barrier(2)

        def tab(ana=ana, found=found, start=start):
            start.wait()
            found.append(ana.take().id)

        threads = [threading.Thread(target=tab) for _ in range(2)]
        [t.start() for t in threads]
        [t.join() for t in threads]
        assert len(set(found)) == 1
        assert len(found) == 2
    valid(store)


def test_people_who_race_never_share_a_slot(store):
    ids = fill(store, 8, overlap=2)
    desks = [Desk(store, f"p{i}", seed=i) for i in range(6)]

    def work(desk):
        for turn in range(40):
            found = desk.look()
            if isinstance(found, Nothing):
                if found.reason == "all_done":
                    return
                continue
            desk.say(found, found.seq, Said(score=turn % 7 - 3))

    threads = [threading.Thread(target=work, args=(d,)) for d in desks]
    [t.start() for t in threads]
    [t.join() for t in threads]
    votes = valid(store)
    assert len(votes) == 16
    assert len({(v.pair_id, v.person_id) for v in votes}) == 16
    assert all(s == (0, 2) for s in slots(store).values())
    assert len(ids) == 8


def test_undo_goes_back_any_number_and_the_last_word_counts(store):
    fill(store, 4)
    ana = Desk(store, "ana")
    held = [ana.take()]
    ana.say(held[0], 0, Said(score=3))
    held.append(ana.take())
    ana.say(held[1], 0, Said(score=-3))
    shown = ana.take()  # a third pair on screen
    assert ana.say(held[1], 1, Said(kind="undo")) == "new"
    assert ana.take().id == held[1].id
    assert ana.say(held[1], 1, Said(kind="undo")) == "again"
    assert ana.say(held[0], 1, Said(kind="undo")) == "new"
    back = ana.take()
    assert (back.id, back.seq) == (held[0].id, 2)
    assert not valid(store)
    assert ana.say(back, 2, Said(score=0)) == "new"
    assert [v.side for v in valid(store)] == ["tie"]
    left = {ana_pair.pair_id for ana_pair in (held[1], shown)}
    for _ in range(3):
        lease = ana.take()
        left.discard(lease.pair_id)
        ana.say(lease, lease.seq, Said(score=1))
    assert not left
    assert len(valid(store)) == 4
    assert ana.say(held[0], 3, Said(kind="undo", score=None)) == "new"
    assert ana.say(held[0], 3, Said(kind="undo")) == "again"


def test_a_skipped_pair_goes_to_others_and_not_back(store):
    fill(store, 1)
    ana, beto = Desk(store, "ana"), Desk(store, "beto")
    lease = ana.take()
    assert ana.say(lease, 0, Said(kind="skip", reason="unclear")) == "new"
    assert ana.look() == Nothing("all_done")
    theirs = beto.take()
    assert theirs.pair_id == lease.pair_id
    assert ana.say(lease, 1, Said(kind="undo")) == "new"  # beto holds the only slot: the pair has one more
    assert ana.say(lease, 2, Said(score=1)) == "new"
    assert beto.say(theirs, 0, Said(score=1)) == "new"
    assert len(valid(store)) == 2


def test_another_persons_lease_is_refused(store):
    fill(store, 2)
    ana, beto = Desk(store, "ana"), Desk(store, "beto")
    lease = ana.take()
    for name in (lease.id, "0" * 32, "", "' OR 1=1 --"):
        with pytest.raises(NotTheirs):
            beto.say(name, 0, Said(score=1))
    assert not rows(store, schema.event)


@pytest.mark.parametrize("bad", [{}, {"score": 4}, {"score": 1, "both_bad": True}, {"kind": "skip", "score": 1},
                                 {"kind": "skip", "reason": "bored"}])  # fmt: skip
def test_what_is_no_vote_is_refused(bad):
    with pytest.raises(ValueError):
        Said(**bad)


def test_scores_are_kept_as_seen_and_turned_to_the_pairs_own_sides(sqlite_store):
    fill(sqlite_store, 16)
    ana = Desk(sqlite_store, "ana", seed=5)
    swapped = {}
    for _ in range(16):
        lease = ana.take()
        swapped[lease.pair_id] = lease.swapped
        ana.say(lease, 0, Said(score=-2))  # always the left one
    assert {True, False} == set(swapped.values())
    for vote in valid(sqlite_store):
        assert vote.side == ("b" if swapped[vote.pair_id] else "a")
    assert {r["score"] for r in rows(sqlite_store, schema.event)} == {-2}


def test_priority_comes_first_but_a_fifth_stays_random(sqlite_store):
    ids = fill(sqlite_store, 400)
    best = set(ids[100:160])
    with sqlite_store.write() as c:
        c.execute(sa.update(schema.pair).where(schema.pair.c.id.in_(best)).values(priority=2.0))
        c.execute(sa.update(schema.pair).where(schema.pair.c.id.not_in(best)).values(priority=0.5))
    ana = Desk(sqlite_store, "ana", seed=3)
    taken = []
    for _ in range(40):
        lease = ana.take()
        taken.append(lease.pair_id)
        ana.say(lease, 0, Said(score=1))
    random_ones = {r["pair_id"] for r in rows(sqlite_store, schema.lease) if r["random"]}
    assert 1 <= len(random_ones) <= 19  # binomial(40, 0.2), far tails
    assert set(taken) - random_ones <= best
    assert random_ones - best


def test_people_begin_elsewhere_in_the_queue(sqlite_store):
    fill(sqlite_store, 50, overlap=20)
    first = {Desk(sqlite_store, f"p{i}").take().pair_id for i in range(20)}
    assert len(first) > 10


def test_comparisons_of_models_are_shown_in_both_orders_equally_often(sqlite_store):
    fill(sqlite_store, 3, overlap=8, purpose="compare")
    for i in range(8):
        desk = Desk(sqlite_store, f"p{i}", seed=i)
        for _ in range(3):
            desk.say(desk.take(), 0, Said(score=1))
    of_pair = {}
    for lease in rows(sqlite_store, schema.lease):
        of_pair[lease["pair_id"]] = of_pair.get(lease["pair_id"], 0) + (1 if lease["swapped"] else -1)
    assert set(of_pair.values()) == {0}


def _gold(store, n):
    ids = fill(store, n, purpose="gold", start=9000)
    with store.write() as c:
        for pair in ids:
            items.set_gold(c, pair, "a", "test")
    return ids


def test_gold_is_seen_by_everybody_looks_like_any_pair_and_takes_no_slot(sqlite_store):
    fill(sqlite_store, 300)
    golden = set(_gold(sqlite_store, 40))
    desk = Desk(sqlite_store, "ana", seed=1)
    order = []
    for _ in range(60):
        lease = desk.take()
        order.append(lease.pair_id in golden)
        desk.say(lease, 0, Said(score=1))
    assert 0 < sum(order[:20]) <= 9  # 15% of the first 20
    assert sum(order[20:]) <= 9  # 5% of the next 40
    assert all(p["open"] == 0 for p in rows(sqlite_store, schema.pair) if p["id"] in golden)
    sides = {le["swapped"] for le in rows(sqlite_store, schema.lease) if le["pair_id"] in golden}
    assert len(sides) == 2
    valid(sqlite_store)


def _answer_gold(store, desk, right: list[bool]):
    """Vote on gold pairs alone: right or wrong as told; what `judge_by_gold` says after each."""
    said = []
    for good in right:
        lease = desk.take()
        left_is_a = not lease.swapped
        score = -1 if left_is_a == good else 1
        desk.say(lease, 0, Said(score=score))
        with store.write() as c:
            said.append(people.judge_by_gold(c, desk.id))
    return said


def test_gold_warns_after_ten_and_sets_aside_after_twenty(sqlite_store, monkeypatch):
    monkeypatch.setattr(leases, "GOLD", 1.0)
    monkeypatch.setattr(leases, "GOLD_FIRST", 1.0)
    _gold(sqlite_store, 45)
    careful, careless = Desk(sqlite_store, "careful"), Desk(sqlite_store, "careless")
    assert _answer_gold(sqlite_store, careful, [True] * 7 + [False] * 3 + [True] * 10) == [None] * 20
    wrong = _answer_gold(sqlite_store, careless, ([True] * 6 + [False] * 4) + ([True] * 7 + [False] * 3))
    assert wrong[8:10] == [None, "warn"]
    assert wrong[-1] == "set_aside"  # 13 of 20
    assert careless.look() == Nothing("set_aside")
    with sqlite_store.read() as c:
        assert {v.person_id for v in in_force(c)} == {careful.id}
        assert len(in_force(c, counted=False)) == 40
    with sqlite_store.write() as c:
        people.set_aside(c, careless.id, False)
    with sqlite_store.read() as c:
        assert len(in_force(c)) == 40
