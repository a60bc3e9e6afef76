"""Policy-gradient runs: each check speaks on the run that shows it, and is silent on healthy runs and on noise."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from prefiere.doctor.case import Finding
from prefiere.doctor.diagnose import Diagnosis, diagnose
from prefiere.run import Run
from synthetic_runs import (
    ADAPTIVE_KL,
    DEAD_CRITIC,
    KL_BLOWN_UP,
    REWARD_HACKED_BY_LENGTH,
    make_policy,
    mean,
    peak,
    to,
)

SEEDS = range(5)
STILL: dict[str, Any] = {
    "rollouts": {"reward": to(0.1, 0.1), "objective/kl": to(0.0), "kl": to(0.0)},
    "answers": {"samples/reward": to(0.1, 0.1), "samples/kl": to(0.0), "samples/score": to(0.5, 0.5)},
}


def keys(run: Run) -> list[str]:
    return [f.key for f in diagnose(run).findings]


def finding(d: Diagnosis, key: str) -> Finding:
    (found,) = (f for f in d.findings if f.key == key)
    return found


@pytest.mark.parametrize("method", ["ppo", "rloo", "grpo", "reinforce"])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_healthy_run_raises_no_alarm(tmp_path: Path, method: str, seed: int) -> None:
    d = diagnose(make_policy(tmp_path, seed, method=method))
    assert [f.key for f in d.findings] == ["learnt"]
    assert d.severity == "good"
    assert "the judge's score rose from" in d.headline
    assert "at a KL of" in d.headline


def test_without_a_judge_the_reward_is_told_and_the_lack_said(tmp_path: Path) -> None:
    d = diagnose(make_policy(tmp_path, drop=("samples/score",)))
    assert [f.key for f in d.findings] == ["learnt", "unjudged"]
    assert d.severity == "good"
    assert "The policy earns more: on held-out prompts the reward rose" in d.headline


def test_rollouts_alone_are_no_proof(tmp_path: Path) -> None:
    d = diagnose(make_policy(tmp_path, drop=("samples/",)))
    assert [f.key for f in d.findings] == ["learnt", "unjudged", "unmeasured"]
    assert d.severity == "info"
    assert "in training the reward rose" in d.headline
    assert "held-out data" not in finding(d, "unmeasured").meaning


@pytest.mark.parametrize("seed", SEEDS)
def test_reward_hacked_by_length(tmp_path: Path, seed: int) -> None:
    d = diagnose(make_policy(tmp_path, seed, **REWARD_HACKED_BY_LENGTH))
    assert [f.key for f in d.findings] == ["exploited", "length_hack"]
    assert d.severity == "bad"
    assert "being exploited" in d.headline
    assert d.findings[0].evidence[0].startswith("judge's score at its best, step ")
    assert "kl_coef=0.15" in d.findings[0].remedy[0]
    assert "missing_eos_penalty" in " ".join(d.findings[1].remedy)


@pytest.mark.parametrize("seed", SEEDS)
def test_over_optimised_after_a_gain_is_a_warning(tmp_path: Path, seed: int) -> None:
    d = diagnose(make_policy(tmp_path, seed, answers={"samples/score": peak(0.95, 0.72, 0.4)}))
    assert finding(d, "exploited").severity == "warning"
    assert "after step" in finding(d, "exploited").title
    assert "But: the reward is being exploited" in d.headline


def test_a_falling_judge_is_no_exploit_where_the_reward_falls_too(tmp_path: Path) -> None:
    answers = {"samples/score": to(0.2, 0.5), "samples/reward": to(-0.9, 0.1)}
    found = keys(make_policy(tmp_path, answers=answers, rollouts={"reward": to(-0.9, 0.1)}))
    assert found == ["reward_falls", "worse_score"]


@pytest.mark.parametrize("seed", SEEDS)
def test_reward_up_and_the_judge_unmoved(tmp_path: Path, seed: int) -> None:
    d = diagnose(make_policy(tmp_path, seed, answers={"samples/score": to(0.5, 0.5)}))
    assert "not_followed" in d
    assert "learnt" not in d
    assert d.severity == "warning"


@pytest.mark.parametrize("seed", SEEDS)
def test_kl_blow_up(tmp_path: Path, seed: int) -> None:
    d = diagnose(make_policy(tmp_path, seed, **KL_BLOWN_UP))
    assert [f.key for f in d.findings] == ["kl_runaway"]
    assert d.severity == "bad"
    assert "still rising" in d.findings[0].meaning
    assert "max_kl" in " ".join(d.findings[0].remedy)


def test_a_large_kl_is_a_drift_before_it_is_a_runaway(tmp_path: Path) -> None:
    """Half a nat per token of 60, and a whole one."""
    some, lot = ({"samples/kl": to(kl)} for kl in (45.0, 75.0))
    assert {"drift", "learnt"} == set(keys(make_policy(tmp_path / "some", answers=some)))
    assert keys(make_policy(tmp_path / "lot", answers=lot)) == ["kl_runaway"]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_critic_that_learns_nothing(tmp_path: Path, seed: int) -> None:
    d = diagnose(make_policy(tmp_path, seed, **DEAD_CRITIC))
    assert [f.key for f in d.findings] == ["dead_critic", "learnt"]
    assert "But: the critic explains nothing" in d.headline
    assert "num_ppo_epochs" in " ".join(d.findings[0].remedy)


def test_a_critic_that_is_still_learning_is_information(tmp_path: Path) -> None:
    """In a short run it may be worse than a constant to the end: far worse at first, and less and less so."""
    rising = {"val/explained_variance": to(-0.3, -4.0, 0.3)}
    d = diagnose(make_policy(tmp_path, steps=16, rollouts=DEAD_CRITIC["rollouts"] | rising))
    assert (finding(d, "dead_critic").severity, d.severity) == ("info", "good")


def test_a_critic_with_nothing_left_to_explain_is_no_fault(tmp_path: Path) -> None:
    rollouts = DEAD_CRITIC["rollouts"] | {"reward_std": to(0.05, 1.0)}
    assert keys(make_policy(tmp_path, rollouts=rollouts)) == ["learnt"]


@pytest.mark.parametrize("seed", SEEDS)
def test_an_adaptive_coefficient_is_told(tmp_path: Path, seed: int) -> None:
    d = diagnose(make_policy(tmp_path, seed, **ADAPTIVE_KL))
    assert [f.key for f in d.findings] == ["learnt", "adaptive"]
    assert d.severity == "good"
    assert "from 0.05" in finding(d, "adaptive").title


@pytest.mark.parametrize(
    ("kind", "title"),
    [
        ("kl_budget", "the policy had spent its KL budget"),
        ("exploited", "the judge's score fell"),
        ("degenerate", "the answers were falling apart"),
    ],
)
def test_a_guard_is_named_by_its_kind_whatever_its_sentence(tmp_path: Path, kind: str, title: str) -> None:
    reason = "a sentence about KL, the judge's score and answers that fall apart"
    status = {"state": "stopped", "step": 62, "reason": reason, "stop": {"kind": kind, "text": reason}}
    d = diagnose(make_policy(tmp_path, status=status))
    assert d.findings[0].key == "guard"
    assert title in d.headline
    assert "step 62" in d.headline
    assert d.findings[0].evidence == (reason,)
    assert d.findings[0].remedy[0].startswith("kl_coef=0.15")


@pytest.mark.parametrize(
    ("key", "rollouts"),
    [
        ("entropy_collapse", {"entropy": to(0.05, 1.3, 0.5)}),
        ("too_far", {"policy/clipfrac_avg": to(0.5, 0.3)}),
        ("too_far", {"policy/approxkl_avg": to(0.4, 0.1)}),
        ("too_far", {"policy/early_stops": to(1.0, 0.8)}),
        ("too_far", {"val/ratio": to(1.4, 1.0)}),
        ("sampler_off", {"sampler_drift": to(0.3, 0.2)}),
        ("length_paid", {"length_reward_correlation": to(0.8, 0.7)}),
    ],
)
@pytest.mark.parametrize("seed", SEEDS)
def test_each_sign_of_the_updates(tmp_path: Path, key: str, rollouts: dict[str, Any], seed: int) -> None:
    assert sorted(keys(make_policy(tmp_path, seed, rollouts=rollouts))) == sorted([key, "learnt"])


def test_too_far_names_what_to_turn(tmp_path: Path) -> None:
    d = diagnose(make_policy(tmp_path, rollouts={"policy/clipfrac_avg": to(0.5, 0.4)}))
    remedy = " ".join(finding(d, "too_far").remedy)
    for setting in ("learning_rate=3e-06", "num_ppo_epochs", "cliprange", "max_approx_kl"):
        assert setting in remedy


def test_remedies_fit_the_method(tmp_path: Path) -> None:
    """GRPO charges its KL as a loss and passes once over a rollout: neither kl_coef nor fewer passes would help."""
    grpo = {"kl_coef": 0.0, "kl_loss_coef": 0.05, "num_ppo_epochs": 1}
    d = diagnose(
        make_policy(tmp_path, method="grpo", recipe=grpo, **KL_BLOWN_UP | {"rollouts": {"val/ratio": to(2, 1)}})
    )
    remedy = " ".join(r for f in d.findings for r in f.remedy)
    assert "kl_loss_coef=0.15" in remedy
    assert "num_ppo_epochs" not in remedy


def test_little_entropy_was_never_there_to_lose(tmp_path: Path) -> None:
    assert keys(make_policy(tmp_path, rollouts={"entropy": to(0.01, 0.1)})) == ["learnt"]


@pytest.mark.parametrize("seed", SEEDS)
def test_fewer_answers_end(tmp_path: Path, seed: int) -> None:
    answers = {"samples/eos_rate": to(0.8, 0.97)}
    d = diagnose(make_policy(tmp_path, seed, prompts=800, answers=answers, recipe={"missing_eos_penalty": 1.0}))
    assert [f.key for f in d.findings] == ["fewer_ends", "learnt"]
    assert "missing_eos_penalty=2" in d.findings[0].remedy[0]


def test_answers_fell_apart_for_a_reward(tmp_path: Path) -> None:
    d = diagnose(
        make_policy(tmp_path, answers={"samples/repetition": to(0.7, 0.03), "samples/eos_rate": to(0.1, 0.95)})
    )
    assert d.findings[0].key == "degenerate"
    assert "while the curves look fine" in d.headline
    assert "The reward rates such text highly" in d.findings[0].meaning
    assert "rejected" not in d.findings[0].meaning
    assert "rpo_alpha" not in " ".join(d.findings[0].remedy)


@pytest.mark.parametrize("seed", SEEDS)
def test_reward_models_part(tmp_path: Path, seed: int) -> None:
    grows, stays = ({"samples/reward_disagreement": to(end, 0.3)} for end in (1.1, 0.33))
    assert keys(make_policy(tmp_path / "grows", seed, answers=grows)) == ["disagreement", "learnt"]
    assert keys(make_policy(tmp_path / "stays", seed, answers=stays)) == ["learnt"]


def test_a_reward_that_does_not_move(tmp_path: Path) -> None:
    """Nearly always said so, and hardly ever anything else (each comparison errs one time in twenty)."""
    found = [diagnose(make_policy(tmp_path / str(s), s, **STILL)) for s in range(30)]
    assert sum("reward_flat" in d for d in found) >= 24
    assert sum(d.severity in ("good", "bad") for d in found) <= 3
    flat = next(d for d in found if "reward_flat" in d)
    assert "hardly moved" in finding(flat, "reward_flat").meaning
    assert "learning_rate=1e-04" in finding(flat, "reward_flat").remedy[0]


def test_why_a_reward_does_not_move(tmp_path: Path) -> None:
    moved = STILL["answers"] | {"samples/kl": to(6.0)}
    noise = diagnose(make_policy(tmp_path / "a", rollouts=STILL["rollouts"], answers=moved))
    assert "drowns in noise" in finding(noise, "reward_flat").meaning
    assert "whiten_advantages=true" in finding(noise, "reward_flat").remedy
    blind = STILL["rollouts"] | {"reward": to(1.0, 1.0), "reward_std": to(0.0)}
    same = diagnose(make_policy(tmp_path / "b", rollouts=blind, answers=STILL["answers"], noise=0.0))
    assert finding(same, "reward_constant").cause
    assert "reward_flat" not in same


def test_noise_moves_no_check(tmp_path: Path) -> None:
    """Rows that scatter three times as much, in runs of twenty updates: nothing but what is true is said."""
    for seed in range(20):
        d = diagnose(make_policy(tmp_path / str(seed), seed, steps=20, noise=3.0))
        assert [f.key for f in d.findings] == ["learnt"], seed


def test_one_noisy_row_decides_nothing(tmp_path: Path) -> None:
    run = make_policy(tmp_path)
    before = keys(run)
    wild = {"reward": -50.0, "objective/kl": 900.0, "policy/clipfrac_avg": 1.0, "entropy": 0.0, "sampler_drift": 9.0}
    run.log({"step": 101, "val/explained_variance": -40.0, "length_reward_correlation": 1.0, "val/ratio": 8.0} | wild)
    assert keys(run) == before


def test_step_0_alone(tmp_path: Path) -> None:
    run = Run.create(tmp_path)
    run.recipe = {"method": "ppo"}
    run.log({"step": 0, "samples/reward": 0.1, "samples/kl": 0.0, "samples/eos_rate": 0.9})
    assert diagnose(run).severity == "info"


def test_a_rise_within_wide_intervals_is_not_called_flat(tmp_path: Path) -> None:
    """Up by half of the reward's spread, and nothing tells beyond the noise: not flat, and no alarm. What went down by
    as much, or is measured well enough to exclude such a rise, is flat as before."""

    def severity(name: str, rise: float, half: float) -> str:
        rows: list[dict[str, Any]] = [mean("samples/reward", 0.4, half, 24) | {"step": 0}]
        for step in range(1, 17):
            scattered = (0.0, half, 0.0, -half)[step % 4]
            rows.append({"step": step, "reward": 0.4 + rise * step / 16 + scattered, "reward_std": 0.5})
        rows[-1] |= mean("samples/reward", 0.4 + rise, half, 24)
        run = make_policy(tmp_path / name)
        (run.folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return finding(diagnose(run), "reward_flat").severity

    assert severity("up", 0.25, half=0.3) == "info"
    assert severity("down", -0.25, half=0.3) == "warning"
    assert severity("flat", 0.01, half=0.05) == "warning"


@pytest.mark.parametrize(
    ("prompts", "end", "severity"), [(24, 0.75, "info"), (24, 0.49, "warning"), (900, 0.51, "warning")]
)
def test_a_judge_of_few_answers_is_not_said_to_see_nothing(
    tmp_path: Path, prompts: int, end: float, severity: str
) -> None:
    """A score that went from 50% to 75% of 24 answers may be luck or a gain; one that stayed, or that of many answers,
    was not followed."""
    rows = make_policy(tmp_path / "of").thinned_metrics()
    half = 1.96 * 0.5 / math.sqrt(prompts)
    for row in rows:
        if "samples/score" in row:
            row |= mean("samples/score", 0.5 + (end - 0.5) * row["step"] / 100, half, prompts)
    run = make_policy(tmp_path / "judged")
    (run.folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert finding(diagnose(run), "not_followed").severity == severity
