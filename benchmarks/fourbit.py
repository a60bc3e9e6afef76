"""A 4-bit 7B on one GPU: ``python -m benchmarks.fourbit``. Will DPO and PPO fit a 16 GB card, and how fast are they?

A model of Mistral-7B's shape with random weights, held in NF4, LoRA r=16 on all linear layers, trained as the recipes
for OpenHermes are: gradient checkpointing, pairs with lengths like UltraFeedback's up to 1,024 tokens. PPO samples 32
answers of 384 tokens with policy, reference, critic and reward model as adapters on one trunk, and updates the policy
and the critic. Beside DPO stands TRL with a QLoRA set-up of its own.

The weights are written in bf16, a shard for each layer (14.5 GB in the temporary folder); no process holds them all.
Each contender has a process of its own; its rows are printed when it ends, and one that fails says so and ends no
other. Peak memory is the allocator's on a GPU, loading included; on a CPU it is the resident set of the whole process,
and has no goal. ``--folder`` keeps the model for a later call; ``--tiny`` runs every line on a CPU in seconds.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import children
from benchmarks.children import Found, say
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
from prefiere.train.setup import Session, build_session
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
    shutil.rmtree(options["out"], ignore_errors=True)
    if not torch.cuda.is_available():
        options["dtype"] = "bfloat16"
    settings = recipe.load(method, RECIPES / name, options)
    world = World.open()
    plan = resolve(settings, Device.of(world.device))
    return build_session(plan, Run.create(settings.out), Display(quiet=True), world=world)


def dpo(folder: Path, size: Size) -> Iterator[dict[str, float]]:
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
    began = clock()
    epoch(batches[1:])
    seconds = clock() - began
    memory = peak_gib()
    packs = [pack([store[int(i)] for i in b]) for b in batches[1:]]
    shape = trunk.lm.config
    flops = sum(step_flops(shape, p, weights=False) + step_flops(shape, p, weights=False, backward=False)
                for p in packs)  # fmt: skip
    peak = matmul_peak(engine.compute or torch.float32, trunk.device.type, size.products)
    yield {
        "memory": memory, "pairs": sum(map(len, batches[1:])) / seconds,
        "tokens": sum(len(p.tokens_T) for p in packs) / seconds, "reached": flops / seconds / 1e9, "peak": peak,
        "bits": 16.0 if engine.compute else 32.0,
    }  # fmt: skip


def ppo(folder: Path, size: Size) -> Iterator[dict[str, float]]:
    """PPO with four roles: a whole step. A model that takes seconds for a token needs no step to warm up on."""
    return steps_of_ppo(folder, size, 1, warm=size.products is not None)


def steps_of_ppo(
    folder: Path, size: Size, steps: int, *, warm: bool = True, answer: int | None = None, **given: Any
) -> Iterator[dict[str, float]]:
    """So many steps of PPO (sampling, scores, log-probs, both epochs of updates), after one to ``warm`` up."""
    answer, at = answer or size.answer, time.perf_counter()
    run = session_of(
        "ppo", "openhermes-nf4-rlhf.yaml", folder, size, reward=str(folder / "reward"), batch_size=size.prompts,
        max_new_tokens=answer, max_length=size.length // 2 + answer, critic_warmup_steps=0, **given,
    )  # fmt: skip
    adapters = set(run.trunk.model.peft_config)
    if not {POLICY, CRITIC, REWARD} <= adapters:
        raise SystemExit(f"the roles are not on one trunk, but only {sorted(adapters)}")
    print(f"the run is there after {time.perf_counter() - at:.0f} s", file=sys.stderr, flush=True)
    method = build(run)
    if warm:
        method.step(0)
        print(f"one step is done after {time.perf_counter() - at:.0f} s", file=sys.stderr, flush=True)
    for step in range(1, steps + 1):
        began = clock()
        done = method.step(step)
        seconds = clock() - began
        length = done.metrics["completions/mean_length"].mean
        parts = {n.removeprefix("time/"): m.mean for n, m in done.metrics.items() if n.startswith("time/")}
        yield {
            "memory": peak_gib(), "length": length, "tokens": length * size.prompts / seconds,
            "drift": done.metrics["sampler_drift"].mean, **{f"seconds {n}": x for n, x in parts.items()},
        }  # fmt: skip


def trl(folder: Path, size: Size) -> Iterator[dict[str, float]]:
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
    yield {"pairs": size.pairs * size.steps / peer.epoch(size.steps), "memory": peak_gib()}


def batches_of(size: Size) -> list[np.ndarray]:
    """The first updates of the pairs: one to warm up, then those that are timed."""
    return list(np.arange(size.pairs * (size.steps + 1)).reshape(-1, size.pairs))


def peak_gib() -> float:
    """The allocator's peak on a GPU; on a CPU that of the resident set."""
    return torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else peak_mb() * 1e3 / 2**20


# -- the table --------------------------------------------------------------------------------------------------------


