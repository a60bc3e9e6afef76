"""What to ask next and when to stop, on the votes of a store: no torch, and nothing promised that was not measured."""

from __future__ import annotations

import json
import random
import zlib
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

import runs
from feedback.conftest import fill, rows
from feedback.test_exchange import run, vote
from feedback.test_loop import Quiet, Stand, asked
from feedback.test_page import client
from feedback.test_votes import NOW, Desk
from prefiere.evaluate.hidden import answer_features
from prefiere.feedback import items, schema
from prefiere.feedback.exchange import read_in
from prefiere.feedback.page import words
from prefiere.feedback.rounds import learning, waiting
from prefiere.feedback.rounds.loop import Rounds
from prefiere.feedback.science.active import Stopping, principal, priorities
from prefiere.feedback.science.text import WIDTH, scaled, text_features
from prefiere.feedback.votes import Said, in_force


def told(store, pairs, *, overlap=1, start=0):
    """Pairs of which the answer that says "perro" is better, whichever side it is on."""
    rng = random.Random(start)
    with store.write() as c:
        for i in range(start, start + pairs):
            prompt = items.add_prompt(c, f"q{i}")
            noise = [" ".join(rng.choices("el gato come pan en la casa azul".split(), k=6)) for _ in range(2)]  # noqa: SIM905
            said = [f"{noise[0]} perro {i}", f"{noise[1]} piedra {i}"]
            rng.shuffle(said)
            a, b = (items.add_answer(c, prompt, text) for text in said)
            items.add_pair(c, prompt, a, b, overlap=overlap, rng=rng)


def likes_dogs(store, name, count):
    desk = Desk(store, name)
    with store.read() as c:
        texts = {r.id: r.content for r in c.execute(schema.answer.select())}
        sides = {r.id: "perro" in texts[r.a_id] for r in c.execute(schema.pair.select())}
    for _ in range(count):
        lease = desk.take(NOW)
        left = sides[lease.pair_id] != lease.swapped
        desk.say(lease, lease.seq, Said(score=-2 if left else 2))


def given(store, tmp_path, count, start=0):
    """Votes from a file, in one transaction."""
    rng = random.Random(start)
    noise = [" ".join(rng.choices("el gato come pan en la casa azul".split(), k=6)) for _ in range(2 * count)]  # noqa: SIM905
    said = [{"prompt": f"q{start + i}", "answer_a": f"{noise[2 * i]} perro", "answer_b": f"{noise[2 * i + 1]} piedra",
             "preference": rng.choice("aaab"), "annotator": "ana"} for i in range(count)]  # fmt: skip
    path = tmp_path / f"{start}.jsonl"
    path.write_text("\n".join(map(json.dumps, said)))
    assert read_in(store, str(path))["votes added"] == count


def test_features_by_hand():
    (found,) = text_features(["Sí, sí"])
    by_hand = np.zeros(WIDTH + 1)
    for said in ("sí", ",", "sí", "sí ,", ", sí"):
        code = zlib.crc32(said.encode())
        by_hand[code % WIDTH] += 1 if code >= 2**31 else -1
    total = np.abs(by_hand).sum()
    by_hand = np.sign(by_hand) * np.sqrt(np.abs(by_hand) / total)
    by_hand[-1] = np.log(4)
    assert found == pytest.approx(by_hand)
    assert text_features(["", "\ud83d"]).shape == (2, WIDTH + 1)
    x = scaled(np.array([[3.0, 0.0], [-4.0, 0.0]]))
    assert (x**2).mean(0) == pytest.approx([0.5, 0.0])


def test_open_pairs_are_ordered_by_what_a_vote_on_them_tells(sqlite_store, monkeypatch):
    told(sqlite_store, 49)
    likes_dogs(sqlite_store, "ana", 49)
    told(sqlite_store, 20, start=100)
    assert learning.prioritise(sqlite_store) == 0  # too few votes
    likes_dogs(sqlite_store, "ana", 3)
    monkeypatch.setattr(learning, "_CHUNK", 7)
    written = []
    write = sqlite_store.write
    monkeypatch.setattr(sqlite_store, "write", lambda: written.append(1) or write())
    assert learning.prioritise(sqlite_store) == 17
    assert len(written) == 3  # 7 + 7 + 3
    pairs = rows(sqlite_store, schema.pair)
    texts = {r["id"]: r["content"] for r in rows(sqlite_store, schema.answer)}
    x = text_features([texts[p["a_id"]] for p in pairs]) - text_features([texts[p["b_id"]] for p in pairs])
    with sqlite_store.read() as c:
        said = {v.pair_id: float(v.side == "a") for v in in_force(c)}
    at = {p["id"]: i for i, p in enumerate(pairs)}
    order = priorities(principal(scaled(x)), [at[p] for p in said], list(said.values()), 17)
    by_priority = sorted((p for p in pairs if p["open"]), key=lambda p: -p["priority"])
    assert [p["id"] for p in by_priority] == [pairs[i]["id"] for i in order]
    assert {p["scored_by"] for p in by_priority} == {"text-d-optimal-1"}
    assert {p["scored_by"] for p in pairs if not p["open"]} == {None}
    best, taken, drawn = [p["id"] for p in by_priority], set(), 0
    for i in range(8):
        lease = Desk(sqlite_store, f"p{i}", seed=i).take()
        at_random = next(le["random"] for le in rows(sqlite_store, schema.lease) if le["id"] == lease.id)
        assert at_random or lease.pair_id == next(p for p in best if p not in taken)
        drawn += at_random
        taken.add(lease.pair_id)
    assert drawn < 8


