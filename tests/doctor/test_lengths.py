"""How much is length, and where a reward begins to mislead: against data made so."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from prefiere.doctor.case import Case
from prefiere.doctor.diagnose import diagnose
from prefiere.doctor.rules.lengths import right_by_length, wins
from prefiere.doctor.rules.peak import fitted
from prefiere.run import Run
from synthetic_runs import make, make_policy


def with_pairs(run: Run, tokens: list[tuple[int, int]], margins: list[float]) -> Run:
    rows = zip(tokens, margins, strict=True)
    run.log_pairs([{"step": 9, "split": "eval", "source": "x:1", "margin": m, "tokens": list(t)} for t, m in rows])
    return run


def test_accuracy_by_length_by_hand(tmp_path: Path) -> None:
    """Median 10, so that a difference of 1 is none: of two shorter one is right, the one alike is right."""
    tokens = [(5, 20), (5, 20), (10, 11), (20, 5)]
    found = right_by_length(Case(with_pairs(make(tmp_path), tokens, [1, -1, 1, 1])))
    parts = {b.words: (b.right.mean, b.right.n) for b in found}
    assert parts == {"shorter": (0.5, 2), "about as long": (1.0, 1), "longer": (1.0, 1)}


def test_accuracy_by_length_is_of_the_answer_that_the_label_prefers(tmp_path: Path) -> None:
    """Of answers of 5 and 20 tokens, the second is preferred with 0.9 and ranked higher; then comes a tie; then an old
    row without a label."""
    run = make(tmp_path)
    row = {"step": 9, "split": "eval", "source": "x:1", "tokens": [5, 20]}
    run.log_pairs([row | {"margin": -1, "label": 0.1}, row | {"margin": 1, "label": 0.5}, row | {"margin": -1}])
    found = right_by_length(Case(run))
    assert {b.words: (b.right.mean, b.right.n) for b in found} == {"longer": (1.0, 1), "shorter": (0.0, 1)}


def test_a_policy_that_learnt_length(tmp_path: Path) -> None:
    tokens = [(40, 10)] * 30 + [(10, 40)] * 20
    run = with_pairs(make(tmp_path / "a"), tokens, [1.0] * 30 + [-1.0] * 20)
    assert "mostly_length" in diagnose(run)
    sound = with_pairs(make(tmp_path / "b"), tokens, [1.0] * 45 + [-1.0] * 5)
    assert "mostly_length" not in diagnose(sound)


def judged(run: Run, seed: int, *, of_length: float, of_quality: float) -> Run:
    """200 answers before and after: longer by 10 on average, judged by length, by quality, or both."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(200):
        longer = int(rng.normal(10, 10))
        better = of_length * longer / 10 + of_quality + rng.logistic()
        rows += [{"step": 0, "prompt": str(i), "sample": 0, "tokens": 50, "score": 0.0}]
        rows += [{"step": 100, "prompt": str(i), "sample": 0, "tokens": 50 + longer, "score": float(better)}]
    run.log_samples(sorted(rows, key=lambda r: r["step"]))
    return run


def test_wins_at_equal_length(tmp_path: Path) -> None:
    """A judge of length alone is at a coin's flip there, one of quality at its log-odds of 1: means of 8 draws."""
    of_words, of_quality = [], []
    for seed in range(8):
        one = wins(Case(judged(make(tmp_path / f"a{seed}", seed), seed, of_length=2.0, of_quality=0.0)))
        other = wins(Case(judged(make(tmp_path / f"b{seed}", seed), seed, of_length=0.0, of_quality=1.0)))
        assert one is not None
        assert other is not None
        assert one.raw.above(0.6)
        assert other.equal.low < other.equal.mean < other.equal.high
        of_words.append(one.equal.mean)
        of_quality.append(other.equal.mean)
    assert np.mean(of_words) == pytest.approx(0.5, abs=0.08)
    assert np.mean(of_quality) == pytest.approx(1 / (1 + math.exp(-1.0)), abs=0.05)


def test_only_longer_is_said(tmp_path: Path) -> None:
    assert "only_longer" in diagnose(judged(make(tmp_path / "a"), 0, of_length=2.0, of_quality=0.0))
    assert "only_longer" not in diagnose(judged(make(tmp_path / "b"), 0, of_length=0.0, of_quality=1.5))


def climbing(folder: Path, alpha: float, beta: float, last: float) -> Run:
    """A policy whose judge follows d (alpha - beta log d), to a KL of ``last``."""
    run = make_policy(folder, drop=("samples/kl", "samples/score", "samples/reward", "reward"))
    rows = run.metrics
    for i, row in enumerate(rows[::10]):
        kl = last * i / 10
        d = math.sqrt(kl)
        score = d * (alpha - beta * math.log(d)) if d else 0.0
        for key, value in (("samples/kl", kl), ("samples/score", score)):
            row |= {key: value, f"{key}_low": value - 0.02, f"{key}_high": value + 0.02, f"{key}_n": 64}
    (folder / "metrics.jsonl").unlink()
    for row in rows:
        run.log(row)
    return run


def test_the_peak_is_where_the_curve_has_it(tmp_path: Path) -> None:
    """alpha 1, beta 0.5: log d = 1, so that the KL there is e squared, 7.39."""
    found = fitted(Case(climbing(tmp_path, 1.0, 0.5, 30.0)))
    assert found is not None
    assert found.sure
    assert found.kl == pytest.approx(math.e**2, rel=1e-6)
    assert found.end == pytest.approx(30.0)
    assert found.gain == pytest.approx(math.e * 0.5)


def test_past_the_peak_is_said_and_before_it_is_not(tmp_path: Path) -> None:
    far = diagnose(climbing(tmp_path / "a", 1.0, 0.5, 30.0))
    assert "past_the_peak" in far
    near = diagnose(climbing(tmp_path / "b", 1.0, 0.5, 6.0))
    assert "past_the_peak" not in near
    assert any("fitted peak at a KL of 7.39" in line for f in near.findings for line in f.evidence)
