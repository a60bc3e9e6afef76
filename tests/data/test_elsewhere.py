"""Answers that stand at the wrong prompts: found by rare words, and not found where none do."""

from __future__ import annotations

from collections import Counter
from itertools import product
from math import log
from zlib import crc32

import numpy as np
import pytest
from scipy.stats import fisher_exact

from prefiere.data.quality import elsewhere
from prefiere.data.quality.cleaned import RecordsLeftOut, cleaned
from prefiere.data.quality.elsewhere import COPIED, EXCESS, FEWEST, NEAREST, OTHERS, TOLD, UNLIKELY, Elsewhere, Spoken
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
        made.add(crc32(asked.encode()), asked.split(), [answer.split()], f"d:{i}")
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


def test_prompts_that_an_answer_is_as_near_to_are_no_control() -> None:
    """Four prompts on each topic, whose answers were exchanged with those on another: where one is left without its
    answer, so are the other three, which shows nothing of chance. One answer in five names something besides."""
    rng = np.random.default_rng(7)
    rows = [
        (
            f"own{i} topic{i // 4} about{i // 40 if i % 40 == 0 else 'it'}",
            f"topic{i // 4} about{rng.integers(10) if rng.random() < 0.2 else 'it'}",
        )
        for i in range(400)
    ]
    topics = rng.permutation(100)[:30].tolist()
    for one, other in zip(topics[::2], topics[1::2], strict=True):
        for k in range(4):
            (asked, answer), (there, besides) = rows[4 * one + k], rows[4 * other + k]
            rows[4 * one + k], rows[4 * other + k] = (asked, besides), (there, answer)
    astray = found(rows)
    assert astray is not None
    assert (astray.sure, astray.apart) == (True, 0)


def sums(n: int, seed: int) -> list[Row]:
    """A kind of data whose answers take up no word of their prompt, and now and then one of another."""
    drawn = np.random.default_rng(seed).integers(100, 999, (n, 3))
    return [(f"what is num{a} and num{b} together", f"num{c} it is") for a, b, c in drawn.tolist()]


@pytest.mark.parametrize("seed", range(5))
def test_data_of_several_kinds_has_not_slipped_for_certain(seed: int) -> None:
    """Prompts of one kind have no answer, in the eyes of words, and its answers point at each other: words alone do not
    tell that from answers that were exchanged."""
    mixed = world(400, seed) + sums(200, seed)
    order = np.random.default_rng(seed).permutation(len(mixed))
    for rows in (mixed, [mixed[i] for i in order]):
        astray = found(rows)
        assert astray is None or not astray.sure


def test_what_words_alone_do_not_show_is_not_cleaned_away() -> None:
    mixed = [Demonstration(prompt=asked, completion=answer) for asked, answer in world(400, 1) + sums(200, 1)]
    faults = Faults()
    for record in mixed:
        faults.add(record)
    astray = faults.spoken.elsewhere()
    assert astray is not None
    assert not astray.sure
    left = RecordsLeftOut()
    assert list(cleaned(lambda: mixed, left)) == mixed
    assert left.counts == {}


@pytest.mark.parametrize("words", [1, 5])
def test_turns_of_one_dialogue_have_not_slipped(words: int) -> None:
    """Each prompt holds the answer before it, and so the words that it takes up, be they many or few."""
    rows: list[Row] = []
    for i, (asked, answer) in enumerate(world(200, 4, on_topic=0.2)):
        first = f"{asked} own{i} which I ask"
        said = f"{answer} {' '.join(f'filler{(7 * i + k) % 400}' for k in range(words))}"
        rows += [(first, said), (f"{first} {said} and word{i % 60} besides", f"other{i} word1")]
    assert found(rows) is None


def test_neighbours_about_the_same_have_not_slipped() -> None:
    """Four prompts on each topic, one after the other, half of whose answers do not name it."""
    rng = np.random.default_rng(0)
    rows = [
        (
            f"topic{i // 4} word{rng.integers(60)} own{i}",
            ("topic" if rng.random() < 0.5 else "thing") + f"{i // 4} word3",
        )
        for i in range(400)
    ]
    assert found(rows) is None


