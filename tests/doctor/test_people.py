"""Somebody whose preferences are not the others', and a place that is always preferred."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from prefiere.data import formats
from prefiere.data.quality.faults import Faults
from prefiere.data.schema import Comparison, PreferencePair
from prefiere.doctor.case import Finding
from prefiere.doctor.rules.data import findings_of

WORDS = [f"w{i}" for i in range(40)]


def drawn(n: int, seed: int, liked: float = 0.95) -> list[PreferencePair]:
    """Pairs of which the preferred answer has more of the first half of the words, so often as ``liked`` says."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(n):
        a, b = (rng.choice(40, 10, replace=False) for _ in range(2))
        better = (a < 20).sum() >= (b < 20).sum()
        chosen, rejected = (
            " ".join(WORDS[w] for w in ids) for ids in ((a, b) if better == (rng.random() < liked) else (b, a))
        )
        made.append(PreferencePair(prompt=f"prompt {i}", chosen=chosen, rejected=rejected, source=f"d:{i + 1}"))
    return made


def turned(pair: PreferencePair) -> PreferencePair:
    return replace(pair, chosen=pair.rejected, rejected=pair.chosen)


def said_of(pairs: list[PreferencePair]) -> dict[str, Finding]:
    faults = Faults()
    for pair in pairs:
        faults.add(pair)
    return {f.key: f for f in findings_of({"audit": {"faults": faults.to_dict()}})}


PEOPLE = ("ana", "ben", "eva", "joe")


def by(pairs: list[PreferencePair], people: tuple[str | None, ...] = PEOPLE) -> list[PreferencePair]:
    return [replace(p, annotator=people[i % len(people)]) for i, p in enumerate(pairs)]


def test_one_of_four_who_chose_the_other_way_round_is_named_with_their_lines() -> None:
    pairs = [turned(p) if p.annotator == "ben" else p for p in by(drawn(400, 0))]
    said = said_of(pairs)["person_contrary"]
    assert (said.severity, said.values["who"]) == ("warning", "ben")
    assert said.lines == tuple(p.source for p in pairs if p.annotator == "ben")


def test_a_label_below_one_half_is_a_preference_for_the_other_answer() -> None:
    pairs = [replace(p, label=0.1) if p.annotator == "ben" else p for p in by(drawn(400, 0))]
    assert said_of(pairs)["person_contrary"].values["who"] == "ben"
    pairs = [replace(turned(p), label=0.1) if p.annotator == "ben" else p for p in by(drawn(400, 0))]
    assert "person_contrary" not in said_of(pairs)


def test_one_who_chose_at_random_follows_no_pattern() -> None:
    rng = np.random.default_rng(1)
    pairs = [turned(p) if p.annotator == "eva" and rng.random() < 0.5 else p for p in by(drawn(600, 1))]
    said = said_of(pairs)
    assert "person_contrary" not in said
    assert said["person_unlike"].values["who"] == "eva"


def test_one_who_agrees_a_little_less_is_no_stranger() -> None:
    """Of 150 pairs words tell 60%, and of the others' 68%."""
    rng = np.random.default_rng(3)
    pairs = [turned(p) if p.annotator == "eva" and rng.random() < 0.15 else p for p in by(drawn(600, 3))]
    assert not {"person_contrary", "person_unlike"} & said_of(pairs).keys()


def test_two_who_want_opposite_things_are_both_named() -> None:
    pairs = [turned(p) if p.annotator == "ben" else p for p in by(drawn(400, 2), ("ana", "ben"))]
    assert said_of(pairs)["person_contrary"].values["who"] == "ana, ben"


@pytest.mark.parametrize("liked", [0.95, 0.7, 0.5])
def test_people_who_agree_are_not_told_apart_nor_are_those_of_labels_without_a_pattern(liked: float) -> None:
    for seed in range(4):
        found = said_of(by(drawn(400, 10 + seed, liked)))
        assert not {"person_contrary", "person_unlike"} & found.keys()


