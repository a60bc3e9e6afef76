"""Whether words alone tell which answer was preferred: what they can tell, and that they tell nothing of chance."""

from __future__ import annotations

import numpy as np

from prefiere.data.quality.faults import Faults
from prefiere.data.quality.told import FEWEST
from prefiere.data.schema import PreferencePair
from prefiere.stats import Estimate

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
