"""Run folders with seeded noise, one per pattern that the doctor must know, written as a training run writes them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from prefiere.run import Run
from prefiere.stats import wilson

Course = Callable[[float], float]  # share of the run that is done, 0 to 1 -> the metric's true mean


def to(value: float, start: float = 0.0, power: float = 1.0) -> Course:
    """A course from ``start`` to ``value``."""
    return lambda t: start + (value - start) * t**power


# A healthy DPO run. Each entry: the course, and the spread over single examples.
HEALTHY: dict[str, tuple[Course, float]] = {
    "rewards/chosen": (to(0.15), 0.8),
    "rewards/rejected": (to(-0.45), 0.8),
    "rewards/margins": (to(0.6), 1.0),
    "rewards/accuracies": (to(0.73, 0.5), 0.45),
    "loss": (to(0.5, math.log(2)), 0.35),
    "logps/chosen": (to(-118.5, -120), 30.0),
    "logps/rejected": (to(-129.5, -125), 30.0),
}
SOUND: dict[str, tuple[Course, float]] = {
    "samples/eos_rate": (to(0.96, 0.95), 0.2),
    "samples/length": (to(64, 60), 15.0),
    "samples/repetition": (to(0.03, 0.03), 0.03),
    "samples/ref_logp": (to(-1.35, -1.3), 0.4),
    "samples/kl": (to(3.0), 2.0),
    "samples/score": (to(0.8, 0.5), 0.4),
}
SHARES = ("rewards/accuracies", "samples/eos_rate", "samples/repetition", "completions/eos_rate")

# A healthy reward model: scores, not log-probabilities, so that a reward lies anywhere at the start.
HEALTHY_REWARD: dict[str, tuple[Course, float]] = {
    "rewards/chosen": (to(0.7), 1.3),
    "rewards/rejected": (to(-0.7), 1.3),
    "rewards/margins": (to(1.4), 1.8),
    "rewards/accuracies": (to(0.78, 0.5, 0.5), 0.41),
    "rewards/mean": (to(0.0), 1.4),
    "rewards/std": (to(1.5, 0.3), 0.1),
    "loss": (to(0.48, math.log(2)), 0.45),
}
# A healthy PPO run, as its updates see it: the course, and the spread of a row's own mean over rows.
HEALTHY_ROLLOUTS: dict[str, tuple[Course, float]] = {
    "reward": (to(1.6, 0.1, 0.7), 0.12),
    "reward_std": (to(0.8, 1.0), 0.05),
    "objective/kl": (to(5.0, power=1.5), 0.25),
    "kl": (to(0.08, power=1.5), 0.004),
    "entropy": (to(1.0, 1.3), 0.03),
    "val/ratio": (to(1.0, 1.0), 0.002),
    "policy/clipfrac_avg": (to(0.09, 0.05), 0.02),
    "policy/approxkl_avg": (to(0.012, 0.008), 0.003),
    "policy/early_stops": (to(0.0), 0.0),
    "loss/policy_avg": (to(-0.02, -0.02), 0.01),
    "advantages/mean": (to(0.0), 0.001),
    "advantages/std": (to(1.0, 1.0), 0.001),
    "returns/mean": (to(1.4, 0.0, 0.7), 0.12),
    "returns/std": (to(0.8, 1.0), 0.05),
    "kl_coef": (to(0.05, 0.05), 0.0),
    "completions/mean_length": (to(63, 60), 2.0),
    "completions/eos_rate": (to(0.96, 0.95), 0.02),
    "length_reward_correlation": (to(0.12, 0.1), 0.1),
    "sampler_drift": (to(2e-6, 2e-6), 2e-7),
    "time/sampling": (to(0.9, 0.9), 0.05),
    "time/scoring": (to(0.2, 0.2), 0.01),
    "time/measuring": (to(0.1, 0.1), 0.005),
    "time/learning": (to(0.6, 0.6), 0.03),
    "grad_norm": (to(0.5, 0.7), 0.05),
    "learning_rate": (to(1e-5, 1e-5), 0.0),
}
HEALTHY_CRITIC: dict[str, tuple[Course, float]] = {
    "loss/value_avg": (to(0.25, 0.9, 0.4), 0.05),
    "val/explained_variance": (to(0.65, -0.1, 0.4), 0.08),
}
SOUND_POLICY = SOUND | {
    "samples/kl": (to(5.0, power=1.5), 3.0),
    "samples/reward": (to(1.6, 0.1, 0.7), 1.0),
    "samples/score": (to(0.85, 0.5, 0.7), 0.4),
}


def mean(key: str, value: float, half: float, n: int) -> dict[str, float]:
    """A mean as a log row has it; a share stays within 0 and 1."""
    low, high = value - half, value + half
    if key.removeprefix("eval_") in SHARES:
        value = min(1.0, max(0.0, value))
        low, high = max(0.0, value - half), min(1.0, value + half)
    return {key: value, f"{key}_low": low, f"{key}_high": high, f"{key}_n": n}


def with_(changes: dict[str, Course] | None, base: dict[str, tuple[Course, float]]) -> dict[str, tuple[Course, float]]:
    """The courses with some of them changed; their spreads stay."""
    return base | {k: (c, base.get(k, (c, 0.3))[1]) for k, c in (changes or {}).items()}


def make(
    folder: Path,
    seed: int = 0,
    *,
    train: dict[str, Course] | None = None,
    held_out: dict[str, Course] | None = None,
    answers: dict[str, Course] | None = None,
    drop: tuple[str, ...] = (),
    steps: int = 100,
    pairs: int = 300,
    prompts: int = 64,
    spread: float = 1.0,
    status: dict[str, Any] | None = None,
    recipe: dict[str, Any] | None = None,
    healthy: dict[str, tuple[Course, float]] = HEALTHY,
    sound: dict[str, tuple[Course, float]] = SOUND,
) -> Run:
    """A run whose metrics follow the healthy courses but for those given; ``drop`` leaves out keys by their prefix,
    ``spread`` scales how much single pairs differ."""
    rng = np.random.default_rng(seed)
    run = Run.create(folder)
    run.recipe = {"method": "dpo", "model": "tiny", "data": "pairs.jsonl", "loss_type": "sigmoid", "beta": 0.1} | (
        {"learning_rate": 1e-5, "num_train_epochs": 1.0, "batch_size": 16, "seed": seed} | (recipe or {})
    )
    run.status = {"state": "finished", "step": steps, "total_steps": steps, "reason": None, "seconds": 61.0} | (
        status or {}
    )
    # The same pairs and prompts at every evaluation: their luck stays with them.
    luck = {k: rng.normal() for k in (*healthy, *sound, "mean_token_accuracy")}

    def measured(prefix: str, courses: dict[str, tuple[Course, float]], t: float, n: int) -> dict[str, float]:
        row: dict[str, float] = {}
        for key, (course, deviation) in courses.items():
            of_start = healthy is HEALTHY and (key.startswith("rewards/") or key == "loss")
            exact = t == 0 and (of_start or key == "samples/kl")
            error = deviation * (spread if prefix else 1.0) / math.sqrt(n)
            noise = 0.0 if exact else error * (0.8 * luck[key] + 0.6 * rng.normal())
            row |= mean(prefix + key, course(t) + noise, 0.0 if exact and key not in SHARES else 1.96 * error, n)
        return row

    of_train, of_eval, of_answers = with_(train, healthy), with_(held_out or train, healthy), with_(answers, sound)
    rows: list[Mapping[str, Any]] = []
    for step in range(steps + 1):
        t = step / steps
        row: dict[str, Any] = {"step": step, "epoch": t, "seconds": 0.6 * step}
        for key, (course, deviation) in of_train.items():
            row[key] = course(t) + (0.0 if step == 0 else rng.normal() * deviation * spread / 4)
        if step:
            row |= {"grad_norm": float(rng.lognormal(0, 0.3)), "learning_rate": 1e-5 * (1 - t)}
        if step % max(1, steps // 10) == 0:
            row |= measured("eval_", of_eval, t, pairs) | measured("", of_answers, t, prompts)
        rows.append({k: v for k, v in row.items() if not k.startswith(drop)} if drop else row)
    run._append("metrics.jsonl", rows)
    return run


def make_reward(
    folder: Path,
    seed: int = 0,
    *,
    calibration: dict[str, Any] | None = None,
    drop: tuple[str, ...] = (),
    **changes: Any,
) -> Run:
    """A reward model's run; ``calibration`` is calibration.json, None: that of a sound model."""
    recipe = {"method": "reward", "beta": None, "loss_type": None} | changes.pop("recipe", {})
    run = make(folder, seed, healthy=HEALTHY_REWARD, sound={}, drop=drop, recipe=recipe, **changes)
    run.calibration = sound_calibration() if calibration is None else calibration
    return run


