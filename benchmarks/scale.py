"""What a pair costs when the data grows from 1,000 to 100,000 pairs: preparation, reference and updates.

Each size runs in a process of its own and goes the way of ``prefiere dpo``: read the file, tokenize into the cache,
plan, compute the reference's log-probs of all pairs, then so many updates. The model is tiny, so that the cost of the
data shows.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from itertools import cycle, islice
from pathlib import Path

from benchmarks.common import Bench, Row, clock, quiet
from benchmarks.contenders import Ours
from benchmarks.memory import peak_mb
from benchmarks.workload import BATCH, MAX_LENGTH, write_pairs
from prefiere.console import Display
from prefiere.models.load import load_tokenizer
from prefiere.models.source import find_model
from prefiere.plan.examples import read_data
from prefiere.settings import DPO
from prefiere.tokens.encoder import Encoder
from prefiere.tokens.schedule import members, updates_per_epoch
from prefiere.tokens.truncation import Truncation

UPDATES = 30


def rows(bench: Bench) -> Iterable[Row]:
    """Milliseconds per pair and peak memory at both sizes."""
    small, large = (50, 200) if bench.quick else (1_000, 100_000)
    bench.folder("tiny")
    found = {}
    for n in (small, large):
        path = write_pairs(bench.out / f"pairs-{n}.jsonl", islice(cycle(bench.pairs), n))
        found[n] = bench.child("scale", str(path), str(bench.out))
    a, b = found[small], found[large]
    titles = {
        "prepare": "reading and tokenizing a pair",
        "reference": "the reference's log-probs of a pair",
        "plan": "planning an epoch, by pair",
        "update": f"an update of {BATCH} pairs",
    }
    note = "one run; peer: the small set"
    for name, title in titles.items():
        work = f"{title}, {large:,} pairs against {small:,}"
        yield Row.smaller(work, [1e3 * b[name]], [1e3 * a[name]], goal=1.2, unit="ms", note=note)
    work = f"peak memory, {large:,} pairs against {small:,}"
    yield Row.smaller(work, [b["peak"]], [a["peak"]], goal=1.2, unit="MB", note=note)


def _child(path: str, out: str) -> dict[str, float]:
    quiet()
    os.environ["PREFIERE_CACHE"] = f"{path}.cache"
    folder = Bench(Path(out)).folder("tiny")
    settings = DPO(model=str(folder), data=path, out="", max_length=MAX_LENGTH, sample_steps=0, template="never")
    tokenizer = load_tokenizer(find_model(folder))
    began = clock()
    eos_ids = [tokenizer.eos_token_id]
    encoder = Encoder(tokenizer, Truncation(MAX_LENGTH), eos_ids=eos_ids, template=settings.template)
    store = read_data(settings, encoder, "pairs", Display(quiet=True)).train
    prepared = clock() - began
    began = clock()
    batches = [members(len(store), BATCH, seed=0, step=i) for i in range(updates_per_epoch(len(store), BATCH))]
    planned = clock() - began
    ours = Ours(folder, store, batches, lora=False)
    ours.epoch(5)
    reference = ours.reference(len(batches))
    return {
        "prepare": prepared / len(store), "reference": reference / len(store), "plan": planned / len(store),
        "update": ours.train(UPDATES) / UPDATES, "peak": peak_mb(),
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(_child(*sys.argv[1:])))
