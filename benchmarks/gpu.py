"""On one GPU: ``python -m benchmarks.gpu``. LoRA on a model of Mistral-7B's shape with random weights, beside TRL.

DPO in bf16, r=16 on all linear layers, pairs with the lengths of HH-RLHF and of UltraFeedback: pairs per second, peak
memory, and the share of the measured bf16 matmul peak, each distinct token counted once. Each contender runs in a
process of its own, one after the other: two models of 14 GB would leave no room to compare memory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import MistralConfig, MistralForCausalLM

from benchmarks.common import HEADER, Row, clock, line, quiet
from benchmarks.peak import matmul_peak, step_flops
from prefiere.tokens.groups import GroupStore, PromptGroup
from prefiere.tokens.pack import pack

SHAPES: dict[str, dict[str, Any]] = {
    "mistral-7b": {},
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
             "num_key_value_heads": 1, "vocab_size": 1024, "head_dim": 32},
}  # fmt: skip
# Log-normal mean and deviation of prompt, chosen and rejected, in tokens; those of UltraFeedback are about 180 for the
# prompt and 310 and 280 for the answers on average.
LENGTHS = {
    "HH-like": ((4.43, 0.98), (3.37, 0.87), (3.57, 0.92)),
    "UltraFeedback-like": ((4.7, 1.0), (5.5, 0.7), (5.4, 0.7)),
}
GOALS = {"pairs": 2.0, "memory": 0.7, "peak": 0.5}
BATCH = 32
MAX_LENGTH = 1024


def pairs(kind: str, n: int, vocabulary: int) -> GroupStore:
    """Random token ids with the lengths of a data set, cut to MAX_LENGTH."""
    rng = np.random.default_rng(0)

    def ids(mean: float, deviation: float, most: int) -> np.ndarray:
        size = int(np.clip(rng.lognormal(mean, deviation), 2, most))
        return rng.integers(3, vocabulary, size).astype(np.int32)

    groups = []
    for _ in range(n):
        prompt = ids(*LENGTHS[kind][0], MAX_LENGTH // 2)
        answers = tuple(ids(*parameters, MAX_LENGTH - len(prompt)) for parameters in LENGTHS[kind][1:])
        groups.append(PromptGroup(prompt, answers, tuple(np.ones(len(a), bool) for a in answers)))
    return GroupStore.build(groups, 2)


def make(folder: Path, shape: str) -> None:
    """The model's folder, written once: random weights in bf16."""
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = MistralForCausalLM(MistralConfig(**SHAPES[shape], sliding_window=None, dtype=torch.bfloat16))
    model.to(torch.bfloat16).save_pretrained(folder)


def ours(folder: Path, store: GroupStore, batches: list[np.ndarray]) -> dict[str, float]:
    """prefiere: reference pass and updates over the batches; the first one warms up."""
    from prefiere.algorithms.dpo import Pairs
    from prefiere.models.adapter import Adapter
    from prefiere.models.load import load_policy
    from prefiere.models.reference import Reference, sequence_logps
    from prefiere.models.source import find_model
    from prefiere.objectives.preference import LOSSES
    from prefiere.settings import DPO
    from prefiere.train.engine import Engine
    from prefiere.train.optimizer import make_optimizer, make_scheduler
    from prefiere.world import World

    world = World.open()
    settings = DPO(model=str(folder), data="", out="")
    adapter = Adapter.lora(r=16, alpha=32, dropout=0.0, targets="all-linear", dora=False, rslora=False)
    trunk, how = load_policy(find_model(folder), compute=torch.bfloat16, adapter=adapter, device=world.device)
    print(how, file=sys.stderr)
    optimizer = make_optimizer(trunk, settings, 1e-5, 1e-5)
    engine = Engine(
        trunk, optimizer, make_scheduler(optimizer, settings, 1000), world=world, compute=torch.bfloat16,
        max_grad_norm=1.0, budget=16384, adapt=True,
    )  # fmt: skip
    goal = Pairs(LOSSES["sigmoid"], {"beta": 0.1}, 0.1, np.zeros((len(store), 2), np.float32))

    def epoch(members: list[np.ndarray]) -> None:
        groups = [store[int(i)] for i in np.concatenate(members)]
        with Reference(trunk).live() as reference:
            logps = sequence_logps(reference, groups, budget=engine.budget, autocast=torch.bfloat16)
        goal.reference[np.concatenate(members)] = logps
        for m in members:
            engine.update(store, m, goal)

    epoch(batches[:1])
    began = clock()
    epoch(batches[1:])
    seconds = clock() - began
    packs, shape = [pack([store[int(i)] for i in b]) for b in batches[1:]], trunk.lm.config
    flops = sum(step_flops(shape, p, weights=False) + step_flops(shape, p, weights=False, backward=False)
                for p in packs)  # fmt: skip
    peak = matmul_peak(torch.bfloat16, str(world.device.type))
    return _result(seconds, batches) | {"reached": flops / seconds / 1e9, "peak": peak}


