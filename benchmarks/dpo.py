"""An epoch of DPO, its reference pass included: against TRL as shipped, TRL at its best, and prefiere's own plain path.

A window of batches stands for the epoch (`common.window`): its padded, distinct and answer tokens per pair are those of
the whole data set, so that seconds per epoch are the window's times pairs / window's pairs, on both sides.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch

from benchmarks.common import Bench, Contender, Row, products
from benchmarks.contenders import Apart, Ours, Trl, installed, own_budget
from benchmarks.peak import QUICK, matmul_peak, step_flops
from benchmarks.workload import SHAPES, window
from prefiere.tokens.groups import GroupStore
from prefiere.tokens.pack import pack

# shape, LoRA, batches of 8 in a window, goals against TRL as shipped and at its best, against the plain path with
# batches grouped by length and random ones
CASES: list[tuple[str, bool, int, tuple[float, float | None, float, float]]] = [
    ("10m", False, 3, (12, 8, 1.6, 3)),
    ("10m", True, 3, (12, 8, 1.6, 3)),
    ("60m", False, 2, (14, 7, 1.6, 3)),
    ("60m", True, 2, (14, 7, 1.6, 3)),
    ("qwen", True, 1, (42, None, 2.5, 4)),
]
WHOLE = "qwen-whole"
SHIPPED = "TRL, no checkpointing"
GROUPED = "TRL, batches grouped by length, precomputed reference"
BEST = "TRL at its best"
BEST_NOTE = (
    "grouped by length (TRL's own sampler cannot), precomputed reference, 2 pairs per forward, no checkpointing, "
    "LoRA's base in bf16"
)


def rows(bench: Bench) -> Iterable[Row]:
    """Every case's rows, one case after the other."""
    for shape, lora, steps, goals in [("tiny", False, 1, (12, 8, 1.6, 3))] if bench.quick else CASES:
        if shape in bench.shapes:
            yield from _case(bench, shape, lora, steps, goals)
    if WHOLE in bench.shapes:
        shape = "tiny" if bench.quick else WHOLE
        store, title = bench.store(SHAPES[shape].words), f"DPO, reference and updates, {SHAPES[shape].title}"
        yield from whole_model(bench, title, bench.folder(shape), store, lora=True, goal=5.5, share=0.65)


def _case(
    bench: Bench, shape: str, lora: bool, steps: int, goals: tuple[float, float | None, float, float]
) -> Iterable[Row]:
    folder, store = bench.folder(shape), bench.store(SHAPES[shape].words)
    random, grouped = (window(store, steps, grouped=g) for g in (False, True))
    title = f"DPO epoch, {SHAPES[shape].title}, bf16, {'LoRA' if lora else 'full'}"
    mine = {"random": Ours(folder, store, random, lora=lora), "grouped": Ours(folder, store, grouped, lora=lora)}
    plain = {
        "random": Ours(folder, store, random, lora=lora, packed=False),
        "grouped": Ours(folder, store, grouped, lora=lora, packed=False),
    }
    contenders: dict[str, Contender] = {"ours, random": mine["random"].epoch, "ours, grouped": mine["grouped"].epoch}
    contenders |= {f"steady, {name}": o.train for name, o in mine.items()}
    contenders |= {f"plain, {name}": o.train for name, o in plain.items()}
    peers = None
    if installed():
        same = {"folder": folder, "store": store, "lora": lora, "scratch": bench.out}
        best = {"precompute": True, "pairs_per_forward": 2, "half_base": lora}
        peers = Apart(
            {
                SHIPPED: (Trl, {**same, "batches": random}),
                GROUPED: (Trl, {**same, "batches": grouped, "precompute": True}),
                BEST: (Trl, {**same, "batches": grouped, **best}),
            }
        )
        contenders |= {
            name: peers.call(name, "train" if name == SHIPPED else "epoch") for name in (SHIPPED, GROUPED, BEST)
        }
    peaks: list[float] = []

    def peak(_: int) -> float:
        peaks.append(matmul_peak(torch.bfloat16, sizes=QUICK if bench.quick else None))
        return 1.0

    s = bench.alternate({**contenders, "peak": peak}, steps)
    if peers:
        peers.close()
    n = f"window of {8 * steps} pairs"
    needed = {"random": _flops(mine["random"], random), "grouped": _flops(mine["grouped"], grouped)}

    def at_most(peer: str, batches: str) -> str:
        return _at_most(s[peer], needed[batches], peaks)

    whole: Callable[[list[float]], list[float]] = lambda x: [t * len(store) / (8 * steps) for t in x]  # noqa: E731
    for peer, ours, goal, note in (
        (SHIPPED, "ours, random", goals[0], n),
        (GROUPED, "ours, grouped", goals[1], n),
        (BEST, "ours, grouped", goals[1], f"{n}; {BEST_NOTE}"),
    ):
        if peer in s:
            note = f"{note}; {at_most(peer, ours.removeprefix('ours, '))}"
            yield Row.faster(f"{title}; {peer}", whole(s[ours]), whole(s[peer]), goal=goal, note=note)
        else:
            yield Row.missing(f"{title}; {peer}", goal, "TRL is not installed")
    for name, goal in (("grouped", goals[2]), ("random", goals[3])):
        work = f"{title}; own padded, unshared, full-logits path, reference cached, {name} batches"
        yield Row.faster(work, whole(s[f"steady, {name}"]), whole(s[f"plain, {name}"]), goal=goal, note=n)


