"""What was cut of the data is said beside the curves, which do not show it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prefiere.doctor.diagnose import diagnose
from synthetic_runs import make, make_reward


def account(prompts: int = 0, answers: int = 0, same: int = 0, distinct: int = 200) -> dict[str, Any]:
    counts = {"truncated_prompts": prompts, "truncated_completions": answers, "identical": same}
    tokens = {"examples": 200, **{k: {"count": n, "sources": []} for k, n in counts.items()}}
    return {"train": {"tokens": tokens}, "prompts": {"train": distinct, "eval": 20}}


@pytest.mark.parametrize("cut", [{}, {"prompts": 19}, {"answers": 19}])
def test_a_few_long_examples_are_no_finding(tmp_path: Path, cut: dict[str, int]) -> None:
    run = make(tmp_path)
    run.data = account(**cut)
    assert [f.key for f in diagnose(run).findings] == ["learnt"]


@pytest.mark.parametrize(("count", "severity"), [(20, "info"), (99, "info"), (100, "warning")])
def test_cut_answers_are_counted(tmp_path: Path, count: int, severity: str) -> None:
    run = make(tmp_path)
    run.data = account(answers=count, same=3)
    d = diagnose(run)
    (finding,) = (f for f in d.findings if f.key == "cut")
    assert finding.severity == severity
    assert d.severity == ("good" if severity == "info" else "warning")
    assert f"answers cut: {count} of 200 examples ({count / 2:.0f}%)" in finding.evidence
    assert "3 of 200" in finding.evidence[-1]
    assert "end token" in finding.meaning
    assert "question" not in finding.meaning
    assert finding.remedy[0] == "a larger max_length"


def test_the_limit_that_cut_is_named(tmp_path: Path) -> None:
    run = make(tmp_path, recipe={"max_prompt_length": 2, "max_completion_length": 64})
    run.data = account(prompts=200, distinct=1)
    (finding,) = (f for f in diagnose(run).findings if f.key == "cut")
    assert finding.remedy[0] == "a larger max_prompt_length"
    assert "same text" in finding.meaning


@pytest.mark.parametrize(("both", "severity"), [(0, None), (1, "info"), (4, "warning"), (40, "warning")])
def test_prompts_that_are_trained_on_and_validated_on_are_said(tmp_path: Path, both: int, severity: Any) -> None:
    run = make(tmp_path)
    run.data = account() | {"overlap": {"prompts": both, "of": 40}}
    found = [f for f in diagnose(run).findings if f.key == "not_held_out"]
    assert [f.severity for f in found] == ([severity] if severity else [])
    verb = "is" if both == 1 else "are"
    assert all(f.evidence == (f"{both} of 40 prompts of eval_data {verb} also in data",) for f in found)


def test_a_reward_model_is_asked_too(tmp_path: Path) -> None:
    run = make_reward(tmp_path)
    run.data = account(answers=150)
    assert "cut" in diagnose(run)
