"""A 4-bit 7B on one GPU: ``python -m benchmarks.fourbit``. Will DPO and PPO fit a 16 GB card, and how fast are they?

A model of Mistral-7B's shape with random weights, held in NF4, LoRA r=16 on all linear layers, trained as the recipes
for OpenHermes are: gradient checkpointing, pairs with lengths like UltraFeedback's up to 1,024 tokens. PPO samples 32
answers of 384 tokens with policy, reference, critic and reward model as adapters on one trunk, and updates the policy
and the critic. Beside DPO stands TRL with a QLoRA set-up of its own.

The weights are written in bf16, a shard for each layer (14.5 GB in the temporary folder); no process holds them all.
Each contender has a process of its own. Peak memory is the allocator's on a GPU, loading included; on a CPU it is the
resident set of the whole process, and has no goal. ``--tiny`` runs every line on a CPU in seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import HEADER, Row, clock, line, quiet
from benchmarks.contenders import Trl, installed
from benchmarks.fourbit_model import SIZES, Size, make, pairs
from benchmarks.memory import peak_mb
from benchmarks.peak import matmul_peak, step_flops
from prefiere import recipe
from prefiere.algorithms.dpo import Pairs
from prefiere.algorithms.ppo import build
from prefiere.console import Display
from prefiere.models.reference import Reference, sequence_logps
from prefiere.models.trunk import CRITIC, POLICY, REWARD
from prefiere.objectives.preference import LOSSES
from prefiere.plan.device import Device
from prefiere.plan.plan import resolve
from prefiere.run import Run
from prefiere.tokens.pack import pack
from prefiere.train.setup import Session
from prefiere.train.setup import build_session as build_session
from prefiere.world import World

RECIPES = Path(__file__).parents[1] / "recipes"
GOAL = 14.6
"""GiB that a card of 16 GB has left for a run."""


# -- who is measured --------------------------------------------------------------------------------------------------


def session_of(method: str, name: str, folder: Path, size: Size, **given: Any) -> Session:
    """A run of a recipe for OpenHermes, on the model and pairs of this folder."""
    options = {
        "model": str(folder / "model"), "data": str(folder / "pairs.jsonl"), "data_split": None,
        "out": str(folder / f"run-{method}"), "quantize": "nf4", "eval_size": 0, "sample_steps": 0,
        "max_steps": size.steps + 1, "on_bad": "drop", **given,
    }  # fmt: skip
    if not torch.cuda.is_available():
        options["dtype"] = "bfloat16"
    settings = recipe.load(method, RECIPES / name, options)
    assert settings.gradient_checkpointing
    world = World.open()
    plan = resolve(settings, Device.of(world.device))
    return build_session(plan, Run.create(settings.out), Display(quiet=True), world=world)


def dpo(folder: Path, size: Size) -> dict[str, float]:
    """DPO: the reference pass and the updates, after one update to warm up."""
    run = session_of(
        "dpo", "openhermes-gptq-ultrafeedback.yaml", folder, size, max_length=size.length,
        max_prompt_length=size.length // 2, batch_size=size.pairs, rpo_alpha=0.0,
    )  # fmt: skip
    store, engine, trunk = pairs(size), run.engine, run.trunk
    batches = batches_of(size)
    goal = Pairs(LOSSES["sigmoid"], {"beta": 0.1}, 0.1, np.zeros((len(store), 2), np.float32))

    def epoch(batches: list[np.ndarray]) -> None:
        members = np.concatenate(batches)
        with Reference(trunk).live() as reference:
            goal.reference[members] = sequence_logps(
                reference, store.select(members), budget=engine.budget, autocast=engine.compute
            )
        for m in batches:
            engine.update(store, m, goal)

    epoch(batches[:1])
    began = now()
    epoch(batches[1:])
    seconds = now() - began
    memory = peak_gib()
    packs = [pack([store[int(i)] for i in b]) for b in batches[1:]]
    shape = trunk.lm.config
    flops = sum(step_flops(shape, p, weights=False) + step_flops(shape, p, weights=False, backward=False)
                for p in packs)  # fmt: skip
    peak = matmul_peak(engine.compute or torch.float32, trunk.device.type, size.products)
    return {
        "memory": memory, "pairs": sum(map(len, batches[1:])) / seconds,
        "tokens": sum(len(p.tokens_T) for p in packs) / seconds, "reached": flops / seconds / 1e9, "peak": peak,
        "bits": 16.0 if engine.compute else 32.0,
    }  # fmt: skip


def ppo(folder: Path, size: Size) -> dict[str, float]:
    """PPO with four roles: a whole step (sampling, scores, log-probs, both epochs of updates) after one to warm up."""
    run = session_of(
        "ppo", "openhermes-nf4-rlhf.yaml", folder, size, reward=str(folder / "reward"), batch_size=size.prompts,
        max_new_tokens=size.answer, max_length=size.length // 2 + size.answer, critic_warmup_steps=0,
    )  # fmt: skip
    adapters = set(run.trunk.model.peft_config)
    if not {POLICY, CRITIC, REWARD} <= adapters:
        raise SystemExit(f"the roles are not on one trunk, but only {sorted(adapters)}")
    method = build(run)
    method.step(0)
    began = now()
    done = method.step(1)
    seconds = now() - began
    length = done.metrics["completions/mean_length"].mean
    parts = {n.removeprefix("time/"): m.mean for n, m in done.metrics.items() if n.startswith("time/")}
    return {
        "memory": peak_gib(), "length": length, "tokens": length * size.prompts / seconds,
        **{f"seconds {n}": x for n, x in parts.items()},
    }  # fmt: skip


def trl(folder: Path, size: Size) -> dict[str, float]:
    """TRL's DPOTrainer on a base that transformers holds in NF4: its checkpointing, precomputed reference, two pairs
    in a forward (four rows of at most 1,024 tokens; prefiere's micro-batches hold 4,096)."""
    gpu = torch.cuda.is_available()
    half = torch.bfloat16 if not gpu or torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    batches = batches_of(size)
    peer = Trl(
        folder / "model", pairs(size), batches, lora=True, precompute=True, checkpointing=True, half_base=True,
        half=half, nf4=True, scratch=folder, batch=size.pairs, pairs_per_forward=2, cpu=not gpu,
    )  # fmt: skip
    peer.epoch(1)
    began = now()
    peer.epoch(size.steps)
    return {"pairs": size.pairs * size.steps / (now() - began), "memory": peak_gib()}


def batches_of(size: Size) -> list[np.ndarray]:
    """The first updates of the pairs: one to warm up, then those that are timed."""
    return list(np.arange(size.pairs * (size.steps + 1)).reshape(-1, size.pairs))


def now() -> float:
    """Seconds, when the device has done what it was told."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock()


def peak_gib() -> float:
    """The allocator's peak on a GPU; on a CPU that of the resident set."""
    return torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else peak_mb() * 1e3 / 2**20


# -- the table --------------------------------------------------------------------------------------------------------


def rows_of(size: Size, found: dict[str, dict[str, float]], gpu: bool) -> Iterator[Row]:
    """Memory, speed and share of the peak, from what the contenders found."""
    mine, reinforced, peer = found["dpo"], found["ppo"], found.get("trl")
    about = f"{size.title}, NF4, LoRA r=16"
    where = "allocator's peak, loading included" if gpu else "resident set of the whole process: a CPU, so no goal"
    sampled = f"{size.prompts} x {size.answer} tokens sampled"
    goal = 1.0 if gpu else None
    for work, memory in (
        (f"peak memory, DPO, {about}", mine["memory"]),
        (f"peak memory, PPO with four roles, {about}, {sampled}", reinforced["memory"]),
    ):
        yield Row.smaller(work, [memory], [GOAL], goal=goal, unit="GiB", note=f"peer: {GOAL} GiB; {where}")
    lengths = f"lengths like UltraFeedback's up to {size.length:,}; reference pass included"
    if peer:
        seconds = [[1 / x["pairs"]] for x in (mine, peer)]
        yield Row.faster(
            f"a pair, DPO, {about}, against TRL", *seconds, goal=None, note="both in 4 bits, checkpointing"
        )
        yield Row.smaller(
            f"peak memory, DPO, {about}, against TRL", [mine["memory"]], [peer["memory"]], goal=None, unit="GiB"
        )
    else:
        yield Row.missing(f"DPO, {about}, against TRL", None, "TRL is not installed")
    yield Row(f"DPO, {about}", ours=mine["pairs"], unit="pairs/s", note=lengths)
    yield Row(f"DPO, {about}", ours=mine["tokens"], unit="tokens/s", note=f"each distinct token once; {lengths}")
    peak = f"share of the {mine['bits']:.0f}-bit matmul peak, DPO, {about}"
    yield Row.share(peak, [mine["reached"]], [mine["peak"]], goal=None, unit="GF/s", note="recomputation not counted")
    parts = ", ".join(f"{n.removeprefix('seconds ')} {x:.3g} s" for n, x in reinforced.items() if "seconds " in n)
    note = f"sampled tokens by a whole step, {reinforced['length']:.0f} an answer: {parts}"
    yield Row(f"PPO with four roles, {about}, {sampled}", ours=reinforced["tokens"], unit="tokens/s", note=note)


def main() -> None:
    """The parent: one child for each contender; prints the table."""
    p = argparse.ArgumentParser(prog="python -m benchmarks.fourbit", description=__doc__)
    p.add_argument("--tiny", action="store_true", help="a tiny model: shows that every line runs")
    p.add_argument("--child", nargs=2, metavar=("WHO", "FOLDER"), help=argparse.SUPPRESS)
    a = p.parse_args()
    size = SIZES["tiny" if a.tiny else "mistral-7b"]
    quiet()
    if a.child:
        who, folder = a.child
        print(json.dumps({"dpo": dpo, "ppo": ppo, "trl": trl}[who](Path(folder), size)))
        return
    if not a.tiny and not torch.cuda.is_available():
        raise SystemExit("no GPU is here, and a 7B needs one: --tiny shows on a CPU that every line runs")
    with tempfile.TemporaryDirectory(prefix="prefiere-fourbit-") as scratch:
        make(Path(scratch), size)

        def child(who: str) -> dict[str, float]:
            command = [sys.executable, "-m", "benchmarks.fourbit", "--child", who, scratch, *["--tiny"] * a.tiny]
            there = {**os.environ, "PREFIERE_CACHE": f"{scratch}/cache-{who}"}
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=there)
            return dict(json.loads(done.stdout.strip().splitlines()[-1]))

        names = ["dpo", "ppo", *["trl"] * installed()]
        with ThreadPoolExecutor(3 if a.tiny else 1) as together:  # tiny ones do not mind each other
            found = dict(zip(names, together.map(child, names), strict=True))
    print(HEADER)
    for row in rows_of(size, found, torch.cuda.is_available()):
        print(line(row), flush=True)


if __name__ == "__main__":
    main()