def rows_of(who: str, size: Size, found: dict[str, Found], gpu: bool) -> Iterator[Row]:
    """The rows of a contender that has ended, well or not; ``found``: it and those before it."""
    about = f"{size.title}, NF4, LoRA r=16"
    work = {"ppo": f"PPO with four roles, {about}, {size.prompts} x {size.answer} tokens sampled",
            "dpo": f"DPO, {about}", "trl": f"DPO, {about}, against TRL"}  # fmt: skip
    lines = found[who].lines
    if not lines:
        yield Row.missing(work[who], None, f"failed: {found[who].failed}")
    elif who == "trl":
        yield from _against(work["trl"], found["dpo"].lines, lines)
    else:
        where = "allocator's peak, loading included" if gpu else "resident set of the whole process: a CPU, so no goal"
        yield Row.smaller(
            f"peak memory, {work[who]}", [x["memory"] for x in lines], [GOAL] * len(lines),
            goal=1.0 if gpu else None, unit="GiB", note=f"peer: {GOAL} GiB; {where}",
        )  # fmt: skip
        yield from (_of_dpo if who == "dpo" else _of_ppo)(work[who], size, lines)


def _of_dpo(work: str, size: Size, lines: list[dict[str, Any]]) -> Iterator[Row]:
    """Speed and share of the peak."""
    lengths = f"lengths like UltraFeedback's up to {size.length:,}; reference pass included"
    (mine,) = lines
    yield Row(work, ours=mine["pairs"], unit="pairs/s", note=lengths)
    yield Row(work, ours=mine["tokens"], unit="tokens/s", note=f"each distinct token once; {lengths}")
    peak = f"share of the {mine['bits']:.0f}-bit matmul peak, {work}"
    yield Row.share(peak, [mine["reached"]], [mine["peak"]], goal=None, unit="GF/s", note="recomputation not counted")


def _of_ppo(work: str, size: Size, lines: list[dict[str, Any]]) -> Iterator[Row]:
    """Speed, and where the time of a step went."""
    for x in lines:
        parts = ", ".join(f"{n.removeprefix('seconds ')} {t:.3g} s" for n, t in x.items() if "seconds " in n)
        note = f"sampled tokens by a whole step, {x['length']:.0f} an answer: {parts}"
        yield Row(work, ours=x["tokens"], unit="tokens/s", note=note)


def _against(work: str, mine: list[dict[str, Any]], peer: list[dict[str, Any]]) -> Iterator[Row]:
    """DPO beside TRL."""
    if not mine:
        yield Row(work, peer=1 / peer[0]["pairs"], unit="s", note="prefiere failed")
        return
    seconds = [[1 / x["pairs"] for x in who] for who in (mine, peer)]
    yield Row.faster(f"a pair, {work}", *seconds, goal=None, note="both in 4 bits, checkpointing")
    yield Row.smaller(
        f"peak memory, {work}", [x["memory"] for x in mine], [x["memory"] for x in peer], goal=None, unit="GiB"
    )


def main() -> None:
    """The parent: one child for each contender; prints the table."""
    p = argparse.ArgumentParser(prog="python -m benchmarks.fourbit", description=__doc__)
    p.add_argument("--tiny", action="store_true", help="a tiny model: shows that every line runs")
    p.add_argument("--only", default="dpo,ppo,trl", help="contenders, separated by commas; dpo before trl")
    p.add_argument("--seconds", type=float, default=900, help="limit of each contender")
    p.add_argument("--folder", type=Path, help="where the model is, or is to be kept")
    p.add_argument("--child", choices=("dpo", "ppo", "trl"), help=argparse.SUPPRESS)
    a = p.parse_args()
    size = SIZES["tiny" if a.tiny else "mistral-7b"]
    quiet()
    if a.child:
        for found in {"dpo": dpo, "ppo": ppo, "trl": trl}[a.child](a.folder, size):
            say(**found)
        return
    if not a.tiny and not torch.cuda.is_available():
        raise SystemExit("no GPU is here, and a 7B needs one: --tiny shows on a CPU that every line runs")
    with tempfile.TemporaryDirectory(prefix="prefiere-fourbit-") as scratch:
        folder = a.folder or Path(scratch)
        make(folder, size)

        def child(who: str) -> Found:
            if who == "trl" and not installed():
                return Found([], "TRL is not installed")
            options = ["--child", who, "--folder", str(folder), *["--tiny"] * a.tiny]
            there = {"PREFIERE_CACHE": f"{scratch}/cache-{who}"}
            return children.run("fourbit", *options, seconds=a.seconds, env=there)

        names, ended = a.only.split(","), dict[str, Found]()
        print(HEADER, flush=True)
        with ThreadPoolExecutor(3 if a.tiny else 1) as together:  # tiny ones do not mind each other
            for who, found in zip(names, together.map(child, names), strict=True):
                ended[who] = found
                for row in rows_of(who, size, {"dpo": Found([]), **ended}, torch.cuda.is_available()):
                    print(line(row), flush=True)


if __name__ == "__main__":
    main()
