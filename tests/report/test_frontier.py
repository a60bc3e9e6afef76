"""Reward against KL: which runs share the axes, and what each scored at equal KL."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from prefiere.doctor.case import Case
from prefiere.report import figures
from prefiere.report.captions import reward_against_kl
from prefiere.report.frontier import Frontier, frontier
from prefiere.report.page import render
from prefiere.run import Run
from synthetic_runs import KL_BLOWN_UP, make, make_policy, make_reward, mean, to

JUDGED: dict[str, Any] = {"recipe": {"judge": "rules:judge"}}


def walk(
    folder: Path, points: Sequence[tuple[float, float]], kl: float = 0.0, half: float = 0.1, **recipe: Any
) -> Case:
    """A run that passes through (KL, score) with intervals of these half-widths."""
    run = Run.create(folder)
    run.recipe = {"method": "ppo", "judge": "rules:judge"} | recipe
    for step, (x, y) in enumerate(points):
        run.log({"step": step} | mean("samples/kl", x, kl * (step > 0), 64) | mean("samples/score", y, half, 64))
    return Case(run)


def between(*cases: Case) -> Frontier:
    found = frontier(cases)
    assert found is not None
    return found


def test_a_score_between_two_points_by_hand(tmp_path: Path) -> None:
    """A ends at KL 2. B passes it between (1, 0.4) and (5, 0.8), a quarter of the way: 0.5 +- 0.1, as theirs."""
    a = walk(tmp_path / "a", [(0, 0.2), (2, 0.7)])
    b = walk(tmp_path / "b", [(0, 0.2), (1, 0.4), (5, 0.8)])
    found = between(a, b)
    assert found.equal_kl == 2
    at = [p.at(2) for p in found.paths]
    assert [(x.mean, x.low, x.high) for x in at] == [
        pytest.approx((0.7, 0.6, 0.8)),
        pytest.approx((0.5, 0.4, 0.6)),
    ]
    assert found.ahead == 0  # 0.2 apart; hypot(0.1, 0.1) = 0.141


def test_what_is_not_known_of_the_kl_widens_the_interval(tmp_path: Path) -> None:
    """KL 2 +- 0.8 on a slope of 0.1 per nat below and above: 0.08 in quadrature with 0.1."""
    a = walk(tmp_path / "a", [(0, 0.3), (2, 0.5)], kl=0.8)
    b = walk(tmp_path / "b", [(0, 0.3), (1, 0.4), (5, 0.8)], kl=0.8)
    at = between(a, b).paths[1].at(2)
    assert (at.mean, at.low, at.high) == pytest.approx((0.5, 0.5 - math.hypot(0.1, 0.08), 0.5 + math.hypot(0.1, 0.08)))


def test_overlapping_runs_are_not_ranked(tmp_path: Path) -> None:
    found = between(walk(tmp_path / "a", [(0, 0.2), (2, 0.55)]), walk(tmp_path / "b", [(0, 0.2), (2, 0.5)]))
    assert found.ahead is None


def test_the_first_time_that_a_wandering_path_gets_there(tmp_path: Path) -> None:
    a, b = walk(tmp_path / "a", [(0, 0), (2, 1)]), walk(tmp_path / "b", [(0, 0), (3, 0.9), (1, 0.1), (2.5, 0.3)])
    assert between(a, b).paths[1].at(2).mean == pytest.approx(0.6)


def test_without_intervals_it_is_said(tmp_path: Path) -> None:
    cases = []
    for name, top in (("a", 0.9), ("b", 0.5)):
        run = Run.create(tmp_path / name)
        run.recipe = {"method": "rloo", "judge": "j:j"}
        for step in range(3):
            run.log({"step": step, "samples/kl": 2.0 * step, "samples/score": top * step / 2})
        cases.append(Case(run))
    found = between(*cases)
    assert not found.paths[0].at(3).known
    assert found.ahead is None
    text = render([c.run for c in cases], tmp_path / "report.html").read_text()
    assert "(interval not measured)" in text
    assert "nothing tells whether these differences are more than noise" in text


def test_who_has_not_moved_sets_no_budget(tmp_path: Path) -> None:
    still = walk(tmp_path / "still", [(0, 0.2), (0.05, 0.2)], kl=0.1)
    a, b = walk(tmp_path / "a", [(0, 0.2), (2, 0.7)]), walk(tmp_path / "b", [(0, 0.2), (4, 0.7)])
    assert between(still, a, b).equal_kl == 2
    assert between(still, a).equal_kl is None
    shown = reward_against_kl([still, a, b], ["still", "a", "b"])
    assert shown is not None
    assert shown.still == ("still",)
    assert [row[1] for row in shown.table] == ["a", "b"]


def test_dpo_and_ppo_on_the_same_axes(tmp_path: Path) -> None:
    dpo, ppo = make(tmp_path / "dpo", **JUDGED), make_policy(tmp_path / "ppo")
    rm = make_reward(tmp_path / "rm")
    found = between(Case(dpo), Case(ppo), Case(rm))
    assert (found.key, [p.run for p in found.paths], found.left_out) == ("samples/score", [0, 1], ())
    text = render([dpo, ppo, rm], tmp_path / "report.html").read_text()
    assert "Reward against KL" in text
    assert "At equal KL" in text
    assert "Preference optimisation (DPO)" in text


def test_runs_that_share_no_judge_share_the_reward(tmp_path: Path) -> None:
    a, b = (Case(make_policy(tmp_path / j, recipe={"judge": j})) for j in ("x:x", "y:y"))
    assert between(a, b).key == "samples/reward"
    other = Case(make(tmp_path / "dpo", recipe={"judge": "z:z"}))
    found = between(a, b, other)
    assert (found.key, found.left_out) == ("samples/reward", ((2, "left_out.no_reward"),))
    c = Case(make_policy(tmp_path / "c", recipe={"judge": "x:x", "reward": "other"}))
    found = between(a, b, c)  # two share a judge, two a reward: the judge's
    assert (found.key, found.left_out) == ("samples/score", ((1, "left_out.other_judge"),))


def test_one_run_alone(tmp_path: Path) -> None:
    assert between(Case(make_policy(tmp_path / "ppo"))).equal_kl is None
    assert between(Case(make_policy(tmp_path / "b", drop=("samples/score",)))).key == "samples/reward"
    assert frontier([Case(make(tmp_path / "dpo", **JUDGED))]) is None
    assert frontier([Case(make_policy(tmp_path / "c", drop=("samples/",)))]) is None


def test_different_prompts_are_said(tmp_path: Path) -> None:
    runs = [make_policy(tmp_path / "a"), make_policy(tmp_path / "b")]
    for run, prompt in zip(runs, ("Why?", "How?"), strict=True):
        run.log_samples([{"step": 0, "prompt": prompt, "completion": "So.", "sample": 0}])
    assert not between(*map(Case, runs)).same_prompts
    runs[0].log_samples([{"step": 100, "prompt": "Later?", "completion": "So.", "sample": 0}])
    assert between(Case(runs[0])).same_prompts
    assert "asked different prompts" in render(runs, tmp_path / "report.html").read_text()


def test_a_runaway_leaves_room_for_the_others(tmp_path: Path) -> None:
    near, far = Case(make_policy(tmp_path / "a")), Case(make_policy(tmp_path / "b", **KL_BLOWN_UP))
    _, roots = figures.draw_frontier(between(near, far))
    assert roots
    _, roots = figures.draw_frontier(between(near, Case(make_policy(tmp_path / "c", answers={"samples/kl": to(9.0)}))))
    assert not roots