@pytest.mark.parametrize(("share", "by"), [(1.0, 1), (0.5, 1), (0.3, -3), (1.0, 20)])
def test_rows_that_slipped_in_step_are_said_so(share: float, by: int) -> None:
    """Even where all of them did, and no answer is at its place."""
    sound = world(300, 3)
    begin = round(300 * (1 - share))
    rows = [(asked, sound[(i + by) % 300][1] if i >= begin else answer) for i, (asked, answer) in enumerate(sound)]
    astray = found(rows)
    assert astray is not None
    assert (astray.apart, astray.sure) == (by, True)
    assert astray.in_step > 0.5 * len(astray.sources)
    assert sum(int(s[2:]) >= begin for s in astray.sources) > 0.8 * len(astray.sources)


def test_neighbours_that_were_exchanged_have_not_slipped_in_step() -> None:
    """As many lie one prompt ahead as one behind."""
    rows = world(300, 3, on_topic=1.0)
    for i in range(0, 60, 3):
        rows[i], rows[i + 1] = (rows[i][0], rows[i + 1][1]), (rows[i + 1][0], rows[i][1])
    astray = found(rows)
    assert astray is not None
    assert (astray.apart, astray.in_step) == (0, 0)


def test_a_step_is_counted_in_prompts() -> None:
    """Of which each has four answers, and stands in four records."""
    rows = [(asked, f"{answer} v{k}") for asked, answer in world(100, 3) for k in range(4)]
    astray = found([(asked, rows[i - 4][1]) for i, (asked, _) in enumerate(rows)])
    assert astray is not None
    assert astray.apart == -1


def test_where_no_answer_is_in_its_place_chance_is_not_said_to_be_none() -> None:
    rows = [(f"topic{i} word", f"topic{(i + 1) % 60} word") for i in range(60)]
    astray = found(rows)
    assert astray is not None
    assert (astray.apart, astray.by_chance) == (1, None)


def test_prompts_and_answers_that_share_no_words_show_nothing() -> None:
    rng = np.random.default_rng(0)
    rows = [(f"asked{i} {rng.integers(9)}", f"said{i} {rng.integers(9)}") for i in range(100)]
    assert found(rows) is None


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(["".join(c) for c in product("abcdefghijklmnopqr", repeat=2)], id="of two letters"),
        pytest.param(["".join(c) for c in product("+-*/", repeat=5)], id="of signs"),
        pytest.param([f"{i}" for i in range(1000, 1400)], id="of digits"),
    ],
)
def test_what_names_nothing_is_no_topic(names: list[str]) -> None:
    slipped = [(f"{names[i]} word", f"{names[i - 1]} word") for i in range(300)]
    assert found(slipped) is None
    letters = [f"{name}{name}{name}".translate(str.maketrans("+-*/0123456789", "abcdefghijklmn")) for name in names]
    assert found([(f"{letters[i]} word", f"{letters[i - 1]} word") for i in range(300)]) is not None


def test_of_few_records_nothing_is_said() -> None:
    rows = world(FEWEST, 5, 1.0)
    slipped = [(asked, rows[i - 1][1]) for i, (asked, _) in enumerate(rows)]
    assert found(slipped) is not None
    assert found(slipped[1:]) is None
    assert found([]) is None


def by_loop(rows: list[Row]) -> tuple[int, set[str], float, Counter[int]]:
    """Strays, those of them at a prompt without an answer, how often that is by chance, and how far away they lie."""
    prompts = sorted({asked for asked, _ in rows}, key=lambda p: crc32(p.encode()))
    order = list(dict.fromkeys(asked for asked, _ in rows))
    asked_by = {w: sum(w in p.split() for p in prompts) for p in prompts for w in p.split()}
    said_by = {w: sum(w in a.split() for _, a in rows) for w in asked_by}
    weight = {
        w: log(len(rows) / max(asked_by[w], said_by[w]))
        for w in asked_by
        if len(w) > 2
        and said_by[w]
        and max(asked_by[w], said_by[w]) <= max(2, min(elsewhere.RARE * len(rows), elsewhere.MOST))
    }
    like = [{p: sum(weight.get(w, 0) for w in set(a.split()) & set(p.split())) for p in prompts} for _, a in rows]
    placed = [like[i][asked] > 0 for i, (asked, _) in enumerate(rows)]
    lost = {p: not any(placed[i] for i, (asked, _) in enumerate(rows) if asked == p) for p in prompts}
    strays, missing, others, away = 0, set(), [], Counter[int]()
    for i, (asked, answer) in enumerate(rows):
        near = sorted((p for p in prompts if p != asked and like[i][p] > 0), key=lambda p: -round(like[i][p], 7))
        if placed[i]:
            others += [lost[p] for p in near[:NEAREST]]
        elif near and not any(
            len(set(t)) >= COPIED and set(t) <= set(near[0].split()) for t in (asked.split(), answer.split())
        ):
            strays += 1
            if lost[near[0]]:
                missing.add(f"d:{i}")
                away[order.index(near[0]) - order.index(asked)] += 1
    return strays, missing, sum(others) / len(others), away