def whole_model(
    bench: Bench, title: str, folder: Path, store: GroupStore, *, lora: bool, goal: float, share: float | None = None
) -> Iterable[Row]:
    """A window of DPO on a whole model, in what this processor multiplies in, with micro-batches as a run takes them:
    against TRL at its best (``goal`` times), and how much of the matrix-product peak it reaches (``share``)."""
    half, batches = products(), window(store, 1, grouped=True)
    title = f"{title}, {str(half).removeprefix('torch.')}, {'LoRA' if lora else 'full'}"
    if not installed():
        yield Row.missing(f"{title}; {BEST}", goal, "TRL is not installed")
        return
    compute = None if half == torch.float32 else half
    mine = Ours(folder, store, batches, lora=lora, compute=compute, budget=own_budget(folder, half))
    same = {"folder": folder, "store": store, "batches": batches, "lora": lora, "scratch": bench.out, "half": half}
    peers = Apart({BEST: (Trl, {**same, "precompute": True, "pairs_per_forward": 2, "half_base": lora})})
    peaks: list[float] = []

    def peak(_: int) -> float:
        peaks.append(matmul_peak(half, sizes=QUICK if bench.quick else None))
        return 1.0

    s = bench.alternate({"ours": mine.epoch, BEST: peers.call(BEST, "epoch"), "peak": peak}, 1)
    peers.close()
    needed = _flops(mine, batches)
    note = f"window of 8 pairs; {BEST_NOTE}; {_at_most(s[BEST], needed, peaks)}"
    yield Row.faster(f"{title}; {BEST}", s["ours"], s[BEST], goal=goal, note=note)
    reached = [needed / t / 1e9 for t in s["ours"]]
    note = "reference and update; optimizer included"
    yield Row.share(f"{title}: share of the matmul peak", reached, peaks[1:], goal=share, unit="GF/s", note=note)


def _at_most(peer: list[float], needed: float, peaks: list[float]) -> str:
    """What the ratio could be at most: the products alone, each at the peak of large squares."""
    alone = needed / statistics.median(peaks[1:]) / 1e9
    return f"were products at the matmul peak all there is: {statistics.median(peer) / alone:.1f}"


def _flops(ours: Ours, batches: list[np.ndarray]) -> float:
    """Operations of the products of these updates and of their reference pass."""
    config, weights = ours.trunk.lm.config, not ours.lora
    packed = [pack([ours.store[int(i)] for i in b]) for b in batches]
    return sum(step_flops(config, b, weights=weights) + step_flops(config, b, backward=False) for b in packed)
