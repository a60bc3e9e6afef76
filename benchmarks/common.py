"""What every benchmark shares: rows and their table, contenders in turn, the data and models of `workload`.

How a kind of work gets its rows:

1. Write ``benchmarks/NAME.py`` with a function ``rows(bench: Bench) -> Iterable[Row]``, and put NAME into ``WORK``.
2. A contender is a function that takes a size (steps, prompts, pairs) and returns the seconds that the work took.
   Give all of a row's contenders to ``bench.alternate``: it runs each once at size 1 to warm up, then all of them in
   turn, ``bench.repeats`` times, in this one process, and returns a list of seconds for each.
3. Make rows with ``Row.faster(work, ours, peer, goal=..., note=...)``. The ratio is the median of the rounds' ratios,
   its spread their smallest and largest. ``Row.smaller`` is for what must be at most so much of the peer's (memory);
   ``Row.share`` for a share of something; ``Row.missing`` says why there is no measurement.
4. Import peers inside functions and yield ``Row.missing`` where one is not installed. With ``bench.quick`` use the
   smallest size that still runs every line.

`rows` are shown as they come. What ``PLANNED`` lists is shown as not built where its file is not there.
"""

from __future__ import annotations

import json
import logging
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedTokenizerFast

from benchmarks.workload import MAX_LENGTH, SHAPES, generated, make_model, texts
from prefiere.data import formats
from prefiere.data.schema import PreferencePair
from prefiere.demo.build import make_tokenizer
from prefiere.tokens.encoder import Encoder
from prefiere.tokens.groups import GroupStore, GroupWriter, PromptGroup
from prefiere.tokens.truncation import EncodeReport, Truncation

WORK = ("dpo", "memory", "roles", "peak", "scale", "reward", "data", "sampling", "rl", "real")
"""The files of this folder that measure something, in the order of the table."""
PARTS = ("updates", "first", "share", "peak")
"""What the kind real measures, in the order of the table."""
PLANNED: dict[str, list[tuple[str, float]]] = {}

Seconds = list[float]
Contender = Callable[[int], float]


def write_groups(groups: Iterable[PromptGroup], k: int, folder: Path) -> None:
    """Write groups of k completions each into a folder, for `GroupStore.open`."""
    with GroupWriter(folder, k) as writer:
        for group in groups:
            writer.add(group)


@dataclass(frozen=True)
class Row:
    """One line of the table. ratio, low, high: how many times better the peer is beaten (at least ``goal``), or what
    share of the peer's, or of a peak, is taken (``goal_is``: at least or at most)."""

    work: str
    goal: float | None = None
    goal_is: Literal["at least", "at most"] = "at least"
    ours: float | None = None
    peer: float | None = None
    unit: str = "s"
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    note: str = ""

    @classmethod
    def faster(cls, work: str, ours: Seconds, peer: Seconds, *, goal: float | None, note: str = "") -> Row:
        """How many times faster than the peer, from rounds of seconds."""
        ratios = [p / o for o, p in zip(ours, peer, strict=True)]
        return cls(
            work, goal, "at least", statistics.median(ours), statistics.median(peer), "s", *_spread(ratios), note
        )

    @classmethod
    def smaller(
        cls, work: str, ours: Sequence[float], peer: Sequence[float], *, goal: float | None, unit: str, note: str = ""
    ) -> Row:
        """What share of the peer's is taken."""
        ratios = [o / p for o, p in zip(ours, peer, strict=True)]
        return cls(
            work, goal, "at most", statistics.median(ours), statistics.median(peer), unit, *_spread(ratios), note
        )

    @classmethod
    def share(
        cls, work: str, ours: Sequence[float], whole: Sequence[float], *, goal: float | None, unit: str, note: str = ""
    ) -> Row:
        """What share of a whole is reached."""
        ratios = [o / w for o, w in zip(ours, whole, strict=True)]
        return cls(
            work, goal, "at least", statistics.median(ours), statistics.median(whole), unit, *_spread(ratios), note
        )

    @classmethod
    def missing(cls, work: str, goal: float | None, why: str) -> Row:
        """A row that was not measured, and why."""
        return cls(work, goal, note=why)

    @property
    def met(self) -> bool | None:
        """Whether the goal is reached; None without a goal or a measurement."""
        if self.ratio is None or self.goal is None:
            return None
        return self.ratio >= self.goal if self.goal_is == "at least" else self.ratio <= self.goal


