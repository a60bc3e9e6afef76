"""The audit against counts made by hand, and splits that keep prompts apart whatever the data."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefiere.asked.language import speaking
from prefiere.data.audit import audit, folds_by_prompt, prompt_key, share, split_by_prompt
from prefiere.data.formats import Prompt, read
from prefiere.data.schema import Comparison, Demonstration, Judgement, Message, PreferencePair

SHARED = Path(__file__).parents[2].parent / "shared" / "data"


def pair(prompt, chosen, rejected, **more):
    return PreferencePair(prompt=prompt, chosen=chosen, rejected=rejected, **more)


def test_reasons_that_a_language_calls_alike_are_all_told():
    """Of an empty completion and of an empty answer, Spanish says the same."""
    found = replace(audit([]), unusable={"empty completion": 2, "empty answer": 3})
    with speaking("es"):
        told = found.lines()
    assert [line for line in told if "respuesta vacía" in line] == ["respuesta vacía: 2", "respuesta vacía: 3"]


def test_counts_by_hand():
    records = [
        pair("p", "long answer", "short", source="1"),
        pair("p", "long answer", "short", source="2"),  # again
        pair("p", "short", "long answer", source="3"),  # the other way round
        pair("p", "short", "long answer", source="4"),  # again
        pair("p ", "short", "long answer", source="5"),  # another text, but the same prompt to a reader
        pair("q", "same", "same", source="6"),
        pair("q", "", "x", source="7"),
        pair("r", "one", "two", label=0.5, source="8"),
        pair("r", "a", "bbb", label=0.25, source="9"),  # rather the longer one
    ]
    found = audit(records, against=[pair("R", "x", "y"), pair("unseen", "x", "y")])
    assert (found.records, found.prompts) == (9, 3)
    assert found.duplicates == 2
    assert found.contradictions == 1
    assert found.ties == 1
    assert found.unusable == {"chosen equals rejected": 1, "empty chosen": 1}
    # decided, of different lengths: 1 2 (longer), 3 4 5 7 (shorter), 9 (longer)
    assert (found.longer_preferred.count, found.longer_preferred.n) == (3, 7)
    assert (found.shorter_preferred.count, found.shorter_preferred.n) == (4, 7)
    assert found.in_both == 2
    assert found.examples["duplicates"] == ["2", "4"]
    assert found.examples["contradictions"] == ["3"]
    assert found.examples["in_both"] == ["8", "9"]
    # chosen: 11 11 5 5 5 4 0 3 1
    assert found.chosen_lengths.mean == pytest.approx(45 / 9)
    assert (found.chosen_lengths.median, found.chosen_lengths.max) == (5, 11)
    assert json.loads(json.dumps(found.to_dict()))["shorter_preferred"]["count"] == 4
    assert any("the shorter answer is preferred in 57.1%" in line for line in found.lines())


def test_order_of_the_answers_does_not_matter():
    a = Comparison(prompt="p", answer_a="x", answer_b="yy", preference="a")
    b = Comparison(prompt="p", answer_a="yy", answer_b="x", preference="b")
    found = audit([a, b])
    assert (found.duplicates, found.contradictions) == (1, 0)
    assert found.shorter_preferred.count == 2
    c = Comparison(prompt="p", answer_a="yy", answer_b="x", preference="a")
    tie = Comparison(prompt="p", answer_a="yy", answer_b="x", preference="tie")
    found = audit([a, tie, b, c, c])
    assert (found.duplicates, found.contradictions, found.ties) == (2, 1, 1)


def test_roles_tell_texts_apart():
    one = (Message("user", "a"), Message("assistant", "b"), Message("user", "c"))
    other = (Message("user", "a"), Message("user", "b"), Message("user", "c"))
    assert prompt_key(one) != prompt_key(other)
    assert prompt_key("¿Qué  es?\n") == prompt_key("¿qué es?")


def test_other_kinds():
    said = [Judgement(prompt="p", completion="x", desirable=good) for good in (True, False, True)]
    found = audit(said)
    assert (found.duplicates, found.contradictions) == (1, 1)
    assert found.shorter_preferred is None
    shown = audit([Demonstration(prompt="p", completion="x")] * 2)
    assert (shown.duplicates, shown.contradictions) == (1, 0)
    asked = audit([Prompt(prompt="p"), Prompt(prompt="p"), Prompt(prompt="q")])
    assert (asked.prompts, asked.duplicates, asked.chosen_lengths) == (2, 1, None)
    assert audit([]).records == 0


@pytest.mark.parametrize("n", [1, 7, 40])
def test_wilson_interval_solves_its_equation(n):
    """Its ends are the p0 at which the observed share lies exactly z standard errors of p0 away."""
    for count in range(n + 1):
        s = share(count, n)
        assert s.value == count / n
        for end in (s.low, s.high):
            if 0 < end < 1:
                assert abs(count / n - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / n), rel=1e-5)
        assert 0 <= s.low <= s.value <= s.high <= 1
    assert math.isnan(share(0, 0).value)


KEYS = st.lists(st.integers(0, 12), min_size=1, max_size=60)


@given(keys=KEYS, held_out=st.integers(0, 70) | st.floats(0, 0.99), seed=st.integers(0, 3))
def test_no_prompt_is_on_both_sides(keys, held_out, seed):
    keys = np.array(keys)
    train, out = split_by_prompt(keys, held_out, seed)
    assert sorted([*train, *out]) == list(range(len(keys)))
    assert not set(keys[train]) & set(keys[out])
    assert len(train)
    wanted = held_out if isinstance(held_out, int) else math.ceil(held_out * len(keys))
    if len(set(keys[train])) > 1:  # enough prompts: as many as wanted, and not one prompt more than needed
        assert len(out) >= wanted
        assert all(len(out) - np.sum(keys == k) < wanted for k in [_last_taken(keys, out, seed)] if k is not None)


def _last_taken(keys, out, seed):
    """The prompt that is left out of a split that wants one example less than this one has."""
    if not len(out):
        return None
    smaller = split_by_prompt(keys, max(0, len(out) - 1), seed)[1]
    gone = set(keys[out]) - set(keys[smaller])
    return next(iter(gone), None)


@given(keys=st.lists(st.integers(0, 40), min_size=5, max_size=60), seed=st.integers(0, 3))
def test_splits_depend_on_prompts_not_on_order(keys, seed):
    keys = np.array(keys)
    out = set(keys[split_by_prompt(keys, 0.3, seed)[1]])
    assert set(keys[::-1][split_by_prompt(keys[::-1], 0.3, seed)[1]]) == out


def test_another_seed_is_another_split():
    keys = np.arange(1000)
    outs = [tuple(split_by_prompt(keys, 100, seed)[1]) for seed in (0, 0, 1)]
    assert outs[0] == outs[1] != outs[2]
    assert len(outs[0]) == 100
    # a sample, not a stretch: the mean position of 100 of 0..999 has a standard deviation of about 29
    assert abs(np.mean(outs[0]) - 499.5) < 5 * 29


def test_split_of_records_is_the_same_in_every_process():
    code = """
