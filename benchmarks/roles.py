"""Peak memory of PPO steps with policy, reference, critic and reward model as adapters on one base, beside SFT updates
of the same adapter on the very tokens that were sampled. Each runs in a process of its own; the peak of one that only
prepares a run on a tiny model, which is that of the libraries, is taken off both.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import Bench, Row, quiet, write_groups
from benchmarks.memory import peak_mb
from benchmarks.workload import SHAPES, write_pairs

STEPS = 2
PROMPTS = 8
SIZES = ["10m", "60m"]
SETTINGS: dict[str, Any] = {
    "lora": True, "dtype": "bfloat16", "batch_size": PROMPTS, "eval_size": 0, "sample_steps": 0, "max_new_tokens": 128,
    "tokens_per_microbatch": 4096, "max_steps": STEPS, "learning_rate": 1e-4, "on_bad": "drop", "max_length": 640,
}  # fmt: skip


def rows(bench: Bench) -> Iterable[Row]:
    """One row for each size."""
    data = write_pairs(bench.out / "pairs.jsonl", bench.pairs) if bench.data is None else bench.data
    for shape in ["tiny"] if bench.quick else SIZES:
        bench.folder("tiny")
        folder = bench.folder(shape)
        reward_model(folder, bench.out / f"reward-{shape}")
        rounds = [
            [
                bench.child("roles", who, size, str(data), str(bench.out))
                for who, size in (("nothing", "tiny"), ("ppo", shape), ("sft", shape))
            ]
            for _ in range(1 if bench.quick else min(3, bench.repeats))
        ]
        ppo, sft = ([max(r[i]["peak"] - r[0]["peak"], 1.0) for r in rounds] for i in (1, 2))
        note = f"{rounds[0][1]['tokens']} tokens in {STEPS} updates; a PPO step samples, scores and measures as well"
        work = f"peak memory, {SHAPES[shape].title}, bf16, LoRA: PPO with four roles against SFT"
        yield Row.smaller(work, ppo, sft, goal=1.3, unit="MB", note=note)


def reward_model(base: Path, folder: Path) -> Path:
    """A reward model of random weights: an adapter on this base with a score head."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="SEQ_CLS", init_lora_weights=False)
    get_peft_model(model, config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # With its normalisation it is mounted on the policy's base; without, it would be a second model beside it.
    (folder / "reward.json").write_text(json.dumps({"mean": 0.0, "std": 1.0, "template": "auto"}))
    return folder


def _child(who: str, shape: str, data: str, out: str) -> dict[str, Any]:
    quiet()
    from prefiere.console import Display
    from prefiere.plan.device import Device
    from prefiere.plan.plan import resolve
    from prefiere.run import Run
    from prefiere.settings import PPO, SFT
    from prefiere.train.setup import build_session
    from prefiere.world import World

    place = Path(out)
    given = {**SETTINGS, "model": str(place / "models" / shape), "data": data, "out": str(place / f"run-{who}-{shape}")}
    reward = str(place / f"reward-{shape}")
    settings: Any = PPO(reward=reward, num_ppo_epochs=1, **given) if who == "ppo" else SFT(**given)
    world = World.open()
    plan = resolve(settings, Device.of(world.device))
    session = build_session(plan, Run.create(settings.out), Display(quiet=True), world=world)
    tokens = place / f"sampled-{shape}"
    work = {"ppo": _ppo, "sft": _sft, "nothing": lambda session, folder: 0}[who]
    return {"tokens": work(session, tokens), "peak": peak_mb()}


def _ppo(session: Any, folder: Path) -> int:
    """So many PPO steps; what they sampled is kept for SFT."""
    from prefiere.algorithms.ppo import build
    from prefiere.algorithms.rollout import Rollout

    method = build(session)
    kept: list[Rollout] = []
    real = method.estimate
    method.estimate = lambda reward, rollout: kept.append(rollout) or real(reward, rollout)  # type: ignore[func-returns-value]
    tokens = sum(method.step(step).tokens for step in range(STEPS))
    write_groups([g for rollout in kept for g in rollout.store], 1, _fresh(folder))
    return tokens


def _sft(session: Any, folder: Path) -> int:
    from prefiere.algorithms.sft import Imitate
    from prefiere.tokens.groups import GroupStore

    store = GroupStore.open(folder, 1)
    parts = np.arange(len(store)).reshape(STEPS, -1)
    return sum(session.engine.update(store, members, Imitate()).tokens for members in parts)


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


if __name__ == "__main__":
    print(json.dumps(_child(*sys.argv[1:])))
