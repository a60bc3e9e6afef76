"""What a better score can hide, as figures: accuracy and wins by length, and the score's peak over the KL."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest

from prefiere.asked.language import TONGUES, speaking
from prefiere.doctor.case import Case
from prefiere.report.caveats import caveat_figures
from prefiere.report.page import report_html
from prefiere.run import Run
from synthetic_runs import make, make_policy, make_reward


def with_pairs(run: Run, rows: list[tuple[int, int, int]]) -> Run:
    """Held-out pairs: tokens of the preferred answer and of the other, and whether it is ranked higher."""
    told = [
        {"step": 9, "split": "eval", "source": "x:1", "margin": 2 * right - 1, "tokens": [a, b]} for a, b, right in rows
    ]
    run.log_pairs(told)
    return run


def with_answers(run: Run, rows: list[tuple[int, int, float]]) -> Run:
    """Answers before, of 10 tokens and a score of 0, and after: tokens, how many alike, score."""
    after = [(tokens, score) for tokens, times, score in rows for _ in range(times)]
    both = ((0, [(10, 0.0)] * len(after)), (100, after))
    run.log_samples(
        [
            {"step": step, "prompt": str(i), "sample": 0, "tokens": tokens, "score": score}
            for step, answers in both
            for i, (tokens, score) in enumerate(answers)
        ]
    )
    return run


def bent(folder: Path, last: float, points: int = 11) -> Run:
    """A policy whose judge follows d (1 - 0.5 log d), d the root of the KL, to a KL of ``last``: its peak is at e^2."""
    run = make_policy(folder, drop=("samples/kl", "samples/score", "samples/reward", "reward"))
    rows = run.metrics
    for i, row in enumerate(rows[::10][:points]):
        d = math.sqrt(last * i / 10)
        values = {"samples/kl": d**2, "samples/score": d * (1 - 0.5 * math.log(d)) if d else 0.0}
        row |= {
            f"{k}{end}": v + off for k, v in values.items() for end, off in (("", 0), ("_low", -0.1), ("_high", 0.1))
        }
    (folder / "metrics.jsonl").unlink()
    for row in rows:
        run.log(row)
    return run


def figures(*runs: Run) -> dict[str, tuple[str, list[tuple[str, str]]]]:
    """By its title: the figure, and what is said beside it."""
    found = caveat_figures([Case(run) for run in runs], [run.name for run in runs])
    return {panel.column.title: (str(svg), [(who, value) for _, who, value in lines]) for panel, svg, lines in found}


def test_accuracy_by_length_is_said_with_its_intervals(tmp_path: Path) -> None:
    """Of 4 shorter ones 1 is right, of 16 longer ones all: Wilson's intervals are 4.6 to 69.9% and 80.6 to 100%."""
    run = with_pairs(make(tmp_path), [(5, 20, 1), *[(5, 20, 0)] * 3, *[(20, 5, 1)] * 16])
    assert figures(run)["Right, by length"][1] == [
        ("shorter", "25% (5% to 70%) of 4"),
        ("longer", "100% (81% to 100%) of 16"),
    ]


def test_wins_by_length_are_said_as_they_are_and_at_equal_length(tmp_path: Path) -> None:
    """20 answers grew and 18 of them won; 20 are as long and 10 of them won: 70%, and about a coin's flip at equal
    length."""
    run = with_answers(make(tmp_path), [(30, 18, 1.0), (30, 2, -1.0), (10, 10, 1.0), (10, 10, -1.0)])
    said = dict(figures(run)["Better than before, by length"][1])
    assert said["all answers"].startswith("70% (")
    equal = re.match(r"(\d+)% \((\d+)% to (\d+)%\)", said["at equal length"])
    assert equal is not None
    share, low, high = map(int, equal.groups())
    assert low < 50 < high
    assert share < 62


def test_few_answers_have_no_figure_of_wins(tmp_path: Path) -> None:
    assert "Better than before, by length" not in figures(with_answers(make(tmp_path / "a"), [(30, 19, 1.0)]))
    assert "Better than before, by length" in figures(with_answers(make(tmp_path / "b"), [(30, 20, 1.0)]))


def test_the_distance_from_the_peak_is_said(tmp_path: Path) -> None:
    """The peak of that curve is at a KL of e squared, 7.39."""
    svg, said = figures(bent(tmp_path, 30.0))["How far is far enough?"]
    assert said == [("KL at the fitted peak", "7.39"), ("KL at the end", "30.0, 4.06 times the peak's")]
    assert "root of the KL" in svg


def test_a_peak_far_beyond_what_was_sampled_is_not_said(tmp_path: Path) -> None:
    """Sampled up to a KL of 1, the fit has its peak at 7.39: nothing that was seen bends so far."""
    assert figures(bent(tmp_path, 1.0))["How far is far enough?"][1] == [
        ("KL at the fitted peak", "no peak in sight"),
        ("KL at the end", "1.00"),
    ]


def test_where_nothing_is_known_there_is_no_figure(tmp_path: Path) -> None:
    assert figures(make_reward(tmp_path / "rm"), bent(tmp_path / "few", 30.0, points=4)) == {}


@pytest.mark.parametrize("spoken", TONGUES)
def test_several_runs_are_said_in_one_line_each(tmp_path: Path, spoken: Any) -> None:
    runs = [bent(tmp_path / "far", 30.0), bent(tmp_path / "near", 1.0), make(tmp_path / "dpo", drop=("samples",))]
    with_pairs(runs[2], [(5, 20, 0), (20, 5, 1)])
    with_answers(runs[0], [(30, 20, 1.0)])
    with speaking(spoken):
        said = [lines for _, lines in figures(*runs).values()]
        page = report_html(runs)
    assert [[who for who, _ in lines] for lines in said] == [["dpo"], ["far"], ["far", "near"]]
    assert said[0][0][1] == "0% · 100%"
    for lines in said:
        assert all(value in page for _, value in lines)