from prefiere.data.audit import split_by_prompt
from prefiere.data.formats import Prompt
print(split_by_prompt([Prompt(prompt=f"p{i % 50}") for i in range(100)], 10, 1)[1].tolist())
"""
    runs = {subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout for _ in range(2)}
    assert len(runs) == 1
    out = json.loads(runs.pop())
    assert len(out) == 10
    assert {i % 50 for i in out} == {i % 50 for i in out if i < 50} == {i % 50 for i in out if i >= 50}


def test_one_prompt_cannot_be_split():
    train, out = split_by_prompt(np.zeros(9, np.int64), 0.5, 0)
    assert len(train) == 9
    assert not len(out)
    with pytest.raises(ValueError, match="cannot hold out -1"):
        split_by_prompt(np.arange(3), -1, 0)


@given(keys=st.lists(st.integers(0, 30), min_size=1, max_size=80), k=st.integers(1, 5), seed=st.integers(0, 2))
def test_folds_keep_prompts_together(keys, k, seed):
    keys = np.array(keys)
    if len(set(keys.tolist())) < k:
        with pytest.raises(ValueError, match="cannot make"):
            folds_by_prompt(keys, k, seed)
        return
    folds = folds_by_prompt(keys, k, seed)
    assert folds.shape == keys.shape
    assert set(folds.tolist()) == set(range(k))
    for key in set(keys.tolist()):
        assert len(set(folds[keys == key].tolist())) == 1


def test_folds_of_single_prompts_are_balanced():
    assert sorted(np.bincount(folds_by_prompt(np.arange(2312), 5, 0))) == [462, 462, 462, 463, 463]


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data is not here")
def test_hh_rlhf():
    records = list(read(SHARED / "hh-harmless-test.jsonl.gz", kind="pairs"))
    found = audit(records)
    assert (found.records, found.prompts, found.duplicates, found.contradictions) == (2308, 2306, 0, 0)
    assert found.shorter_preferred.value == pytest.approx(0.554, abs=5e-4)
    train, out = split_by_prompt(records, 0.1, 0)
    assert len(out) == 231
    told = [{json.dumps([m.as_dict() for m in records[i].prompt]) for i in side} for side in (train, out)]
    assert not told[0] & told[1]
    assert found.in_both is None
    assert audit([records[i] for i in train], against=[records[i] for i in out]).in_both == 0
