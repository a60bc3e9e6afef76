"""From text to planned updates: against TRL's preparation, from the cache, and a million pairs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks.common import Bench, Row, clock, write_groups
from benchmarks.memory import peak_mb
from benchmarks.workload import BATCH, MAX_LENGTH
from prefiere.cache import entry
from prefiere.data.audit import split_by_prompt
from prefiere.data.schema import PreferencePair
from prefiere.tokens.encoder import Encoder
from prefiere.tokens.groups import GroupStore, PromptGroup
from prefiere.tokens.pack import pack
from prefiere.tokens.schedule import members, split, updates_per_epoch
from prefiere.tokens.template import hh_transcript, messages
from prefiere.tokens.truncation import EncodeReport, Truncation
from prefiere.train.host import leave_imports_alone

MILLION = 1_000_000
WORDS = 8192


def rows(bench: Bench) -> Iterable[Row]:
    """Preparation against TRL's, and what does not depend on how many pairs there are."""
    leave_imports_alone()  # as the command does; TRL's preparation runs in this process as well
    work = f"tokenizing and planning {len(bench.pairs):,} pairs against TRL's preparation"
    ours = {"once": _ours(bench, kept=False), "kept": _ours(bench, kept=True)}
    try:
        peers = {f"TRL {n or 1}": _trl(bench, n) for n in (None, 2)}
    except ImportError:
        yield Row.missing(work, 5.0, "trl is not installed")
        return
    t = bench.alternate({**ours, **peers}, len(bench.pairs))
    yield Row.faster(work, t["once"], t["TRL 1"], goal=5.0, note="TRL in one process")
    yield Row.faster(f"{work}, 2 processes", t["once"], t["TRL 2"], goal=5.0, note="dataset_num_proc=2")
    yield Row.faster(
        "the same again, ids kept from before, against TRL's first preparation", t["kept"], t["TRL 1"], goal=None,
        note="the entry is verified, read and planned",
    )  # fmt: skip
    n = 20_000 if bench.quick else MILLION
    bench.child("data", "build", str(n), str(bench.out))
    found = bench.child("data", "measure", str(n), str(bench.out))
    for name, unit in (
        ("open", "s"),
        ("plan", "s"),
        ("stream", "s"),
        ("memory", "MB"),
        ("streamed", "MB"),
        ("file", "MB"),
    ):
        yield Row(f"{n:,} pairs: {TITLES[name]}", ours=found[name], unit=unit, note="no peer; one run")


TITLES = {
    "open": "verify, read and split by prompt",
    "plan": "plan every update of an epoch of 32",
    "stream": "read and pack every update of the epoch",
    "memory": "resident memory that opening and planning add",
    "streamed": "the same after streaming",
    "file": "the file",
}


def _strings(pair: PreferencePair) -> dict[str, str]:
    """A pair as plain text, which TRL takes as well."""
    said = [" " + messages(a, "assistant")[0].content.strip() for a in (pair.chosen, pair.rejected)]
    prompt = hh_transcript([m.as_dict() for m in messages(pair.prompt, "user")], None, ask=True)
    return {"prompt": prompt, "chosen": said[0], "rejected": said[1]}


def _ours(bench: Bench, *, kept: bool) -> Any:
    tokenizer = bench.tokenizer(WORDS)
    records = [PreferencePair(**_strings(p)) for p in bench.pairs]
    os.environ["PREFIERE_CACHE"] = str(bench.out / "cache")

    def run(size: int) -> float:
        os.environ["TOKENIZERS_PARALLELISM"] = "true"  # its threads; TRL forks, and has processes instead
        began = clock()
        encoder = Encoder(tokenizer, Truncation(MAX_LENGTH), eos_ids=[tokenizer.eos_token_id])
        with entry("bench", {"ids": encoder.key(), "size": size, "kept": kept}) as held:
            if not held.whole:
                with held.making() as (folder, _):
                    write_groups(encoder.encode(records[:size], EncodeReport()), 2, folder)
        _plan(GroupStore.open(held.folder, 2), BATCH)
        took = clock() - began
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        if not kept:
            shutil.rmtree(held.folder)
        return took

    return run


def _plan(store: GroupStore, batch: int) -> None:
    for step in range(updates_per_epoch(len(store), batch)):
        split(members(len(store), batch, seed=0, step=step), store.lengths, budget=4096)


def _trl(bench: Bench, processes: int | None) -> Any:
    import datasets
    from trl import DPOConfig, DPOTrainer

    datasets.disable_caching()
    datasets.disable_progress_bars()
    texts, tokenizer = [_strings(p) for p in bench.pairs], bench.tokenizer(WORDS)
    arguments = DPOConfig(
        output_dir=str(bench.out / "trl"), max_length=MAX_LENGTH, dataset_num_proc=processes, use_cpu=True,
        bf16=False, report_to=[],
    )  # fmt: skip

    def run(size: int) -> float:
        data = datasets.Dataset.from_list(texts[: max(size, processes or 1)])
        began = clock()
        trainer: Any = SimpleNamespace(_tokenizer=tokenizer)
        DPOTrainer._prepare_dataset(trainer, data, tokenizer, arguments, "train")
        return clock() - began

    return run


# -- a million pairs ----------------------------------------------------------------------------------------------


def _random(n: int) -> Iterator[PromptGroup]:
    """Pairs with the lengths of hh-harmless."""
    rng = np.random.default_rng(0)
    ids = rng.integers(6, WORDS, 1 << 20).astype(np.int32)
    scored = np.ones(1024, bool)
    sizes = [np.clip(rng.lognormal(m, s, n), 2, 900).astype(int) for m, s in ((4.43, 0.98), (3.37, 0.87), (3.57, 0.92))]
    for i, (p, a, b) in enumerate(zip(*(x.tolist() for x in sizes), strict=True)):
        at = int(i * 7919 % (len(ids) - 3000))
        parts = ids[at : at + p], ids[at + p : at + p + a], ids[at + p + a : at + p + a + b]
        yield PromptGroup(parts[0], parts[1:], (scored[:a], scored[:b]), source=f"pairs.jsonl:{i}")


def _entry(n: int, out: str) -> Path:
    os.environ["PREFIERE_CACHE"] = str(Path(out) / "cache")
    with entry("bench", {"n": n}) as held:
        if not held.whole:
            with held.making() as (folder, _):
                write_groups(_random(n), 2, folder)
    return held.folder


def _measure(n: int, out: str) -> dict[str, float]:
    """In a process of its own, which finds the entry made."""
    before, began = peak_mb(), clock()
    folder = _entry(n, out)
    store = GroupStore.open(folder, 2)
    train = store.select(split_by_prompt(store.prompt_keys, 512, 0)[0])
    opened = clock()
    _plan(train, 32)
    planned, ready = clock(), peak_mb()
    read = 0
    for step in range(updates_per_epoch(len(train), 32)):
        read += len(pack([train[int(i)] for i in members(len(train), 32, seed=0, step=step)]).tokens_T)
    streamed = clock()
    assert read == int(train.lengths.sum())
    size = sum(f.stat().st_size for f in folder.iterdir()) / 2**20
    shutil.rmtree(folder)
    return {
        "open": opened - began, "plan": planned - opened, "stream": streamed - planned, "memory": ready - before,
        "streamed": peak_mb() - before, "file": size,
    }  # fmt: skip


if __name__ == "__main__":
    import json
    import sys

    what, n, out = sys.argv[1:]
    print(json.dumps(_measure(int(n), out) if what == "measure" else str(_entry(int(n), out))))
