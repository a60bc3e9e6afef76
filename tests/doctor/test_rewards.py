"""Rewards that cannot teach: of the prompt alone, of their batch, a value that stands in, those of other answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import runs
from prefiere.console import Display
from prefiere.data.layouts.pairs import PAIRS
from prefiere.data.layouts.unread import refuse_a_guess
from prefiere.data.values import DataError
from prefiere.doctor.diagnose import Diagnosis, diagnose
from prefiere.launch import launch
from prefiere.plan.plan import named_modules
from prefiere.run import Run
from prefiere.stats import float_of
from synthetic_runs import beginning, make, make_policy

FLAT: dict[str, Callable[[float], float]] = {"samples/reward": lambda t: 0.2}


def keys(d: Diagnosis) -> list[str]:
    return [f.key for f in d.findings]


def sampled(run: Run, reward: Any, answers: int = 24, change: bool = True) -> Run:
    """Answers to so many prompts at the start and at the end; reward: of the prompt's number and of the step."""
    run.log_samples(
        [
            {"step": step, "prompt": f"q{i}", "completion": f"a{i}{step if change else ''}", "reward": reward(i, step)}
            for step in (0, 100)
            for i in range(answers)
        ]
    )
    return run


@pytest.mark.parametrize(
    ("reward", "change", "said"),
    [
        (lambda i, step: i / 10, True, True),
        (lambda i, step: i / 10, False, False),  # the answers are what they were
        (lambda i, step: i / 10 + (step > 0 and i == 3), True, False),
        (lambda i, step: float(i % 2), True, False),  # right or wrong, as before: of few values that is no wonder
    ],
)
def test_a_reward_of_the_prompt_alone(tmp_path: Path, reward: Any, change: bool, said: bool) -> None:
    assert ("reward_of_prompt" in keys(diagnose(sampled(make_policy(tmp_path), reward, change=change)))) is said


@pytest.mark.parametrize(("alike", "entropy", "said"), [(1.0, 1.0, True), (0.9, 1.0, False), (1.0, 0.01, False)])
def test_a_reward_of_the_prompt_alone_shows_within_rollouts(
    tmp_path: Path, alike: float, entropy: float, said: bool
) -> None:
    """The policy does not move then, so that no answer changes. Answers that are all the same show nothing."""
    rollouts = {"frac_reward_zero_std": lambda t: alike, "reward_std": lambda t: 0.5, "entropy": lambda t: entropy}
    run = sampled(make_policy(tmp_path, rollouts=rollouts, noise=0), lambda i, step: i / 10, change=False)
    assert ("reward_of_prompt" in keys(diagnose(run))) is said
    right_or_wrong = make_policy(tmp_path / "b", rollouts=rollouts, noise=0)
    assert "reward_of_prompt" not in keys(diagnose(sampled(right_or_wrong, lambda i, step: i % 2, change=False)))


def test_of_few_answers_that_changed_nothing_is_said(tmp_path: Path) -> None:
    d = diagnose(sampled(make_policy(tmp_path), lambda i, step: i / 10, answers=7))
    assert "reward_of_prompt" not in keys(d)


def test_a_reward_that_is_counted_from_the_mean_of_its_batch(tmp_path: Path) -> None:
    centred = make_policy(tmp_path / "a", rollouts={"reward": lambda t: 0.0, "reward_std": lambda t: 1.0}, noise=0)
    assert "reward_of_batch" in keys(diagnose(centred))
    assert "reward_of_batch" not in keys(diagnose(make_policy(tmp_path / "b")))
    constant = make_policy(tmp_path / "c", rollouts={"reward": lambda t: 1.0, "reward_std": lambda t: 0.0}, noise=0)
    assert {"reward_of_batch", "reward_constant"} & {*keys(diagnose(constant))} == {"reward_constant"}


def test_two_answers_that_earn_the_same_are_no_constant_reward(tmp_path: Path) -> None:
    """As with a batch of one prompt and two answers: within most updates nothing differs, and the reward rises."""
    rollouts = {"reward": lambda t: t, "reward_std": lambda t: 0.0}
    assert "reward_constant" not in keys(diagnose(make_policy(tmp_path, rollouts=rollouts, noise=0, episodes=2)))


def test_one_reward_for_all_of_a_large_update_is_constant_though_updates_differ(tmp_path: Path) -> None:
    """As a function that gives the first answer's score to all of its batch."""
    run = make_policy(tmp_path, rollouts={"reward": lambda t: t % 0.1, "reward_std": lambda t: 0.0}, noise=0)
    assert "reward_constant" in keys(diagnose(run))


@pytest.mark.parametrize(("odd", "said"), [(2, True), (4, True), (6, False), (0, False)])
def test_a_value_that_stands_in_for_most_rewards(tmp_path: Path, odd: int, said: bool) -> None:
    run = make_policy(tmp_path, answers=FLAT)
    d = diagnose(sampled(run, lambda i, step: 0.5 if i >= odd else i / 7 + 0.6))
    assert ("reward_mostly_same" in keys(d)) is said


def test_most_answers_that_earn_the_most_are_no_fault(tmp_path: Path) -> None:
    d = diagnose(sampled(make_policy(tmp_path, answers=FLAT), lambda i, step: float(i >= 1)))
    assert "reward_mostly_same" not in keys(d)


