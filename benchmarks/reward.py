"""A reward model's updates against TRL's RewardTrainer, on the same token ids in the same batches."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from benchmarks.common import Bench, Row, clock
from benchmarks.contenders import BUDGET, Apart, installed, stopwatch
from benchmarks.workload import BATCH, SHAPES, window
from prefiere.algorithms.reward import Scores
from prefiere.models.classifier import load_reward
from prefiere.models.source import find_model
from prefiere.settings import Reward
from prefiere.tokens.groups import GroupStore
from prefiere.train.engine import Engine
from prefiere.train.host import apply_products, choose_products, keep_few_kernels, keep_freed_memory
from prefiere.train.optimizer import make_optimizer, make_scheduler
from prefiere.world import World

GOAL = 3.0


def rows(bench: Bench) -> Iterable[Row]:
    """One row: full training in bf16, in random batches."""
    shape, steps = ("tiny", 1) if bench.quick else ("10m", 3)
    title = f"reward-model step, {SHAPES[shape].title}, bf16, full; TRL's RewardTrainer"
    if not installed():
        yield Row.missing(title, GOAL, "TRL is not installed")
        return
    folder, store = bench.folder(shape), bench.store(SHAPES[shape].words)
    batches = window(store, steps, grouped=False)
    peers = Apart({"TRL": (Trl, {"folder": folder, "store": store, "batches": batches, "scratch": bench.out})})
    mine = Ours(folder, store, batches)
    seconds = bench.alternate({"ours": mine.train, "TRL": peers.call("TRL", "train")}, steps)
    peers.close()
    note = f"window of {BATCH * steps} pairs, no checkpointing"
    yield Row.faster(title, seconds["ours"], seconds["TRL"], goal=GOAL, note=note)


class Ours:
    """prefiere's engine on a window of batches."""

    def __init__(self, folder: Path, store: GroupStore, batches: list[np.ndarray]):
        keep_freed_memory(torch.device("cpu"))
        keep_few_kernels(torch.device("cpu"))
        settings = Reward(model=str(folder), data="", out="", learning_rate=1e-6)
        trunk, _ = load_reward(find_model(folder), compute=torch.bfloat16, adapter=None, packed=True)
        apply_products(trunk, str(choose_products(trunk.device, torch.bfloat16).value))
        optimizer = make_optimizer(trunk, settings, 1e-6, 1e-6)
        self.engine = Engine(
            trunk, optimizer, make_scheduler(optimizer, settings, 1000), world=World.open(cpu=True),
            compute=torch.bfloat16, max_grad_norm=settings.max_grad_norm, budget=BUDGET, adapt=False,
        )  # fmt: skip
        self.store, self.batches = store, batches

    def train(self, steps: int) -> float:
        """Seconds of so many updates."""
        began = clock()
        for members in self.batches[:steps]:
            self.engine.update(self.store, members, Scores())
        return clock() - began


class Trl:
    """TRL's RewardTrainer on the same batches of the same token ids, in the order given."""

    def __init__(self, folder: Path, store: GroupStore, batches: list[np.ndarray], *, scratch: Path):
        import datasets
        from transformers import AutoModelForSequenceClassification, AutoTokenizer
        from transformers.utils import logging
        from trl import RewardConfig, RewardTrainer

        datasets.disable_progress_bars()
        logging.set_verbosity_error()

        pairs = [store[int(i)] for i in np.concatenate(batches)]
        columns = {
            name: [[*g.prompt.tolist(), *g.completions[i].tolist()] for g in pairs]
            for i, name in enumerate(("chosen_ids", "rejected_ids"))
        }
        arguments = RewardConfig(
            output_dir=str(scratch / "trl-reward"), per_device_train_batch_size=BATCH, max_length=1024, bf16=True,
            use_cpu=True, gradient_checkpointing=False, report_to=[], save_strategy="no", max_steps=len(batches),
            train_sampling_strategy="sequential", disable_tqdm=True, learning_rate=1e-6, disable_dropout=True,
        )  # fmt: skip
        self.watch = stopwatch()
        self.trainer = RewardTrainer(
            AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1), args=arguments,
            train_dataset=datasets.Dataset.from_dict(columns), callbacks=[self.watch],
            processing_class=AutoTokenizer.from_pretrained(folder),
        )  # fmt: skip

    def train(self, steps: int) -> float:
        """Seconds of so many updates."""
        self.trainer.args.max_steps = steps
        with contextlib.redirect_stdout(io.StringIO()):
            self.trainer.train()
        return self.watch.seconds