@pytest.mark.parametrize(("rare", "most"), [(0.02, 64), (0.2, 7), (0.2, 64)])
def test_the_counts_are_those_of_a_slow_loop(monkeypatch: pytest.MonkeyPatch, rare: float, most: int) -> None:
    """With prompts that stand there twice, words that anything between one and half of them have, and blocks of 7."""
    monkeypatch.setattr(elsewhere, "RARE", rare)
    monkeypatch.setattr(elsewhere, "MOST", most)
    monkeypatch.setattr(elsewhere, "_AT_ONCE", 7)
    monkeypatch.setattr(elsewhere, "EXCESS", -1.0)
    monkeypatch.setattr(elsewhere, "IN_STEP", 1)
    monkeypatch.setattr(elsewhere, "UNLIKELY", 2.0)
    rng = np.random.default_rng(8)
    rows: list[Row] = []
    for _ in range(90):
        words = [f"rare{int(w)}" for w in rng.zipf(1.3, 14) if w < 4000]
        rows.append((" ".join(words[:7]) + f" own{rng.integers(60)}", " ".join(words[5:]) + f" own{rng.integers(60)}"))
    rows += [(asked, rows[i - 1][1]) for i, (asked, _) in enumerate(rows[:5])]
    astray = found(rows)
    assert astray is not None
    strays, missing, by_chance, away = by_loop(rows)
    assert astray.strays == strays
    assert set(astray.sources) == missing
    assert (astray.share, astray.by_chance) == pytest.approx((len(astray.sources) / strays, by_chance), abs=1e-12)
    apart, most = away.most_common(1)[0]
    assert (astray.apart, astray.in_step) == ((apart, most) if 3 * away[-apart] <= most else (0, 0))


