"""Whether words alone tell which answer was preferred: what they can tell, and that they tell nothing of chance."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from prefiere.data.quality.faults import Faults
from prefiere.data.quality.told import FEWEST, NAMED, Reversed
from prefiere.data.schema import Judgement, PreferencePair
from prefiere.stats import Estimate, chance_of_one

WORDS = [f"w{i}" for i in range(200)]


def told(pairs: list[tuple[str, str, str]]) -> Estimate | None:
    faults = Faults()
    for prompt, chosen, rejected in pairs:
        faults.add(PreferencePair(prompt=prompt, chosen=chosen, rejected=rejected))
    return faults.words.found()


def drawn(n: int, seed: int, liked: float) -> list[tuple[str, str, str]]:
    """Pairs of ten words each, of which the preferred one is that with more of the first hundred words, so often as
    ``liked`` says."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(n):
        a, b = (rng.choice(200, 10, replace=False) for _ in range(2))
        better = (a < 100).sum() >= (b < 100).sum()
        texts = [" ".join(WORDS[w] for w in ids) for ids in (a, b)]
        made.append((f"prompt {i}", *(texts if better == (rng.random() < liked) else texts[::-1])))
    return made


def test_words_that_are_liked_tell() -> None:
    found = told(drawn(400, 0, liked=0.9))
    assert found is not None
    assert found.low > 0.6
    assert found.n < 400  # the first part is learnt from alone


def test_random_labels_are_told_as_chance() -> None:
    """The interval leaves one half out one time in twenty: of forty, hardly five or more times."""
    found = [told(drawn(120, seed, liked=0.5)) for seed in range(40)]
    assert sum(f is not None and not f.low <= 0.5 <= f.high for f in found) <= 4
    assert abs(np.mean([f.mean for f in found if f is not None]) - 0.5) < 0.03


def test_a_pair_is_not_told_by_itself_under_another_prompt() -> None:
    """Each pair has words of its own, and stands there twice: what its copy taught is memory."""
    once = [(f"prompt {i}", f"good{i} fine{i}", f"bad{i} poor{i}") for i in range(100)]
    found = told(once + [(f"again {i}", c, r) for i, (_, c, r) in enumerate(once)])
    assert found is not None
    assert found.mean == 0.5


def test_of_few_pairs_nothing_is_said() -> None:
    assert told(drawn(FEWEST - 1, 0, liked=1.0)) is None
    assert told([("the same prompt", c, r) for _, c, r in drawn(200, 0, liked=1.0)]) is None


def test_a_label_below_one_half_prefers_the_other_answer() -> None:
    """Turned round, in the file and in the label, the pairs say the same."""
    pairs = drawn(300, 1, liked=0.95)
    turned = Faults()
    for prompt, chosen, rejected in pairs:
        turned.add(PreferencePair(prompt=prompt, chosen=rejected, rejected=chosen, label=0.1))
    assert turned.words.found() == told(pairs)


# -- labels that look reversed ----------------------------------------------------------------------------------------

LIKED, OTHER = WORDS[:40], WORDS[40:80]


def clear(n: int, seed: int) -> list[tuple[str, str]]:
    """Pairs of texts of which the first has words that are liked, and the other some that are not, beside what both
    may have."""
    rng = np.random.default_rng(seed)

    def text(own: list[str]) -> str:
        return " ".join([*rng.choice(own, 5), *rng.choice(WORDS[80:], 5)])

    return [(text(LIKED), text(OTHER)) for _ in range(n)]


def of_pairs(n: int, swapped: set[int], seed: int = 0) -> Reversed | None:
    faults = Faults()
    for i, pair in enumerate(clear(n, seed)):
        chosen, rejected = pair[::-1] if i in swapped else pair
        faults.add(PreferencePair(prompt=f"prompt {i}", chosen=chosen, rejected=rejected, source=f"d.jsonl:{i}"))
    return faults.words.reversed()


def of_singles(n: int, swapped: set[int], good: float, seed: int = 0) -> Reversed | None:
    faults, rng = Faults(), np.random.default_rng(seed)
    for i, pair in enumerate(clear(n, seed)):
        liked = bool(rng.random() < good)
        said = Judgement(prompt=f"prompt {i}", completion=pair[0 if liked else 1], desirable=liked != (i in swapped),
                         source=f"d.jsonl:{i}")  # fmt: skip
        faults.add(said)
    return faults.words.reversed()


def drawn_at(n: int, share: float, seed: int = 1) -> set[int]:
    return set(np.random.default_rng(seed).choice(n, round(share * n), replace=False).tolist())


@pytest.mark.parametrize("share", [0.06, 0.1, 0.2, 0.3])
def test_swapped_pairs_are_named_line_by_line(share: float) -> None:
    swapped = drawn_at(400, share)
    found = of_pairs(400, swapped)
    assert found is not None
    named = {int(source.rpartition(":")[2]) for source in found.sources}
    assert len(named & swapped) > 0.9 * len(swapped)
    assert len(named - swapped) < 0.05 * len(named) + 2
    assert found.against.low <= share <= found.against.high