@pytest.mark.parametrize("strange", [10**400, -(10**400), float("nan"), float("inf"), True, "1", None, [1]])
def test_a_number_that_no_float_holds_is_read_past(tmp_path: Path, strange: Any) -> None:
    """In samples, pairs and metrics, which may come from a stranger."""
    assert float_of(strange) is None
    run = sampled(make_policy(tmp_path / "a"), lambda i, step: strange if i else 1.0)
    run.log_samples(
        [{"step": 0, "prompt": f"q{i}", "completion": "a", "reward": i, "score": strange} for i in range(30)]
    )
    run.log({"step": 200, "reward": strange, "reward_std": strange, "samples/reward": strange})
    diagnose(run)
    pairs = make(tmp_path / "b")
    row = {"split": "eval", "source": "d:1", "tokens": [3, 3], "step": 100}
    pairs.log_pairs([{**row, "margin": strange, "label": strange}, {**row, "reward": strange, "label": 1}] * 40)
    diagnose(pairs)


def test_most_earn_the_same_at_first_where_the_reward_rises_later(tmp_path: Path) -> None:
    d = diagnose(sampled(make_policy(tmp_path), lambda i, step: 0.0 if i >= 2 else 1.0))
    assert "reward_mostly_same" not in keys(d)


def turned_by_one(completions: list[str], **columns: Any) -> list[float]:
    """Each answer gets what the one before it earned."""
    earned = [float(sum(map(ord, c)) % 97) for c in completions]
    return [*earned[-1:], *earned[:-1]]


def of_each(completions: list[str], **columns: Any) -> list[float]:
    return [float(sum(map(ord, c)) % 97) for c in completions]


def of_asked(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    return [float(sum(map(ord, str(p))) % 97) for p in prompts]


@pytest.mark.parametrize(("reward", "alike"), [("of_asked", True), ("of_each", False)])
def test_a_run_says_whether_the_answers_to_a_prompt_earn_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reward: str, alike: bool
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    settings = runs.policy_settings(
        tmp_path, "rloo", reward=f"test_rewards:{reward}", logging_steps=1, max_steps=6, sample_prompts=8
    )
    run = launch(settings, display=Display(quiet=True)).run
    found = [row["frac_reward_zero_std"] for row in run.metrics if "frac_reward_zero_std" in row]
    assert len(found) == 6
    assert (set(found) == {1.0}) is alike


@pytest.mark.parametrize(("reward", "agrees"), [("of_each", True), ("turned_by_one", False)])
def test_a_reward_that_goes_to_the_wrong_answer_does_not_agree_with_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reward: str, agrees: bool
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    given: dict[str, Any] = {"sample_prompts": 4, "samples_per_prompt": 8, "max_steps": 1}
    run = launch(
        runs.policy_settings(tmp_path, reward=f"test_rewards:{reward}", **given), display=Display(quiet=True)
    ).run
    found = run.metrics[0]["start/reward_retest"]
    assert (found == pytest.approx(1)) if agrees else (found < 0.5)
    assert ("reward_noisy" in keys(diagnose(run))) is not agrees


# -- what else decides which weights, and which modules ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("metric", "greater", "said"),
    [("eval_loss", True, True), ("eval_loss", False, False), ("eval_loss", None, False), (None, True, False),
     ("eval_rewards/accuracies", False, True), ("eval_rewards/accuracies", True, False), (3, True, False)],
)  # fmt: skip
def test_the_worst_step_is_not_kept_in_silence(tmp_path: Path, metric: Any, greater: Any, said: bool) -> None:
    run = make(tmp_path)
    run.recipe = run.recipe | {"metric_for_best_model": metric, "greater_is_better": greater}
    d = diagnose(run)
    assert ("worst_kept" in keys(d)) is said
    assert d.severity == ("warning" if said else "good")


def test_plain_names_of_modules_are_a_list() -> None:
    assert named_modules("k_proj") == ["k_proj"]
    assert named_modules("q_proj, v_proj") == ["q_proj", "v_proj"]
    assert named_modules(["q_proj"]) == ["q_proj"]
    for whole in ("all-linear", r".*\.(q|v)_proj", "model.layers.0.self_attn.q_proj"):
        assert named_modules(whole) == whole


def test_empty_cells_of_a_prompt_are_named_as_what_they_are() -> None:
    """Merged cells hold their value in the first row alone."""
    rows = [{"prompt": "What is it?" if i % 3 == 0 else None, "chosen": "It is.", "rejected": "No."} for i in range(9)]
    guessed = next(layout for layout in PAIRS if layout.guesses)
    with pytest.raises(DataError, match=r"d.xlsx: prompt is empty in 6 of the first 9 rows. Merged cells"):
        refuse_a_guess(guessed, "pairs", ["prompt"], rows, "d.xlsx")


@pytest.mark.parametrize(
    ("start", "said"),
    [
        ({"prompt_matters": 0.02, "prompt_in_own": 0.28}, True),
        ({"prompt_matters": 0.12, "prompt_in_own": 0.28}, False),
        ({"prompt_matters": 0.01, "prompt_in_own": 0.05}, False),  # a model that hardly reads its prompts
    ],
)
def test_answers_at_other_prompts_show_where_prompts_add_little(
    tmp_path: Path, start: dict[str, float], said: bool
) -> None:
    """Long answers of one kind repeat little of what was asked; a product that they share with it says nothing then."""
    run = beginning(make(tmp_path), **start)
    for row in (rows := run.metrics):
        for key, half in (("start/prompt_matters", 0.05), ("start/prompt_in_own", 0.05)):
            if key in row:
                row |= {f"{key}_low": row[key] - half, f"{key}_high": row[key] + half}
    (run.folder / "metrics.jsonl").write_text("")
    for row in rows:
        run.log(row)
    run.data = {"train": {"audit": {"faults": {"placed": {"count": 200, "n": 400, "by_chance": 0.01}}}}}
    assert ("answers_elsewhere" in keys(diagnose(run))) is said