def _spread(ratios: Sequence[float]) -> tuple[float, float, float]:
    return statistics.median(ratios), min(ratios), max(ratios)


HEADER = "| work | prefiere | peer | ratio (spread) | goal | met | note |\n| --- | --- | --- | --- | --- | --- | --- |"


def line(row: Row) -> str:
    """A row in Markdown."""

    def number(x: float | None, unit: str) -> str:
        return "" if x is None else f"{x:,.0f} {unit}" if x >= 100 else f"{x:.3g} {unit}"

    ratio = "" if row.ratio is None else f"{row.ratio:.2f} ({row.low:.2f} to {row.high:.2f})"
    goal = "" if row.goal is None else f"{row.goal_is} {row.goal:g}"
    met = {True: "yes", False: "no", None: "not measured" if row.ours is None else ""}[row.met]
    cells = [row.work, number(row.ours, row.unit), number(row.peer, row.unit), ratio, goal, met, row.note]
    return f"| {' | '.join(cells)} |"


@dataclass
class Bench:
    """One run of the benchmarks: where its data comes from, how thorough it is, where its files go.
    model: a real model's folder. parts: those of the kind real that are measured."""

    out: Path
    data: Path | None = None
    quick: bool = False
    repeats: int = 5
    shapes: tuple[str, ...] = tuple(SHAPES)
    model: Path | None = None
    parts: tuple[str, ...] = PARTS
    made: dict[str, Any] = field(default_factory=dict)

    def alternate(self, contenders: Mapping[str, Contender], size: int) -> dict[str, Seconds]:
        """Seconds of each contender in each round; within a round they run one after the other."""
        for run in contenders.values():
            run(1)
        seconds: dict[str, Seconds] = {name: [] for name in contenders}
        for _ in range(1 if self.quick else self.repeats):
            for name, run in contenders.items():
                seconds[name].append(run(size))
        return seconds

    def child(self, module: str, *arguments: str) -> Any:
        """What ``python -m benchmarks.MODULE ARGUMENTS`` prints as its last line (JSON), run on its own."""
        command = [sys.executable, "-m", f"benchmarks.{module}", *arguments]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        return json.loads(done.stdout.strip().splitlines()[-1])

    # -- the data -------------------------------------------------------------------------------------------------

    @cached_property
    def pairs(self) -> list[PreferencePair]:
        """The pairs of ``data``, or generated ones."""
        return list(formats.read(str(self.data), kind="pairs")) if self.data else generated(300 if self.quick else 2312)

    @property
    def data_name(self) -> str:
        """What the table says about its data."""
        name = self.data.name if self.data else "generated words with the lengths of hh-harmless"
        return f"{len(self.pairs):,} pairs ({name})"

    def tokenizer(self, vocabulary: int) -> PreTrainedTokenizerFast:
        """A byte-level BPE of at most so many entries fitted to the data, without a chat template."""
        if vocabulary not in self.made:
            every = (t for p in self.pairs for part in (p.prompt, p.chosen, p.rejected) for t in texts(part))
            fitted = make_tokenizer().train_new_from_iterator(every, vocabulary, show_progress=False)
            fitted.chat_template = None
            self.made[vocabulary] = fitted
        return self.made[vocabulary]

    def store(self, vocabulary: int) -> GroupStore:
        """The pairs as token ids on disk: made once, by the first process that asks."""
        folder = self.out / "stores" / str(vocabulary)
        if not folder.is_dir():
            tokenizer = self.tokenizer(vocabulary)
            encoder = Encoder(tokenizer, Truncation(MAX_LENGTH), eos_ids=[tokenizer.eos_token_id])
            folder.mkdir(parents=True)
            write_groups(encoder.encode(self.pairs, EncodeReport()), 2, folder)
        return GroupStore.open(folder, 2)

    def folder(self, shape: str) -> Path:
        """A model of random weights and its tokenizer as a transformers folder."""
        folder = self.out / "models" / shape
        if not (folder / "config.json").is_file():
            tokenizer = self.tokenizer(SHAPES[shape].words)
            make_model(shape, tokenizer).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        return folder


def products() -> torch.dtype:
    """What a CPU multiplies in: bf16 where it has instructions for it."""
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32


def clock() -> float:
    """Seconds on a clock that only goes forward, when a GPU that is used has done what it was told."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def quiet() -> None:
    """Peers and libraries say nothing while they are measured, and look for no network."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1"}
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