@pytest.mark.parametrize(("share", "good"), [(0.1, 0.5), (0.25, 0.5), (0.1, 0.8), (0.2, 0.3)])
def test_swapped_single_answers_are_named_line_by_line(share: float, good: float) -> None:
    """Evidence is counted from the middle between both kinds, whichever are more."""
    swapped = drawn_at(400, share)
    found = of_singles(400, swapped, good)
    assert found is not None
    named = {int(source.rpartition(":")[2]) for source in found.sources}
    assert len(named & swapped) > 0.85 * len(swapped)
    assert len(named - swapped) < 0.1 * len(named) + 2


@pytest.mark.parametrize("good", [0.02, 0.5, 0.9, 1.0])
def test_sound_single_answers_are_not_reversed(good: float) -> None:
    assert of_singles(400, set(), good) is None


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("liked", [0.5, 0.65, 0.8, 1.0])
def test_labels_that_are_hard_to_tell_are_not_reversed(seed: int, liked: float) -> None:
    """Errors of a single bell are hesitant: ten words of which a few more, or fewer, are liked."""
    faults = Faults()
    for prompt, chosen, rejected in drawn(300, seed, liked):
        faults.add(PreferencePair(prompt=prompt, chosen=chosen, rejected=rejected))
    assert faults.words.reversed() is None
    assert of_pairs(300, set(), seed) is None


def test_labels_of_chance_that_lie_in_two_clouds_are_not_reversed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one of 1,500 random labellings where the clouds alone would be believed: of what they were not fitted to,
    words tell 54% (from 40%)."""
    faults = Faults()
    for i, pair in enumerate(clear(60, 1264)):
        heads = np.random.default_rng(10**6 + 1264 * 1000 + i).random() < 0.5
        chosen, rejected = pair if heads else pair[::-1]
        faults.add(PreferencePair(prompt=f"p{i}", chosen=chosen, rejected=rejected))
    assert faults.words.reversed() is None
    monkeypatch.setattr(faults.words, "found", lambda: None)
    assert faults.words.reversed() is not None


@pytest.mark.parametrize(("n", "words", "seed"), [(380, 300, 22), (380, 300, 35), (200, 60, 9)])
def test_pairs_one_word_apart_are_not_reversed(monkeypatch: pytest.MonkeyPatch, n: int, words: int, seed: int) -> None:
    """A random word of the preferred answer was exchanged: few words differ, so that many pairs are decided by the
    same ones. These lie in two clouds, a third against their labels, and words tell fewer than the other two thirds."""
    rng, often = np.random.default_rng(seed), 1 / np.arange(1, words + 1)
    faults = Faults()
    for i in range(n):
        said = [f"w{w}" for w in rng.choice(words, 8, p=often / often.sum())]
        at, other = int(rng.integers(8)), f"w{rng.choice(words, p=often / often.sum())}"
        chosen, rejected = (" ".join(s) for s in (said, [*said[:at], other, *said[at + 1 :]]))
        faults.add(PreferencePair(prompt=f"p{i}", chosen=chosen, rejected=rejected))
    assert faults.words.reversed() is None
    found = faults.words.found()
    assert found is not None
    monkeypatch.setattr(faults.words, "found", lambda: replace(found, high=1.0))
    assert faults.words.reversed() is not None


def test_of_very_many_the_first_are_listed() -> None:
    swapped = drawn_at(6000, 0.25)
    found = of_pairs(6000, swapped)
    assert found is not None
    told_of = found.to_dict()
    assert len(found.sources) == told_of["count"] > NAMED == len(told_of["sources"])


def test_a_label_below_one_half_is_reversed_where_its_words_say_so() -> None:
    faults = Faults()
    for i, (liked, other) in enumerate(clear(200, 0)):
        wrong = i % 8 == 0  # the file says the other answer is preferred, and so does the label, or not
        label = 0.1 if not wrong else 0.9
        faults.add(PreferencePair(prompt=f"p {i}", chosen=other, rejected=liked, label=label, source=f"d.jsonl:{i}"))
    found = faults.words.reversed()
    assert found is not None
    assert found.sources == [f"d.jsonl:{i}" for i in range(0, 200, 8)]


def test_two_clouds_by_hand() -> None:
    """Firm on both sides: unlikely of one. A bell: likely. Fewer than 5% or more than 45% below 0, or few: nothing."""
    firm = np.concatenate([np.full(20, -1.0), np.full(80, 1.0)])
    assert chance_of_one(firm) < 1e-4
    assert chance_of_one(np.random.default_rng(0).normal(0.8, 1.0, 400)) > 0.05
    assert chance_of_one(np.concatenate([np.full(2, -1.0), np.full(98, 1.0)])) == 1
    assert chance_of_one(np.concatenate([np.full(48, -1.0), np.full(52, 1.0)])) == 1
    assert chance_of_one(firm[10:35]) == 1