def sound_calibration(
    accuracy: float = 0.78,
    n: int = 1000,
    *,
    baseline: float = 0.56,
    bent: float = 1.0,
    by_length: Callable[[float], float] | None = None,
) -> dict[str, Any]:
    """calibration.json: the log-odds that the model predicts are ``bent`` times the true ones; ``by_length`` gives the
    accuracy at a length difference (chosen minus rejected, in tokens)."""

    def share(p: float, n: int) -> list[float]:
        return [p, *wilson(p * n, n)]

    reliability = []
    for i in range(5):
        low = 0.5 + i / 10
        predicted = low + 0.05
        observed = 1 / (1 + math.exp(-math.log(predicted / (1 - predicted)) / bent))
        seen = share(observed, n // 5)
        reliability.append({"low": low, "high": low + 0.1, "predicted": predicted, "observed": seen[0], "n": n // 5})
        reliability[-1] |= {"observed_low": seen[1], "observed_high": seen[2]}
    at = by_length or (lambda d: accuracy + 0.001 * d)
    edges = (-100.0, -40.0, -10.0, 10.0, 40.0, 100.0)
    lengths = [
        {"low": a, "high": b, "accuracy": share(min(0.99, at((a + b) / 2)), n // 5), "n": n // 5}
        for a, b in itertools.pairwise(edges)
    ]
    return {
        "n": n,
        "accuracy": share(accuracy, n),
        "log_loss": [0.48, 0.45, 0.51],
        "ece": sum(abs(r["predicted"] - r["observed"]) for r in reliability) / 5,
        "reliability": reliability,
        "length": {"baseline": share(baseline, n), "rule": "longer", "by_difference": lengths},
        "normalisation": {"mean": 0.1, "std": 1.4},
    }


def make_policy(
    folder: Path,
    seed: int = 0,
    *,
    method: str = "ppo",
    rollouts: dict[str, Course] | None = None,
    answers: dict[str, Course] | None = None,
    drop: tuple[str, ...] = (),
    steps: int = 100,
    prompts: int = 128,
    episodes: int = 128,
    noise: float = 1.0,
    status: dict[str, Any] | None = None,
    recipe: dict[str, Any] | None = None,
) -> Run:
    """A policy-gradient run; ``noise`` scales how much its rows scatter."""
    rng = np.random.default_rng(seed)
    run = Run.create(folder)
    run.recipe = {"method": method, "model": "tiny", "reward": "rm", "judge": "rules:judge", "seed": seed} | (
        {"learning_rate": 1e-5, "kl_coef": 0.05, "cliprange": 0.2, "num_ppo_epochs": 4} | (recipe or {})
    )
    run.status = {"state": "finished", "step": steps, "total_steps": steps, "reason": None, "seconds": 180.0} | (
        status or {}
    )
    healthy = HEALTHY_ROLLOUTS | (HEALTHY_CRITIC if method == "ppo" else {})
    of_rollouts, of_answers = with_(rollouts, healthy), with_(answers, SOUND_POLICY)
    luck = {key: rng.normal() for key in of_answers}
    rows: list[Mapping[str, Any]] = []
    for step in range(steps + 1):
        t = step / steps
        row: dict[str, Any] = {"step": step}
        if step:
            row |= {"epoch": t, "episodes": episodes * step, "seconds": 1.8 * step, "tokens_per_second": 4000.0}
            for key, (course, deviation) in of_rollouts.items():
                value, error = course(t) + noise * deviation * rng.normal(), 1.96 * noise * deviation
                averaged = key in ("reward", "objective/kl", "kl", "entropy") or key.startswith("completions/")
                row |= mean(key, value, error, episodes) if averaged else {key: value}
        if step % max(1, steps // 10) == 0:
            for key, (course, deviation) in of_answers.items():
                exact = step == 0 and key == "samples/kl"
                error = 0.0 if exact else deviation / math.sqrt(prompts)
                off = error * (0.8 * luck[key] + 0.6 * rng.normal())
                row |= mean(key, course(t) + off, 1.96 * error, prompts)
        rows.append({k: v for k, v in row.items() if not k.startswith(drop)} if drop else row)
    run._append("metrics.jsonl", rows)
    return run


def peak(top: float, end: float, start: float = 0.0, at: float = 0.4) -> Course:
    """A course that rises to ``top`` and then turns to ``end``."""
    return lambda t: start + (top - start) * t / at if t < at else top + (end - top) * (t - at) / (1 - at)


# What goes wrong, as arguments of make_policy.
REWARD_HACKED_BY_LENGTH: dict[str, Any] = {
    "rollouts": {
        "reward": to(3.0, 0.1),
        "completions/mean_length": to(150, 60),
        "length_reward_correlation": to(0.75, 0.3),
    },
    "answers": {
        "samples/reward": to(3.0, 0.1),
        "samples/score": peak(0.7, 0.3, 0.5),
        "samples/length": to(150, 60),
    },
}
KL_BLOWN_UP: dict[str, Any] = {
    "rollouts": {"objective/kl": to(110.0, power=3), "kl": to(1.8, power=3)},
    "answers": {"samples/kl": to(110.0, power=3), "samples/ref_logp": to(-1.9, -1.3, 3)},
}
DEAD_CRITIC: dict[str, Any] = {"rollouts": {"val/explained_variance": to(-0.02, -0.05), "loss/value_avg": to(0.9, 0.9)}}
ADAPTIVE_KL: dict[str, Any] = {
    "rollouts": {"kl_coef": to(0.15, 0.05), "objective/kl": lambda t: 6 * min(1.0, 2 * t)},
    "answers": {"samples/kl": lambda t: 6 * min(1.0, 2 * t)},
}
STOPPED_BY_KL: dict[str, Any] = {
    "rollouts": {"objective/kl": to(31.0, power=2)},
    "answers": {"samples/kl": to(31.0, power=2)},
    "status": {
        "state": "stopped",
        "step": 62,
        "reason": "guard: KL to the reference is 31.0 nats per sequence, above max_kl=30",
        "stop": {"kind": "kl_budget", "text": "guard: KL to the reference is 31.0 nats per sequence, above max_kl=30"},
    },
    "recipe": {"max_kl": 30.0},
}
# What goes wrong with a reward model, as arguments of make_reward.
OVERFITTED: dict[str, Any] = {
    "train": {"loss": to(0.02, 0.69, 0.5), "rewards/accuracies": to(1.0, 0.5, 0.3), "rewards/margins": to(9.0)},
    "held_out": {
        "loss": lambda t: 0.69 - 0.5 * t if t < 0.3 else 0.54 + 0.9 * (t - 0.3),
        "rewards/accuracies": to(0.7, 0.5, 0.3),
        "rewards/margins": to(7.0),
    },
}
ONLY_LENGTH: dict[str, Any] = {
    "calibration": sound_calibration(
        0.57, baseline=0.57, by_length=lambda d: 0.9 if d > 10 else 0.2 if d < -10 else 0.5
    )
}


# What goes wrong with a preference run, as arguments of make.
BOTH_FALL = {"rewards/chosen": to(-0.5), "rewards/rejected": to(-1.2), "rewards/margins": to(0.7)}
# The study's pattern: chosen, margin and accuracy fall, rejected stays flat.
FALLS = {
    "rewards/chosen": to(-0.5),
    "rewards/rejected": to(0.0),
    "rewards/margins": to(-0.5),
    "rewards/accuracies": to(0.35, 0.5),
    "loss": to(0.95, math.log(2)),
}
NOTHING = {
    "rewards/chosen": to(0.0),
    "rewards/rejected": to(0.0),
    "rewards/margins": to(0.03),
    "rewards/accuracies": to(0.505, 0.5),
    "loss": to(0.69, math.log(2)),
}
STUCK = NOTHING | {"rewards/margins": to(0.004), "loss": to(0.691, math.log(2))}
# Plain DPO without a tie: the chosen log-probability collapses, accuracy reads 1.00, answers dissolve.
PERFECT = {
    "rewards/chosen": to(-3.0, power=2),
    "rewards/rejected": to(-9.0),
    "rewards/margins": to(6.0),
    "rewards/accuracies": lambda t: 0.5 if t == 0 else 1.0,
    "loss": to(0.01, math.log(2)),
    "logps/chosen": to(-32.0, -2.0, 2),
}
RUINED = {
    "samples/eos_rate": to(0.1, 0.97),
    "samples/repetition": to(0.6, 0.02),
    "samples/ref_logp": to(-6.0, -0.4),
    "samples/length": to(60, 12),
    "samples/kl": to(80.0),
    "samples/score": to(0.0, 0.5),
}


def beginning(run: Run, **start: float) -> Run:
    """A run whose row of step 0 says these of model and data, of 24 examples each."""
    rows = run.metrics
    for name, value in start.items():
        key = f"start/{name}"
        rows[0] |= {key: value, f"{key}_low": value - 0.1, f"{key}_high": value + 0.1, f"{key}_n": 24}
    (run.folder / "metrics.jsonl").unlink()
    for row in rows:
        run.log(row)
    return run
