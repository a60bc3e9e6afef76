"""Faults that texts alone show, and what must not stand on both sides of a split: by hand."""

from __future__ import annotations

import numpy as np
import pytest

from prefiere.data.audit import split_by_prompt
from prefiere.data.quality.cleaned import RecordsLeftOut, cleaned
from prefiere.data.quality.faults import Faults
from prefiere.data.quality.leaks import known_answers, together
from prefiere.data.quality.marks import one_word_apart
from prefiere.data.schema import Judgement, PreferencePair
from prefiere.doctor.rules.data import findings_of


def counted(*records: PreferencePair | Judgement) -> Faults:
    faults = Faults()
    for record in records:
        faults.add(record)
    return faults


def pair(chosen: str, rejected: str, n: int = 0, label: float = 1.0) -> PreferencePair:
    return PreferencePair(prompt=f"p{n}", chosen=chosen, rejected=rejected, label=label, source=f"x:{n}")


def test_marks_of_templates_and_damaged_letters() -> None:
    faults = counted(
        pair("<|im_start|>user hello", "b", 1),
        pair("a [INST] b", "c", 2),
        pair("cafÃ©", "d", 3),
        pair("café", "x < y", 4),
    ).to_dict()
    assert faults["markup"] == {"count": 2, "sources": ["x:1", "x:2"]}
    assert faults["damaged"] == {"count": 1, "sources": ["x:3"]}


def test_a_word_on_one_side() -> None:
    """In 30 of 40 pairs the preferred answer alone says "indeed": Wilson's lower bound of 30 of 30 is 0.886 at 95%."""
    pairs = [pair(f"indeed word{i}" if i < 30 else f"word{i}", f"other{i}", i) for i in range(40)]
    found = counted(*pairs).shortcut()
    assert found is not None
    assert (found["word"], found["side"], found["pairs"], found["of"]) == ("indeed", "chosen", 30, 30)
    assert abs(found["low"] - 0.8865) < 1e-3
    assert counted(*(pair(f"word{i}", f"other{i}", i) for i in range(40))).shortcut() is None
    both = [pair(f"indeed {i}x", f"indeed {i}y", i) for i in range(40)]
    assert counted(*both).shortcut() is None


def test_a_tie_or_a_turned_label_counts_as_what_it_says() -> None:
    pairs = [pair("bad one", "indeed good", i, label=0.0) for i in range(30)] + [pair("u", "v", 99, label=0.5)]
    faults = counted(*pairs)
    assert faults.pairs == 30
    assert faults.only[0]["indeed"] == 30


def test_the_same_text_and_the_same_words() -> None:
    faults = counted(pair("No.", "yes", 1), pair("no", "No!", 2), pair("No.", "maybe", 3)).to_dict()
    assert faults["same_text"]["chosen"] == {"count": 2, "text": "No."}
    assert faults["nearly_same"] == {"count": 1, "sources": ["x:2"]}


def edits(one: list[str], other: list[str]) -> int:
    """Words to put in, leave out or exchange, at least (Levenshtein 1966)."""
    if not one or not other:
        return len(one) + len(other)
    kept = edits(one[1:], other[1:]) + (one[0] != other[0])
    return min(kept, edits(one[1:], other) + 1, edits(one, other[1:]) + 1)


def test_one_word_apart_is_an_edit_distance_of_one() -> None:
    rng = np.random.default_rng(0)
    for _ in range(400):
        one = list(rng.choice(["a", "b", "c"], rng.integers(2, 6)))
        other = list(one)
        for _ in range(rng.integers(0, 3)):
            at = int(rng.integers(len(other) + 1))
            other[at : at + int(rng.integers(2))] = list(rng.choice(["a", "b", "c"], rng.integers(0, 2)))
        expected = edits(one, other) == 1 and max(len(one), len(other)) >= 4
        assert one_word_apart(" ".join(one), ", ".join(other)) is expected, (one, other)


