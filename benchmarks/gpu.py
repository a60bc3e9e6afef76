"""On one GPU: ``python -m benchmarks.gpu``. A model of Mistral-7B's shape with random weights in bf16.

dpo: LoRA r=16 on all linear layers, beside TRL at its best, pairs with the lengths of HH-RLHF and of UltraFeedback:
pairs per second, peak memory, and the share of the measured bf16 matmul peak, each distinct token counted once.
sampling: answers against transformers' `generate`. ppo: a step with four roles as adapters on one trunk.

Each contender runs in a process of its own, one after the other: two models of 14 GB would leave no room to compare
memory. A row is printed as soon as it is known, and one that fails says so and ends no other. ``--folder`` keeps the
model for a later call, or for `fourbit`; ``--shape tiny`` shows that every line runs.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import children
from benchmarks.children import Found, say
from benchmarks.common import HEADER, Row, clock, line, quiet
from benchmarks.fourbit_model import SIZES, Size, make
from benchmarks.memory import peak_mb
from benchmarks.peak import matmul_peak, step_flops
from benchmarks.sampling import GOALS as SAMPLING_GOALS
from benchmarks.sampling import contenders
from prefiere.tokens.groups import GroupStore, PromptGroup
from prefiere.tokens.pack import pack

# Log-normal mean and deviation of prompt, chosen and rejected, in tokens; those of UltraFeedback are about 180 for the
# prompt and 310 and 280 for the answers on average.
LENGTHS = {
    "HH-like": ((4.43, 0.98), (3.37, 0.87), (3.57, 0.92)),
    "UltraFeedback-like": ((4.7, 1.0), (5.5, 0.7), (5.4, 0.7)),
}
GOALS = {"pairs": 2.0, "memory": 0.7, "peak": 0.5}
PROMPTS, TOKENS, ANSWER = 32, 64, 128
"""Prompts in a rollout; tokens sampled for each answer beside `generate`, and in a PPO step."""


def pairs(kind: str, n: int, size: Size) -> GroupStore:
    """Random token ids with the lengths of a data set, scaled with the model and cut to what it takes."""
    rng = np.random.default_rng(0)

    def ids(mean: float, deviation: float, most: int) -> np.ndarray:
        length = int(np.clip(size.length / 1024 * rng.lognormal(mean, deviation), 2, most))
        return rng.integers(4, size.shape["vocab_size"], length).astype(np.int32)

    groups = []
    for _ in range(n):
        prompt = ids(*LENGTHS[kind][0], size.length // 2)
        answers = tuple(ids(*parameters, size.length - len(prompt)) for parameters in LENGTHS[kind][1:])
        groups.append(PromptGroup(prompt, answers, tuple(np.ones(len(a), bool) for a in answers)))
    return GroupStore.build(groups, 2)


def workload(kind: str, a: argparse.Namespace, *, grouped: bool) -> tuple[GroupStore, list[np.ndarray]]:
    """Pairs and their batches, one more than are timed; ``grouped`` by length, as TRL is fastest with."""
    size = SIZES[a.shape]
    store = pairs(kind, size.prompts * (a.steps + 1), size)
    order = np.argsort(store.lengths, kind="stable") if grouped else np.arange(len(store))
    batches = list(order.reshape(-1, size.prompts))
    np.random.default_rng(0).shuffle(batches)
    return store, batches


# -- who is measured --------------------------------------------------------------------------------------------------


def ours(folder: Path, a: argparse.Namespace) -> None:
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
    trunk, how = load_policy(find_model(folder / "model"), compute=torch.bfloat16, adapter=adapter, device=world.device)
    optimizer = make_optimizer(trunk, settings, 1e-5, 1e-5)
    shape = trunk.lm.config
    for kind in LENGTHS:
        store, batches = workload(kind, a, grouped=False)
        engine = Engine(
            trunk, optimizer, make_scheduler(optimizer, settings, 1000), world=world, compute=torch.bfloat16,
            max_grad_norm=1.0, budget=16384, adapt=True,
        )  # fmt: skip
        goal = Pairs(LOSSES["sigmoid"], {"beta": 0.1}, 0.1, np.zeros((len(store), 2), np.float32))

        def epoch(members: list[np.ndarray], store: GroupStore, engine: Engine, goal: Pairs) -> None:
            every = np.concatenate(members)
            with Reference(trunk).live() as reference:
                goal.reference[every] = sequence_logps(
                    reference, store.select(every), budget=engine.budget, autocast=torch.bfloat16
                )
            for m in members:
                engine.update(store, m, goal)

        packs = [pack([store[int(i)] for i in b]) for b in batches[1:]]
        flops = sum(step_flops(shape, p, weights=False) + step_flops(shape, p, weights=False, backward=False)
                    for p in packs)  # fmt: skip
        epoch(batches[:1], store, engine, goal)
        for _ in range(a.repeats):
            _forget_peak()
            began = clock()
            epoch(batches[1:], store, engine, goal)
            seconds = clock() - began
            memory, peak = _memory(), matmul_peak(torch.bfloat16, world.device.type, a.products)
            speed = SIZES[a.shape].prompts * a.steps / seconds
            say(kind=kind, pairs=speed, memory=memory, reached=flops / seconds / 1e9, peak=peak,
                note=f"{how}; {engine.budget.tokens:,} tokens a micro-batch")  # fmt: skip


def trl(folder: Path, a: argparse.Namespace) -> None:
    """TRL at its best: grouped by length, precomputed reference, base in bf16, no checkpointing, as many pairs in a
    forward as fit."""
    from benchmarks.contenders import Trl

    gpu = torch.cuda.is_available()
    for kind in LENGTHS:
        store, batches = workload(kind, a, grouped=True)
        # The longest batch first: what does not fit is found out while warming up.
        batches.sort(key=lambda b: -int(store.lengths[b].max()))
        forward = a.forward
        while True:
            peer: Any = None
            with tempfile.TemporaryDirectory() as scratch:
                try:
                    peer = Trl(
                        folder / "model", store, batches, lora=True, precompute=True, half_base=True,
                        scratch=Path(scratch), batch=SIZES[a.shape].prompts, pairs_per_forward=forward, cpu=not gpu,
                    )  # fmt: skip
                    peer.epoch(1)
                    for _ in range(a.repeats):
                        _forget_peak()
                        seconds = peer.epoch(a.steps)
                        say(
                            kind=kind,
                            pairs=SIZES[a.shape].prompts * a.steps / seconds,
                            memory=_memory(),
                            forward=forward,
                        )
                    break
                except torch.OutOfMemoryError:
                    if forward == 1:
                        raise
                    print(f"TRL: {forward} pairs in a forward do not fit", file=sys.stderr)
                    forward //= 2
            del peer
            gc.collect()
            torch.cuda.empty_cache()
        del peer
        gc.collect()
        torch.cuda.empty_cache()


def sampling(folder: Path, a: argparse.Namespace) -> None:
    """Answers of equal lengths, 1 and 4 to a prompt, in turn with `generate`."""
    from prefiere.models.load import load_model
    from prefiere.models.source import find_model

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_model(find_model(folder / "model"), dtype=torch.bfloat16, device=device)
    size = SIZES[a.shape]
    prompts = [g.prompt for g in pairs("HH-like", PROMPTS, size)]
    for samples in SAMPLING_GOALS:
        both = contenders(model, prompts, samples, [size.shape["vocab_size"] + 1])
        for run in both.values():
            run(2)
        for _ in range(a.repeats):
            say(samples=samples, **{who: run(TOKENS) for who, run in both.items()})


def ppo(folder: Path, a: argparse.Namespace) -> None:
    """PPO with policy, reference, critic and reward model on one trunk in bf16: a step to warm up, then steps."""
    from benchmarks.fourbit import steps_of_ppo

    given: dict[str, Any] = {"quantize": "none", "gradient_checkpointing": False, "tokens_per_microbatch": "auto"}
    size = SIZES[a.shape]
    answer = min(ANSWER, size.answer)
    for found in steps_of_ppo(folder, size, a.repeats, answer=answer, max_steps=a.repeats + 1, lora=True, **given):
        say(**found)


def _forget_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def _memory() -> float:
    return torch.cuda.max_memory_allocated() / 1e6 if torch.cuda.is_available() else peak_mb()


# -- the table --------------------------------------------------------------------------------------------------------


def rows_of_dpo(shape: str, mine: Found, theirs: Found) -> Iterator[Row]:
    """Speed, memory and share of the peak for each kind of lengths; what failed says so."""
    for kind in LENGTHS:
        title = f"DPO, {shape}, bf16, LoRA, {kind}"
        rounds, peers = ([x for x in found.lines if x["kind"] == kind] for found in (mine, theirs))
        yield from rows_of(title, rounds, peers, mine.failed, theirs.failed)


def rows_of(
    title: str, mine: list[dict[str, Any]], theirs: list[dict[str, Any]], failed: str | None, peer_failed: str | None
) -> Iterator[Row]:
    """The rows of one kind of lengths. Rounds of both are compared in their order."""
    speed, memory = f"{title}; a pair against TRL at its best", f"{title}; peak memory"
    share = f"{title}; share of the matmul peak"
    if not mine:
        yield Row.missing(speed, GOALS["pairs"], f"prefiere failed: {failed}")
        return
    note = str(mine[0].get("note", ""))
    both = list(zip(mine, theirs, strict=False))
    if both:
        seconds = [[1 / x["pairs"] for x in of] for of in zip(*both, strict=True)]
        beside = f"{note}; TRL: {theirs[0].get('forward')} pairs in a forward"
        yield Row.faster(speed, *seconds, goal=GOALS["pairs"], note=beside)
        taken = [[x["memory"] for x in of] for of in zip(*both, strict=True)]
        yield Row.smaller(memory, *taken, goal=GOALS["memory"], unit="MB")
    else:
        why = f"TRL failed: {peer_failed}"
        yield Row(speed, GOALS["pairs"], ours=1 / mine[0]["pairs"], unit="s", note=f"{note}; {why}")
        yield Row(memory, GOALS["memory"], "at most", ours=mine[0]["memory"], unit="MB", note=why)
    reached, peak = ([x[n] for x in mine] for n in ("reached", "peak"))
    yield Row.share(share, reached, peak, goal=GOALS["peak"], unit="GF/s")


def rows_of_sampling(shape: str, found: Found) -> Iterator[Row]:
    """One row for each number of samples."""
    for samples, goal in SAMPLING_GOALS.items():
        work = f"sampling {PROMPTS} prompts x {TOKENS} tokens, {samples} each, equal lengths, {shape}, bf16"
        rounds = [x for x in found.lines if x["samples"] == samples]
        if rounds:
            times = [[x[who] for x in rounds] for who in ("ours", "generate")]
            yield Row.faster(work, *times, goal=goal, note="generate: one batch, left-padded")
        else:
            yield Row.missing(work, goal, f"failed: {found.failed}")


def rows_of_ppo(shape: str, found: Found) -> Iterator[Row]:
    """Tokens a second of a whole step, one row for each step."""
    work = f"PPO with four roles, {shape}, bf16, LoRA, {PROMPTS} x {ANSWER} tokens sampled"
    for x in found.lines:
        parts = ", ".join(f"{n.removeprefix('seconds ')} {t:.3g} s" for n, t in x.items() if n.startswith("seconds "))
        note = f"{x['length']:.0f} an answer: {parts}; peak {x['memory']:.1f} GiB"
        yield Row(work, ours=x["tokens"], unit="tokens/s", note=note)
    if not found.lines:
        yield Row.missing(work, None, f"failed: {found.failed}")


WHO: dict[str, Callable[[Path, argparse.Namespace], None]] = {
    "ours": ours, "trl": trl, "sampling": sampling, "ppo": ppo,
}  # fmt: skip


def arguments() -> argparse.Namespace:
    """What was asked for."""
    p = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    p.add_argument("--shape", default="mistral-7b", choices=SIZES)
    p.add_argument("--only", default="dpo,sampling,ppo", help="kinds of work, separated by commas")
    p.add_argument("--steps", type=int, default=6, help="updates in a round, after one to warm up")
    p.add_argument("--repeats", type=int, default=5, help="rounds")
    p.add_argument("--forward", type=int, default=4, help="pairs in one of TRL's forwards; halved until they fit")
    p.add_argument("--seconds", type=float, default=600, help="limit of each contender")
    p.add_argument("--folder", type=Path, help="where the model is, or is to be kept")
    p.add_argument("--child", choices=WHO, help=argparse.SUPPRESS)
    a = p.parse_args()
    a.products = SIZES[a.shape].products
    return a


def main() -> None:
    """The parent: one child for each contender; prints the table."""
    a = arguments()
    quiet()
    if a.child:
        WHO[a.child](a.folder, a)
        return
    with tempfile.TemporaryDirectory(prefix="prefiere-gpu-") as scratch:
        folder = a.folder or Path(scratch)
        make(folder, SIZES[a.shape])

        def child(who: str) -> Found:
            given = {"shape": a.shape, "steps": a.steps, "repeats": a.repeats, "forward": a.forward, "folder": folder}
            options = [str(x) for name, value in given.items() for x in (f"--{name}", value)]
            return children.run("gpu", "--child", who, *options, seconds=a.seconds)

        table: dict[str, Callable[[], Iterator[Row]]] = {
            "dpo": lambda: rows_of_dpo(a.shape, child("ours"), child("trl")),
            "sampling": lambda: rows_of_sampling(a.shape, child("sampling")),
            "ppo": lambda: rows_of_ppo(a.shape, child("ppo")),
        }
        print(HEADER, flush=True)
        for work in a.only.split(","):
            for row in table[work]():
                print(line(row), flush=True)


if __name__ == "__main__":
    main()