def trl(folder: Path, store: GroupStore, batches: list[np.ndarray]) -> dict[str, float]:
    """TRL at its best: grouped by length, precomputed reference, base in bf16, no checkpointing where it fits."""
    from benchmarks.contenders import Trl

    with tempfile.TemporaryDirectory() as scratch:
        peer = Trl(
            folder, store, batches, lora=True, precompute=True, half_base=True, scratch=Path(scratch), batch=BATCH,
            pairs_per_forward=8, cpu=not torch.cuda.is_available(),
        )  # fmt: skip
        peer.epoch(1)
        return _result(peer.epoch(len(batches) - 1), batches)


def _result(seconds: float, batches: list[np.ndarray]) -> dict[str, float]:
    memory = torch.cuda.max_memory_allocated() / 1e6 if torch.cuda.is_available() else float("nan")
    return {"pairs": sum(len(b) for b in batches[1:]) / seconds, "memory": memory}


def main() -> None:
    """The parent: one child for each contender and kind of lengths; prints the table."""
    p = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    p.add_argument("--shape", default="mistral-7b", choices=SHAPES)
    p.add_argument("--steps", type=int, default=6, help="updates of 32 pairs, after one to warm up")
    p.add_argument("--repeats", type=int, default=5)
    p.add_argument("--child", nargs=3, metavar=("WHO", "KIND", "FOLDER"), help=argparse.SUPPRESS)
    a = p.parse_args()
    quiet()
    if a.child:
        who, kind, folder = a.child
        store = pairs(kind, BATCH * (a.steps + 1), SHAPES[a.shape].get("vocab_size", 32000))
        order = np.arange(len(store))
        if who == "trl":
            order = np.argsort(store.lengths, kind="stable")
        batches = list(order.reshape(-1, BATCH))
        np.random.default_rng(0).shuffle(batches)
        print(json.dumps({"prefiere": ours, "trl": trl}[who](Path(folder), store, batches)))
        return
    with tempfile.TemporaryDirectory(prefix="prefiere-gpu-") as folder:
        make(Path(folder), a.shape)
        print(HEADER)
        for kind in LENGTHS:
            rounds: dict[str, list[dict[str, float]]] = {"prefiere": [], "trl": []}
            for _ in range(a.repeats):
                for who, found in rounds.items():
                    command = [sys.executable, "-m", "benchmarks.gpu", "--child", who, kind, folder]
                    done = subprocess.run(
                        [*command, "--shape", a.shape, "--steps", str(a.steps)], stdout=subprocess.PIPE, check=True
                    )
                    found.append(json.loads(done.stdout.decode().strip().splitlines()[-1]))
            for row in rows_of(f"DPO, {a.shape}, bf16, LoRA, {kind}", rounds["prefiere"], rounds["trl"]):
                print(line(row), flush=True)


def rows_of(title: str, mine: list[dict[str, float]], theirs: list[dict[str, float]]) -> list[Row]:
    """Speed, memory and share of the peak."""

    def column(rounds: list[dict[str, float]], name: str) -> list[float]:
        return [r[name] for r in rounds]

    seconds = [[1 / x for x in column(r, "pairs")] for r in (mine, theirs)]
    return [
        Row.faster(f"{title}; a pair against TRL at its best", *seconds, goal=GOALS["pairs"]),
        Row.smaller(
            f"{title}; peak memory", column(mine, "memory"), column(theirs, "memory"), goal=GOALS["memory"], unit="MB"
        ),
        Row.share(
            f"{title}; share of the matmul peak", column(mine, "reached"), column(mine, "peak"), goal=GOALS["peak"],
            unit="GF/s",
        ),
    ]  # fmt: skip


if __name__ == "__main__":
    main()