def test_the_only_one_of_another_language_is_no_stranger() -> None:
    """Words of the others say nothing of theirs."""
    for seed in range(4):
        pairs = by(drawn(400, 20 + seed))
        mine = [
            replace(p, chosen=p.chosen.replace("w", "ж"), rejected=p.rejected.replace("w", "ж"))
            if p.annotator == "ben"
            else p
            for p in pairs
        ]
        assert not {"person_contrary", "person_unlike"} & said_of(mine).keys()


def test_many_people_who_agree_as_people_do_are_not_named() -> None:
    """Thirty of them with some 27 pairs each, of whom words tell 70%."""
    people = tuple(f"p{i}" for i in range(30))
    named = [
        {"person_contrary", "person_unlike"} & said_of(by(drawn(800, 30 + seed, 0.8), people)).keys()
        for seed in range(4)
    ]
    assert not any(named)


def test_of_one_person_alone_and_of_few_pairs_nothing_is_said() -> None:
    pairs = [turned(p) for p in drawn(19, 3)]
    found = said_of(by(pairs, ("ben",)) + by(drawn(200, 4), ("ana",)))
    assert "person_contrary" not in found
    assert "person_contrary" not in said_of(by(drawn(200, 5), ("ana", None)))


def test_nobody_random_makes_the_sound_ones_look_contrary() -> None:
    """Words that were fitted to chance all point one way: what they tell is no witness."""
    for seed in range(8):
        rng = np.random.default_rng(seed)
        pairs = [
            PreferencePair(prompt=f"q{i}", chosen="the encyclopedia says so", rejected="my friend says so", label=1.0,
                           annotator="ana" if i % 2 else "ben", source=f"d:{i}")
            for i in range(200)
        ]  # fmt: skip
        pairs = [turned(p) if p.annotator == "ben" and rng.random() < 0.5 else p for p in pairs]
        assert said_of(pairs).get("person_contrary") is None


def compared(tmp_path: Path, verdicts: list[str], people: tuple[str | None, ...] = (None,)) -> dict[str, Finding]:
    rows = [
        Comparison(prompt=f"What is {i}?", answer_a=f"It is {i}.", answer_b=f"Nothing but {i}.", preference=v,
                   annotator=people[i % len(people)])  # type: ignore[arg-type]
        for i, v in enumerate(verdicts)
    ]  # fmt: skip
    formats.write(rows, tmp_path / "d.jsonl")
    return said_of([*formats.read(str(tmp_path / "d.jsonl"), kind="pairs")])


def test_the_same_place_nearly_always_is_said(tmp_path: Path) -> None:
    said = compared(tmp_path, ["a"] * 98 + ["b"] * 2)["one_place"]
    assert (said.severity, said.values["share"]) == ("warning", "98%")
    assert "98" in str(said.evidence[0])
    assert "second" in str(compared(tmp_path, ["b"] * 100)["one_place"].evidence[0])
    assert "one_place" not in compared(tmp_path, ["a"] * 85 + ["b"] * 15)
    assert "one_place" not in compared(tmp_path, ["a"] * 19)
    assert "one_place" not in compared(tmp_path, ["a"] * 10 + ["tie"] * 80)


def test_the_place_that_one_person_always_chose_is_said_with_who_it_is(tmp_path: Path) -> None:
    verdicts = ["b" if i % 4 == 1 else "ab"[i // 4 % 2] for i in range(200)]
    said = compared(tmp_path, verdicts, PEOPLE)["one_place"]
    assert said.values["share"] == "100%"
    assert any("ben" in str(line) for line in said.evidence)


def test_pairs_that_state_no_order_have_no_place() -> None:
    assert "one_place" not in said_of(drawn(100, 6))


@pytest.mark.parametrize(
    "people",
    [None, [], "x", {"apart": 3}, {"apart": [3, {"n": "x"}, {"n": 4}], "always": {"count": 9, "of": 2}},
     {"apart": [{"n": 30, "who": None, "contrary": "yes", "sources": 4}], "always": 3}],
)  # fmt: skip
def test_an_account_of_a_stranger_is_read_all_the_same(people: object) -> None:
    findings_of({"audit": {"faults": {"records": 100, "people": people}}})