def test_pairs_one_word_apart_are_counted_and_stay() -> None:
    near = [pair(f"It is a good house {i}.", f"It is a bad house {i}.", i) for i in range(10)]
    far = [pair(f"It is a good house {i}.", f"Nobody knows that {i}.", i) for i in range(30)]
    account = {"audit": {"faults": counted(*near, *far).to_dict()}}
    assert account["audit"]["faults"]["one_word"]["count"] == 10
    (finding,) = (f for f in findings_of(account) if f.key == "one_word")
    assert (finding.severity, finding.title[:6]) == ("info", "In 25%")
    fewer = {"audit": {"faults": counted(*near[1:], *far).to_dict()}}
    assert "one_word" not in {f.key for f in findings_of(fewer)}
    left = RecordsLeftOut()
    assert len(list(cleaned(lambda: near + far, left))) == 40


def test_good_and_bad_answers_are_counted() -> None:
    said = [Judgement(prompt="p", completion="c", desirable=i < 3, source="x") for i in range(4)]
    faults = counted(*said).to_dict()
    assert (faults["desirable"]["count"], faults["undesirable"]["count"]) == (3, 1)


def test_examples_of_the_same_answers_stay_together() -> None:
    """Prompts 1 and 2 share answers 10, prompts 2 and 3 answers 11; 4 stands alone."""
    prompts = np.asarray([1, 2, 2, 3, 4, 5, 6, 7])
    answers = np.asarray([10, 10, 11, 11, 12, 13, 0, 0])
    assert together(prompts, answers).tolist() == [1, 1, 1, 1, 4, 5, 6, 7]
    assert together(prompts[::-1], answers[::-1]).tolist() == [7, 6, 5, 4, 1, 1, 1, 1]


def test_without_shared_answers_nothing_changes() -> None:
    prompts = np.asarray([5, 5, -3, 9])
    assert together(prompts, np.asarray([1, 2, 3, 4])) is prompts


def test_answers_that_everybody_gives_tie_nothing_together() -> None:
    prompts = np.arange(100)
    assert together(prompts, np.full(100, 7)) is prompts
    assert known_answers(np.full(50, 7), np.full(50, 7)).tolist() == [False] * 50


def chain(size: int, first: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Prompts of two examples each, of which every one shares its answers with the next: one part of ``size``."""
    at = np.arange(size)
    return first + at // 2, 1 + first + (at + 1) // 2


@pytest.mark.parametrize(
    ("size", "of", "tied"),
    [(20, 100, True), (22, 100, False), (50, 1000, True), (52, 1000, False), (520, 20_000, False)],
)
def test_what_is_tied_together_stays_small(size: int, of: int, tied: bool) -> None:
    """20 examples, or a twentieth of all, but never more than 512; beside it stand examples that nothing ties."""
    prompts, answers = (np.append(a, np.arange(1000, 1000 + of - size)) for a in chain(size))
    found = together(prompts, answers)
    assert found.tolist() == np.append(np.zeros(size) if tied else prompts[:size], prompts[size:]).tolist()


def test_few_examples_of_the_same_answers_are_split_by_their_prompts() -> None:
    """A split needs two sides."""
    assert together(np.arange(18), np.full(18, 7)).tolist() == list(range(18))


def test_not_much_more_is_held_out_than_was_asked_for() -> None:
    """Four times 100 of 1000 examples are linked through their answers; 50 are asked for, and a part may hold 50."""
    parts = [*(chain(100, first) for first in (0, 200, 400, 600)), (np.arange(1000, 1600),) * 2]
    prompts, answers = (np.concatenate([p[side] for p in parts]) for side in (0, 1))
    keys = together(prompts, answers)
    sizes = [len(split_by_prompt(keys, 50, seed)[1]) for seed in range(20)]
    assert 50 <= min(sizes) <= max(sizes) < 100


def test_known_answers_by_hand() -> None:
    train, held = np.asarray([1, 2, 3, 0]), np.asarray([2, 2, 9, 0])
    assert known_answers(train, held).tolist() == [True, True, False, False]
