"""Reward models: what their curves and calibration.json say, any part of which may be missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prefiere.doctor.diagnose import Diagnosis, diagnose
from prefiere.report.page import render
from prefiere.run import Run, RunError
from synthetic_runs import ONLY_LENGTH, OVERFITTED, make_reward, sound_calibration, to

SEEDS = range(5)
HALF = sound_calibration(0.5, 200)


def keys(d: Diagnosis) -> list[str]:
    return [f.key for f in d.findings]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_sound_model_raises_no_alarm(tmp_path: Path, seed: int) -> None:
    d = diagnose(make_reward(tmp_path, seed))
    assert keys(d) == ["learnt"]
    assert d.severity == "good"
    assert d.headline.startswith("The reward model learnt the preferences: it scores the preferred answer higher 78%")
    assert "always choosing the longer answer: right 56%" in d.findings[0].evidence[-1]


@pytest.mark.parametrize("seed", SEEDS)
def test_overfitted(tmp_path: Path, seed: int) -> None:
    d = diagnose(make_reward(tmp_path, seed, **OVERFITTED, calibration=sound_calibration(0.7, bent=3.0)))
    assert {"overfit", "saturated", "miscalibrated", "learnt"} == set(keys(d))
    assert d.severity == "warning"
    assert "But: it learnt its training data by heart" in d.headline


@pytest.mark.parametrize("seed", SEEDS)
def test_only_length(tmp_path: Path, seed: int) -> None:
    d = diagnose(make_reward(tmp_path, seed, **ONLY_LENGTH))
    assert keys(d) == ["mostly_length"]
    assert (d.severity, d.headline) == ("bad", "It measures length: choosing the longer answer would do as well.")
    assert "right where the preferred answer is not the longer one: 20%" in d.findings[0].evidence[-1]


def test_partly_length(tmp_path: Path) -> None:
    """Better than the rule of length, yet wrong where that rule is; and no better, yet right there."""
    by_length = sound_calibration(0.75, baseline=0.6, by_length=lambda d: 0.95 if d > -10 else 0.35)
    d = diagnose(make_reward(tmp_path / "a", calibration=by_length))
    assert keys(d) == ["mostly_length", "learnt"]
    assert "But: it measures length more than quality." in d.headline
    shorter: dict[str, Any] = sound_calibration(0.62, 300, baseline=0.6)
    shorter["length"]["rule"] = "shorter"
    d = diagnose(make_reward(tmp_path / "b", calibration=shorter))
    assert keys(d) == ["mostly_length", "learnt"]
    assert "not shown to do better than choosing the shorter answer" in d.headline


def test_all_right_beats_a_rule_that_is_nearly_always_right(tmp_path: Path) -> None:
    """On 101 pairs 100% reaches down to 96%, but a rule at 97% does not reach up to 100%."""
    assert keys(diagnose(make_reward(tmp_path, calibration=sound_calibration(1.0, 101, baseline=0.97)))) == ["learnt"]


def test_lengths_without_a_sign_accuse_nobody(tmp_path: Path) -> None:
    calibration: dict[str, Any] = sound_calibration(0.75, baseline=0.6)
    calibration["length"]["by_difference"] = [{"low": 0, "high": 10, "accuracy": [0.3, 0.2, 0.4], "n": 100}]
    assert keys(diagnose(make_reward(tmp_path, calibration=calibration))) == ["learnt"]


def test_no_better_than_chance(tmp_path: Path) -> None:
    flat = {"rewards/accuracies": to(0.5, 0.5), "rewards/margins": to(0.0), "loss": to(0.693, 0.693)}
    d = diagnose(make_reward(tmp_path, train=flat, calibration={"n": 200, "accuracy": [0.53, 0.46, 0.6]}))
    assert keys(d) == ["chance"]
    # 200 * (0.07/0.03 * 2.8/1.96)^2 = 2222.2
    assert "coin flip: it scores the preferred answer higher 53% (46% to 60%) of the time" in d.headline
    assert not any("learning_rate" in r for r in d.findings[0].remedy)  # nothing says that the rate is the cause
    assert "takes about 2,300 held-out pairs instead of 200" in d.findings[0].meaning


def test_by_heart_and_no_better_than_chance(tmp_path: Path) -> None:
    changes: dict[str, Any] = OVERFITTED | {"held_out": OVERFITTED["held_out"] | {"rewards/accuracies": to(0.5, 0.5)}}
    d = diagnose(make_reward(tmp_path, calibration={"n": 200, "accuracy": [0.53, 0.46, 0.6]}, **changes))
    chance = next(f for f in d.findings if f.key == "chance")
    assert "does not carry over" in chance.meaning
    assert "fewer num_train_epochs" in chance.remedy[0]


def test_inverted(tmp_path: Path) -> None:
    d = diagnose(make_reward(tmp_path, calibration=sound_calibration(0.3)))
    assert d.severity == "bad"
    assert keys(d) == ["inverted"]


def test_noise_is_no_accuracy(tmp_path: Path) -> None:
    """Without any skill: at most a few of 40 may claim one (2.5% are expected)."""
    flat = {"rewards/accuracies": to(0.5, 0.5), "rewards/margins": to(0.0), "loss": to(0.693, 0.693)}
    found = [diagnose(make_reward(tmp_path / str(s), s, train=flat, calibration={})) for s in range(40)]
    assert sum("learnt" in d for d in found) <= 4
    assert sum("chance" in d for d in found) >= 34


@pytest.mark.parametrize("bent", [3.0, 0.4])
def test_miscalibrated(tmp_path: Path, bent: float) -> None:
    d = diagnose(make_reward(tmp_path, calibration=sound_calibration(bent=bent)))
    assert set(keys(d)) == {"miscalibrated", "learnt"}
    title = next(f.title for f in d.findings if f.key == "miscalibrated")
    assert title == ("It is surer than it should be." if bent > 1 else "It is less sure than it could be.")


def test_few_pairs_are_not_called_miscalibrated(tmp_path: Path) -> None:
    d = diagnose(make_reward(tmp_path, calibration=sound_calibration(n=40, accuracy=0.9, bent=1.6)))
    assert "miscalibrated" not in d


def test_scores_off_centre(tmp_path: Path) -> None:
    far = {"rewards/mean": to(20.0), "rewards/std": to(1.5, 0.3)}
    calibration = sound_calibration()
    d = diagnose(make_reward(tmp_path / "saved", train=far, calibration=calibration))
    assert "off_centre" not in d  # the saved normalisation takes it off
    del calibration["normalisation"]
    d = diagnose(make_reward(tmp_path / "bare", train=far, calibration=calibration))
    assert "center_rewards_coefficient" in next(f.remedy[0] for f in d.findings if f.key == "off_centre")


def test_confident_and_right_is_not_saturated(tmp_path: Path) -> None:
    sure = {"rewards/margins": to(9.0), "rewards/accuracies": to(0.995, 0.5, 0.3), "loss": to(0.02, 0.69)}
    assert keys(diagnose(make_reward(tmp_path, train=sure, calibration=sound_calibration(0.995)))) == ["learnt"]


@pytest.mark.parametrize("part", [None, "accuracy", "log_loss", "ece", "reliability", "length", "normalisation"])
def test_any_part_may_be_missing(tmp_path: Path, part: str | None) -> None:
    whole: dict[str, Any] = sound_calibration()
    calibration = {} if part is None else {k: v for k, v in whole.items() if k != part}
    run = make_reward(tmp_path / "run", calibration=calibration)
    assert "learnt" in diagnose(run)
    page = render([run], tmp_path / "report.html").read_text()
    assert ("Sure and right?" in page) == ("reliability" in calibration)
    assert ("How much is length?" in page) == ("length" in calibration)


@pytest.mark.parametrize(
    "calibration",
    [
        {"accuracy": ["<b>", 0, 1], "ece": "<script>", "reliability": "x", "length": [1], "normalisation": 3},
        {
            "accuracy": [0.7],
            "reliability": [{"low": 0, "high": None}, 7],
            "length": {"by_difference": {}, "baseline": 1},
        },
        {"length": {"by_difference": [{"low": 0, "high": 1, "accuracy": None, "n": "many"}]}, "reliability": [{}]},
        {"reliability": [{"low": 0.5, "high": 1, "predicted": 0.7, "observed": 0.6}], "ece": None},
    ],
)
def test_what_is_not_a_number_is_not_shown(tmp_path: Path, calibration: dict[str, Any]) -> None:
    run = make_reward(tmp_path / "run", calibration=calibration)
    assert "learnt" in diagnose(run)
    page = render([run], tmp_path / "report.html").read_text()
    assert "<script>" not in page
    assert "<b>&lt;" not in page


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    run = make_reward(tmp_path)
    (tmp_path / "calibration.json").write_text("{broken")
    with pytest.raises(RunError, match=r"calibration\.json is damaged"):
        diagnose(run)


def test_only_what_it_lacks_is_said_to_be_missing(tmp_path: Path) -> None:
    d = diagnose(make_reward(tmp_path / "a", calibration={}, drop=("eval_",)))
    assert keys(d) == ["learnt", "unmeasured"]
    assert d.severity == "info"
    assert "sampled" not in d.findings[1].meaning
    run = Run.create(tmp_path / "b")
    run.recipe = {"method": "reward"}
    assert diagnose(run).headline == "Nothing has been measured yet."


def test_where_length_and_preference_are_the_same_thing_length_is_information(tmp_path: Path) -> None:
    """The rule of length is wrong in 4 of 60 pairs: being as good as it says nothing of either. Where it is wrong often
    enough to tell, or the model does not even reach it, the warning stays."""

    def said(name: str, calibration: dict[str, Any]) -> str:
        found = diagnose(make_reward(tmp_path / name, calibration=calibration)).findings
        return next(f.severity for f in found if f.key == "mostly_length")

    assert said("few", sound_calibration(0.95, 60, baseline=0.94)) == "info"
    assert said("few of either", sound_calibration(0.65, 60, baseline=0.57)) == "info"
    assert said("many", sound_calibration(0.95, 600, baseline=0.94)) == "warning"
    assert said("below", sound_calibration(0.75, 60, baseline=0.94)) == "warning"