def test_how_many_speak_of_their_own_prompt_and_how_many_by_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow loop: a word in common that is rare, with the own prompt and with eight others of all over the data."""
    monkeypatch.setattr(elsewhere, "RARE", 0.1)
    rows, _ = moved(world(90, 3), 0.5, 1)
    rows += [(asked, answer + " more") for asked, answer in rows[:30]] + [
        (asked, "topic1 word") for asked, _ in rows[:9]
    ]
    n, prompts = len(rows), {asked for asked, _ in rows}
    asked_by = Counter(w for p in prompts for w in set(p.split()))
    said_by = Counter(w for _, a in rows for w in set(a.split()))
    rare = {w for w in asked_by if said_by[w] and len(w) > 2 and max(asked_by[w], said_by[w]) <= max(2, 0.1 * n)}
    long = [(p, a) for p, a in rows if len({w for w in a.split() if len(w) > 2}) >= TOLD]
    own = sum(bool(set(a.split()) & set(p.split()) & rare) for p, a in long)
    met = []
    for k in range(1, OTHERS + 1):
        for i, (asked, answer) in enumerate(long):
            other = long[(i - k * len(long) // (OTHERS + 1)) % len(long)][0]
            met += [bool(set(answer.split()) & set(other.split()) & rare)] if other != asked else []
    (placed,) = spoken(rows).placed()
    assert placed is not None
    told = sum(bool(set(a.split()) & rare) for _, a in long)
    assert (placed.count, placed.n, placed.others) == (own, len(long), told - own)
    assert placed.by_chance == pytest.approx(np.mean(met), abs=1e-12)
    assert 0 < placed.by_chance < own / len(long)
    assert len(long) < n
    assert spoken(rows[: FEWEST - 1]).placed() == [None]
    assert Spoken().placed() == []


def test_one_prompt_alone_has_no_other_to_speak_of() -> None:
    (placed,) = spoken([("topic one", f"answer{i} topic that you named") for i in range(60)]).placed()
    assert placed is not None
    assert placed.by_chance == 0.0


@pytest.mark.parametrize(
    ("found_", "of", "chance", "met"),
    [(8, 10, 30, 100), (9, 10, 20, 100), (0, 5, 3, 9), (5, 5, 1, 50), (5, 5, 40, 50), (3, 9, 9, 20)],
)
def test_the_chance_is_that_of_fishers_exact_test(found_: int, of: int, chance: int, met: int) -> None:
    """More by a share of the records, and with a chance of one in a thousand at most."""
    exact = fisher_exact([[found_, of - found_], [chance, met - chance]], "greater").pvalue
    first, second = np.arange(of) < found_, np.arange(met) < chance
    assert elsewhere._exceeds(first, second, 100) is bool(
        exact < UNLIKELY and found_ - chance / met * of >= EXCESS * 100
    )


@pytest.mark.parametrize("column", [0, 1])
def test_one_column_that_slipped_alone_is_found(column: int) -> None:
    """The other answer still speaks of the prompt."""
    rows = [
        (asked, answer, f"{answer.split()[0]} word{i % 60}") for i, (asked, answer) in enumerate(world(300, 6, 1.0))
    ]
    made = Spoken()
    for i, (asked, *answers) in enumerate(rows):
        answers[column] = rows[(i + 1) % 300][1 + column]
        made.add(i, asked.split(), [a.split() for a in answers], f"d:{i}")
    astray = made.elsewhere()
    assert astray is not None
    assert (astray.apart, astray.sure, astray.column) == (1, True, column)
    assert astray.to_dict()["column"] == column


def test_a_column_that_slipped_for_certain_is_told_before_what_is_unsure() -> None:
    """Of two kinds together, of which one never takes up words of its prompts, while a column of the other slipped."""
    told, made = world(400, 1), Spoken()
    rows = [(asked, answer, told[i - 1][1]) for i, (asked, answer) in enumerate(told)]
    rows += [(asked, answer, "yes it is") for asked, answer in sums(200, 1)]
    for i, (asked, *answers) in enumerate(rows):
        made.add(i, asked.split(), [a.split() for a in answers], f"d:{i}")
    first, astray = made._astray(made.answered[0]), made.elsewhere()
    assert first is not None
    assert astray is not None
    assert (first.sure, astray.sure, astray.apart) == (False, True, -1)


def test_what_is_read_of_a_record() -> None:
    """All turns of the prompt, each answer of a pair in its place; records without answers are none."""
    faults = Faults()
    turns = (Message("system", "System"), Message("user", "First one"), Message("user", "Second"))
    faults.add(PreferencePair(prompt=turns, chosen="Alpha beta", rejected="Gamma, beta", source="a"))
    faults.add(PreferencePair(prompt="What", chosen="Delta", rejected="Of it", source="b"))
    faults.add(Demonstration(prompt="What", completion="Epsilon", source="c"))
    by_hand = Spoken()
    by_hand.add(1, ["system", "first", "one", "second"], [["alpha", "beta"], ["gamma", "beta"]], "a")
    by_hand.add(2, ["what"], [["delta"], ["of", "it"]], "b")
    assert faults.spoken.sources == ["a", "b"]
    for i in range(2):
        assert faults.spoken.asked.of(i) == by_hand.asked.of(i)
        assert [s.of(i) for s in faults.spoken.answered] == [s.of(i) for s in by_hand.answered]
    single = Faults()
    single.add(Judgement(prompt="Which", completion="Delta", desirable=False, source="b"))
    assert len(single.spoken.answered) == 1


@pytest.mark.parametrize("column", [0, 1])
def test_a_column_that_was_sorted_alone_is_seen_in_its_place(column: int) -> None:
    """No answer of it stands at its prompt, and all of the other do."""
    rows = world(300, 2, 1.0)
    by = np.random.default_rng(0).permutation(300)
    made = Spoken()
    for i, (asked, answer) in enumerate(rows):
        answers = [answer.split(), answer.split()]
        answers[column] = rows[by[i]][1].split()
        made.add(i, asked.split(), answers, f"d:{i}")
    moved_, other = made.placed()[column], made.placed()[1 - column]
    assert moved_ is not None
    assert other is not None
    assert moved_.count <= 0.05 * moved_.n < 0.5 * moved_.n <= moved_.others
    assert other.count > 0.9 * other.n


def test_what_is_counted_of_rejected_answers_is_not_taken_for_the_preferred_ones() -> None:
    """Which here are of two words, and speak of nothing."""
    faults = Faults()
    for i, (asked, answer) in enumerate(world(100, 1, 1.0)):
        faults.add(PreferencePair(prompt=asked, chosen=f"Yes {i}.", rejected=answer))
    found_ = faults.to_dict()
    assert ("placed" in found_, "placed_other" in found_) == (False, True)
