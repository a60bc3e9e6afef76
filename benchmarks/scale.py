"""What a pair costs when the data grows from 1,000 to 100,000 pairs: preparation, reference and updates.

Each size runs in a process of its own, as ``prefiere dpo`` would up to a number of updates: read the file, tokenize,
plan, then so many updates with their share of the reference pass, on a tiny model, so that the cost of the data shows.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from itertools import cycle, islice
from pathlib import Path

import numpy as np

from benchmarks.common import Bench, Row, clock, quiet
from benchmarks.contenders import Ours
from benchmarks.memory import peak_mb
from benchmarks.workload import BATCH, SHAPES, write_pairs
from prefiere.data.plan import members

UPDATES = 30


def rows(bench: Bench) -> Iterable[Row]:
    """Seconds per pair and peak memory at both sizes."""
    small, large = (50, 200) if bench.quick else (1_000, 100_000)
    bench.folder("tiny")
    found = {}
    for n in (small, large):
        path = write_pairs(bench.out / f"pairs-{n}.jsonl", islice(cycle(bench.pairs), n))
        source = str(bench.data) if bench.data else ""
        found[n] = bench.child("scale", str(path), str(n), str(bench.out), source)
    a, b = found[small], found[large]
    titles = {"prepare": "reading and tokenizing a pair", "update": f"an update of {BATCH} pairs"}
    for name, title in titles.items():
        work = f"{title}, {large:,} pairs against {small:,}"
        yield Row.smaller(
            work, [1e3 * b[name]], [1e3 * a[name]], goal=1.2, unit="ms", note="one run; peer: the small set"
        )
    work = f"peak memory, {large:,} pairs against {small:,}"
    yield Row.smaller(work, [b["peak"]], [a["peak"]], goal=1.2, unit="MB", note="one run; peer: the small set")


def _child(path: str, n: str, out: str, source: str) -> dict[str, float]:
    quiet()
    bench = Bench(Path(out), Path(path))
    bench.made[SHAPES["tiny"].words] = _tokenizer(bench.folder("tiny"))
    began = clock()
    store = bench.store(SHAPES["tiny"].words)
    prepared = clock() - began
    assert len(store) == int(n), (len(store), n)
    batches = [np.sort(members(len(store), BATCH, seed=0, step=i)) for i in range(UPDATES)]
    ours = Ours(bench.folder("tiny"), store, batches, lora=False)
    ours.epoch(5)
    return {"prepare": prepared / len(store), "update": ours.epoch(UPDATES) / UPDATES, "peak": peak_mb()}


def _tokenizer(folder: Path) -> object:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


if __name__ == "__main__":
    print(json.dumps(_child(*sys.argv[1:])))