def test_no_prediction_has_seen_a_vote_on_its_prompt():
    x = np.eye(40).repeat(2, 0)  # only the other vote on the same prompt could tell
    first = np.ones(80)
    right = learning.out_of_fold(x, first, [i // 2 for i in range(80)])
    assert right.sum() == 0
    plain = learning.out_of_fold(np.ones((80, 1)), first, list(range(80)))
    assert plain.mean() == 1.0


def test_the_curve_rests_on_peoples_decided_votes_in_random_order(sqlite_store, tmp_path):
    given(sqlite_store, tmp_path, 99)
    with sqlite_store.read() as c:
        few = learning.curve(c, in_force(c))
    assert (few.said, few.votes) == ("too_early", 99)
    assert learning.sentence(few) == "stop? too early to tell: 99 decided votes in random order, a curve takes 100"
    given(sqlite_store, tmp_path, 66, start=200)
    with sqlite_store.read() as c:
        votes = in_force(c)
        found = learning.curve(c, votes)
        assert found.votes == 150  # in blocks of 50
        assert found.said == "too_early"  # below 400
        assert found.low <= found.gain <= found.high
        assert learning.curve(c, votes) is found
        scored = [replace(v, random=False) for v in votes]
        assert learning.curve(c, scored).votes == 0
        assert learning.curve(c, [replace(v, judge=True) for v in votes]).votes == 0
        assert learning.curve(c, [replace(v, score=0) for v in votes]).votes == 0
    assert "too early to tell: twice the votes would gain" in learning.sentence(found)
    said = run("votes", "agree", sqlite_store.name)
    assert learning.sentence(found) in said.stdout
    page = client(sqlite_store).get("/board")
    assert words.EN["curve_too_early"] in page.text
    assert f"{100 * found.gain:+.1f} points" in page.text


def crowd(rng, n):
    """Votes by a logistic model of five features."""
    x = rng.standard_normal((n, 5))
    return x, (rng.random(n) < 1 / (1 + np.exp(-4 * x[:, 0]))).astype(float)


def test_what_an_order_brought_is_measured_at_equally_many_votes():
    rng = np.random.default_rng(0)
    (x, first), (more, said) = crowd(rng, 400), crowd(rng, 300)
    prompts = list(range(700))
    both = np.concatenate([x, more])
    same = learning.gain_of_order(both, np.concatenate([first, said]), prompts, 400)
    assert set(same) <= {-1.0, 0.0, 1.0}
    assert abs(same.mean()) < 0.03  # an order like the random one brings nothing
    lies = learning.gain_of_order(both, np.concatenate([first, 1 - said]), prompts, 400)
    assert lies.mean() < -0.1
    # one random vote in ten is of a kind that takes thirty features to tell; all those in order are
    gains = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        rare, truth = rng.random(400) < 0.1, rng.standard_normal(31)
        kinds = np.concatenate([rare, np.ones(300, bool)])
        mixed = np.where(np.arange(31) > 0, kinds[:, None], ~kinds[:, None]) * rng.standard_normal((700, 31))
        better = learning.gain_of_order(mixed, (mixed @ truth > 0).astype(float), prompts, 400)
        gains.append((better[rare].mean(), better[~rare].mean()))
    of_rare, of_common = np.mean(gains, 0)
    assert of_rare > 0.08
    assert abs(of_common) < 0.02


def test_what_an_order_brought_has_seen_no_vote_on_the_same_prompt():
    x = np.concatenate([np.eye(60), np.eye(60)])  # a vote in the active order would tell the one in random order
    found = learning.gain_of_order(x, np.ones(120), list(range(60)) * 2, 60)
    assert not found.any()


def test_the_board_says_what_the_order_brought(sqlite_store, tmp_path):
    given(sqlite_store, tmp_path, 150)
    with sqlite_store.read() as c:
        votes = in_force(c)
        assert learning.brought(c, votes) is None
        told_apart = [replace(v, random=i < 100) for i, v in enumerate(votes)]
        found = learning.brought(c, told_apart)
        assert (found.random, found.ordered) == (100, 50)
        assert found.low <= found.gain <= found.high
        assert learning.brought(c, told_apart) is found
        assert learning.brought(c, [replace(v, random=i < 99) for i, v in enumerate(votes)]) is None
    with sqlite_store.write() as c:
        c.execute(schema.lease.update().where(schema.lease.c.pair_id > 100).values(random=False))
    said = run("votes", "agree", sqlite_store.name)
    assert learning.brought_sentence(found) in said.stdout.replace("\n", " ")
    page = client(sqlite_store).get("/board")
    assert f"{100 * found.gain:+.1f} points" in page.text
    assert ("nothing measurable" in page.text) is not found.measurable
    assert "kappa" in page.text


def test_what_is_learnt_at_once_ends_a_loop_that_asks_until_enough(sqlite_store, monkeypatch):
    found = iter(["go_on", "too_early", "stop"])
    seen = []

    def curve(c, votes, features):
        assert features.name == "hidden"
        seen.append(next(found))
        return Stopping(seen[-1], 0.0, 0.0, 0.0, 400)

    monkeypatch.setattr(learning, "curve", curve)
    monkeypatch.setattr(waiting.time, "sleep", lambda s: None)
    recipe = asked(sqlite_store, rounds=1, ask={"until": "enough"}, overlap=2)
    (only,) = Rounds(sqlite_store, recipe, Stand(sqlite_store), Quiet()).run()
    assert only.state == "closed"
    assert seen == ["go_on", "too_early", "stop"]


def test_prioritise_says_what_it_needs(sqlite_store):
    fill(sqlite_store, 3)
    vote(sqlite_store, "ana", [1])
    done = run("votes", "prioritise", sqlite_store.name)
    assert done.stdout.strip() == "nothing in order yet: it takes votes on 50 pairs, and open pairs"


def test_answers_can_be_read_by_a_models_hidden_states(sqlite_store, tmp_path):
    model = runs.model_folder(tmp_path / "model")
    told(sqlite_store, 55)
    likes_dogs(sqlite_store, "ana", 50)
    done = run("votes", "prioritise", sqlite_store.name, "--model", str(model))
    assert done.stdout.strip() == "5 pairs in order"
    pairs = rows(sqlite_store, schema.pair)
    opened = sorted((p for p in pairs if p["open"]), key=lambda p: -p["priority"])
    assert {p["scored_by"] for p in opened} == {"hidden-d-optimal-1"}
    asked = {r["id"]: r["content"] for r in rows(sqlite_store, schema.prompt)}
    texts = {r["id"]: (asked[r["prompt_id"]], r["content"]) for r in rows(sqlite_store, schema.answer)}
    sides = [answer_features(str(model), [texts[p[side]] for p in pairs]) for side in ("a_id", "b_id")]
    with sqlite_store.read() as c:
        said = {v.pair_id: float(v.side == "a") for v in in_force(c)}
    at = {p["id"]: i for i, p in enumerate(pairs)}
    x = principal(scaled(sides[0] - sides[1]), 64)
    order = priorities(x, [at[p] for p in said], list(said.values()), 5)
    assert [p["id"] for p in opened] == [pairs[i]["id"] for i in order]


def test_no_transaction_is_open_while_a_model_reads(sqlite_store, monkeypatch):
    """PostgreSQL ends a session whose transaction is idle for ten seconds."""
    told(sqlite_store, 55)
    likes_dogs(sqlite_store, "ana", 50)
    open_now = []
    read = sqlite_store.read

    @contextmanager
    def watched():
        open_now.append(1)
        with read() as c:
            yield c
        open_now.pop()

    monkeypatch.setattr(sqlite_store, "read", watched)
    seen = []

    def features(said):
        seen.append(len(open_now))
        return text_features([answer for _, answer in said])

    assert learning.prioritise(sqlite_store, learning.Features("watched", features)) == 5
    stand = Stand(sqlite_store)
    monkeypatch.setattr(stand, "features", features)
    Rounds(sqlite_store, asked(sqlite_store, ask={"until": "enough"}), stand, Quiet())._enough()
    assert seen == [0, 0]


def test_a_loop_without_a_vote_asks_on(sqlite_store):
    """It looks before anybody has voted; a model has nothing to read then, and says so as NumPy does."""
    stand = Stand(sqlite_store)
    stand.features = lambda said: np.stack([np.zeros(2) for _ in said])
    assert not Rounds(sqlite_store, asked(sqlite_store, ask={"until": "enough"}), stand, Quiet())._enough()
