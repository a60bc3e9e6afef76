"""Answers that stand at the wrong prompts: found by rare words, and not found where none do."""

from __future__ import annotations

from math import log
from zlib import crc32

import numpy as np
import pytest
from scipy.stats import fisher_exact

from prefiere.data.quality import elsewhere
from prefiere.data.quality.elsewhere import FEWEST, NEAREST, RARE, Elsewhere, Spoken
from prefiere.data.quality.faults import Faults
from prefiere.data.schema import Demonstration, Judgement, Message, PreferencePair

Row = tuple[str, str]


def world(n: int, seed: int, on_topic: float = 0.8) -> list[Row]:
    """Prompts with two topics each, of 3n, and answers that take one up, so often as ``on_topic`` says, and another one
    by chance three times in ten; both have words besides that others have too."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(n):
        topics, other = rng.choice(3 * n, 2, replace=False), int(rng.integers(3 * n))
        said = [int(rng.choice(topics))] * (rng.random() < on_topic) + [other] * (rng.random() < 0.3)
        asked, answered = ([*(f"topic{t}" for t in named), *(f"word{w}" for w in rng.choice(60, 4))]
                           for named in (topics, said))  # fmt: skip
        rows.append((" ".join(asked), " ".join(answered)))
    return rows


def moved(rows: list[Row], share: float, seed: int) -> tuple[list[Row], set[str]]:
    """So many of the answers exchanged among each other, and where they stand."""
    at = np.random.default_rng(seed).permutation(len(rows))[: round(share * len(rows))].tolist()
    to = dict(zip(at, [*at[1:], *at[:1]], strict=True))
    return [(asked, rows[to.get(i, i)][1]) for i, (asked, _) in enumerate(rows)], {f"d:{i}" for i in at}


def found(rows: list[Row]) -> Elsewhere | None:
    return spoken(rows).elsewhere()


def spoken(rows: list[Row]) -> Spoken:
    made = Spoken()
    for i, (asked, answer) in enumerate(rows):
        made.add(crc32(asked.encode()), asked.split(), answer.split(), f"d:{i}")
    return made


@pytest.mark.parametrize("on_topic", [1.0, 0.7, 0.3, 0.0])
def test_sound_answers_have_not_slipped(on_topic: float) -> None:
    assert [s for s in range(30) if found(world(200, s, on_topic)) is not None] == []


@pytest.mark.parametrize("share", [0.1, 0.3, 0.6])
def test_a_part_that_was_exchanged_is_found_and_named(share: float) -> None:
    rows, wrong = moved(world(400, 1), share, 2)
    astray = found(rows)
    assert astray is not None
    assert len(wrong & set(astray.sources)) > 0.8 * len(astray.sources)
    assert len(wrong & set(astray.sources)) > 0.4 * len(wrong)
    assert astray.apart == 0


@pytest.mark.parametrize(("share", "by"), [(1.0, 1), (0.5, 1), (0.3, -3), (1.0, 20)])
def test_rows_that_slipped_in_step_are_said_so(share: float, by: int) -> None:
    """Even where all of them did, and no answer is at its place."""
    sound = world(300, 3)
    begin = round(300 * (1 - share))
    rows = [(asked, sound[(i + by) % 300][1] if i >= begin else answer) for i, (asked, answer) in enumerate(sound)]
    astray = found(rows)
    assert astray is not None
    assert astray.apart == by
    assert astray.in_step > 0.5 * len(astray.sources)
    assert sum(int(s[2:]) >= begin for s in astray.sources) > 0.8 * len(astray.sources)


def test_prompts_and_answers_that_share_no_words_show_nothing() -> None:
    rng = np.random.default_rng(0)
    rows = [(f"asked{i} {rng.integers(9)}", f"said{i} {rng.integers(9)}") for i in range(100)]
    assert found(rows) is None


def test_of_few_records_nothing_is_said() -> None:
    rows = world(FEWEST, 5, 1.0)
    slipped = [(asked, rows[i - 1][1]) for i, (asked, _) in enumerate(rows)]
    assert found(slipped) is not None
    assert found(slipped[1:]) is None
    assert found([]) is None


def by_loop(rows: list[Row]) -> tuple[int, set[str], float, float]:
    """Strays, those of them at a prompt without an answer, their share, and the same by chance: as it is written."""
    prompts = sorted({asked for asked, _ in rows}, key=lambda p: crc32(p.encode()))
    asked_by = {w: sum(w in p.split() for p in prompts) for p in prompts for w in p.split()}
    said_by = {w: sum(w in a.split() for _, a in rows) for w in asked_by}
    weight = {
        w: log(len(rows) / max(asked_by[w], said_by[w]))
        for w in asked_by
        if len(w) > 2 and said_by[w] and max(asked_by[w], said_by[w]) <= max(2, min(RARE * len(rows), elsewhere.MOST))
    }
    like = [{p: sum(weight.get(w, 0) for w in set(a.split()) & set(p.split())) for p in prompts} for _, a in rows]
    placed = [like[i][asked] > 0 for i, (asked, _) in enumerate(rows)]
    lost = {p: not any(placed[i] for i, (asked, _) in enumerate(rows) if asked == p) for p in prompts}
    strays, slipped, others = 0, set(), []
    for i, (asked, _) in enumerate(rows):
        near = sorted((p for p in prompts if p != asked and like[i][p] > 0), key=lambda p: -round(like[i][p], 7))[
            :NEAREST
        ]
        if placed[i]:
            others += [lost[p] for p in near]
        elif near:
            strays += 1
            slipped |= {f"d:{i}"} if lost[near[0]] else set()
    return strays, slipped, len(slipped) / strays, sum(others) / len(others)


def test_the_counts_are_those_of_a_slow_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """With prompts that stand there twice, words that anything between one and half of them have, and blocks of 7."""
    monkeypatch.setattr(elsewhere, "_AT_ONCE", 7)
    monkeypatch.setattr(elsewhere, "EXCESS", -1.0)
    monkeypatch.setattr(elsewhere, "UNLIKELY", 2.0)
    rng = np.random.default_rng(8)
    rows: list[Row] = []
    for _ in range(90):
        words = [f"rare{int(w)}" for w in rng.zipf(1.3, 14) if w < 4000]
        rows.append((" ".join(words[:7]) + f" own{rng.integers(60)}", " ".join(words[5:]) + f" own{rng.integers(60)}"))
    rows += [(asked, rows[i - 1][1]) for i, (asked, _) in enumerate(rows[:5])]
    astray = found(rows)
    assert astray is not None
    strays, slipped, share, by_chance = by_loop(rows)
    assert astray.strays == strays
    assert set(astray.sources) == slipped
    assert (astray.share, astray.by_chance) == pytest.approx((share, by_chance), abs=1e-12)


@pytest.mark.parametrize(
    ("found_", "of", "chance", "met"), [(8, 10, 30, 100), (0, 5, 3, 9), (5, 5, 1, 50), (3, 9, 9, 20)]
)
def test_the_chance_is_that_of_fishers_exact_test(found_: int, of: int, chance: int, met: int) -> None:
    exact = fisher_exact([[found_, of - found_], [chance, met - chance]], "greater").pvalue
    assert elsewhere._chance_of(found_, of, chance, met) == pytest.approx(exact, rel=1e-9)


def test_what_is_read_of_a_record() -> None:
    """All turns of the prompt, both answers of a pair; records without answers are none."""
    faults = Faults()
    turns = (Message("system", "System"), Message("user", "First one"), Message("user", "Second"))
    faults.add(PreferencePair(prompt=turns, chosen="Alpha beta", rejected="Gamma, beta", source="a"))
    faults.add(Judgement(prompt="Which", completion="Delta", desirable=True, source="b"))
    faults.add(Demonstration(prompt="What", completion="Epsilon of it", source="c"))
    same = spoken([("system first one second", "alpha beta gamma"), ("which", "delta"), ("what", "epsilon")])
    for mine, by_hand in ((faults.spoken.asked, same.asked), (faults.spoken.answered, same.answered)):
        sets = [[set(s.words[a:b]) for a, b in zip(s.ends, s.ends[1:], strict=False)] for s in (mine, by_hand)]
        assert sets[0] == sets[1]
    assert faults.spoken.sources == ["a", "b", "c"]
