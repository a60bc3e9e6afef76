"""Run folders with seeded noise, one per pattern that the doctor must know, written as a training run writes them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from prefiere.run import Run

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
SHARES = ("rewards/accuracies", "samples/eos_rate", "samples/repetition")


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
    luck = {k: rng.normal() for k in (*HEALTHY, *SOUND, "mean_token_accuracy")}

    def measured(prefix: str, courses: dict[str, tuple[Course, float]], t: float, n: int) -> dict[str, float]:
        row: dict[str, float] = {}
        for key, (course, deviation) in courses.items():
            exact = t == 0 and (key.startswith("rewards/") or key in ("loss", "samples/kl"))
            error = deviation * (spread if prefix else 1.0) / math.sqrt(n)
            noise = 0.0 if exact else error * (0.8 * luck[key] + 0.6 * rng.normal())
            half = 0.0 if exact else 1.96 * error
            row[prefix + key] = course(t) + noise
            if key in SHARES:
                row[prefix + key] = min(1.0, max(0.0, course(t) + noise))
                half = 1.96 * error  # a share has a width at step 0 too
            low, high = row[prefix + key] - half, row[prefix + key] + half
            if key in SHARES:
                low, high = max(0.0, low), min(1.0, high)
            row |= {f"{prefix}{key}_low": low, f"{prefix}{key}_high": high, f"{prefix}{key}_n": n}
        return row

    def with_(changes: dict[str, Course] | None, base: dict[str, tuple[Course, float]]) -> dict[str, Any]:
        return base | {k: (c, base.get(k, (c, 0.3))[1]) for k, c in (changes or {}).items()}

    of_train, of_eval, of_answers = with_(train, HEALTHY), with_(held_out or train, HEALTHY), with_(answers, SOUND)
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
