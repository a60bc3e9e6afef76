"""Who is measured at DPO: prefiere as it trains, prefiere's own plain path, and TRL under several settings."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import clock, quiet
from benchmarks.workload import BATCH
from prefiere.algorithms.dpo import Pairs
from prefiere.models.adapter import Adapter
from prefiere.models.load import load_policy
from prefiere.models.reference import sequence_logps
from prefiere.models.source import config_of, find_model
from prefiere.objectives.preference import LOSSES
from prefiere.plan.choices import choose_budget
from prefiere.plan.device import Device
from prefiere.settings import DPO
from prefiere.tokens.groups import GroupStore
from prefiere.train.engine import Engine
from prefiere.train.host import apply_products, choose_products, keep_few_kernels, keep_freed_memory
from prefiere.train.optimizer import make_optimizer, make_scheduler
from prefiere.world import World

LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
BUDGET = 4096
"""Tokens of a micro-batch, unless a benchmark asks for what a run takes by itself (`own_budget`)."""
LIBRARY_SPINCOUNT = "300000"
"""What libgomp does by itself."""


def own_budget(folder: Path, dtype: torch.dtype) -> int:
    """Tokens of a micro-batch that a run of this model takes by itself here."""
    settings, device = DPO(model=str(folder), data="", out=""), Device.of(torch.device("cpu"))
    return int(choose_budget(settings, device, config_of(find_model(folder)), dtype).value)


class Ours:
    """prefiere's engine on a window of batches."""

    def __init__(
        self, folder: Path, store: GroupStore, batches: list[np.ndarray], *, lora: bool, packed: bool = True,
        compute: torch.dtype | None = torch.bfloat16, budget: int = BUDGET,
    ):  # fmt: skip
        keep_freed_memory(torch.device("cpu"))
        keep_few_kernels(torch.device("cpu"))
        settings = DPO(model=str(folder), data="", out="", learning_rate=1e-6)
        adapter = Adapter.lora(r=16, alpha=32, dropout=0.0, targets="all-linear", dora=False, rslora=False)
        self.trunk, _ = load_policy(
            find_model(folder), compute=compute or torch.float32, adapter=adapter if lora else None, packed=packed
        )
        apply_products(self.trunk, str(choose_products(self.trunk.device, compute or torch.float32).value))
        optimizer = make_optimizer(self.trunk, settings, 1e-6, 1e-6)
        self.engine = Engine(
            self.trunk, optimizer, make_scheduler(optimizer, settings, 1000), world=World.open(cpu=True),
            compute=compute, max_grad_norm=settings.max_grad_norm, budget=budget, adapt=False,
        )  # fmt: skip
        self.store, self.batches, self.lora = store, batches, lora
        self.goal = Pairs(LOSSES["sigmoid"], {"beta": 0.1}, 0.1, np.zeros((len(store), 2), np.float32))

    def reference(self, steps: int) -> float:
        """Seconds to compute the reference's log-probs of the window's first pairs, and keep them."""
        members = np.concatenate(self.batches[:steps])
        began = clock()
        self.goal.reference[members] = sequence_logps(
            self.trunk, self.store.select(members), budget=self.engine.budget, autocast=self.engine.compute
        )
        return clock() - began

    def train(self, steps: int) -> float:
        """Seconds of so many updates."""
        began = clock()
        for members in self.batches[:steps]:
            self.engine.update(self.store, members, self.goal)
        return clock() - began

    def epoch(self, steps: int) -> float:
        """Reference pass and updates."""
        return self.reference(steps) + self.train(steps)


def stopwatch() -> Any:
    """A callback for TRL's trainers: ``seconds`` from the first step's begin to the last one's end, without set-up."""
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        """Of one trainer."""

        seconds = 0.0

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.began = clock()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.seconds = clock() - self.began

    return Watch()


class Trl:
    """TRL's DPOTrainer on the same batches of the same token ids, in the order given.

    precompute: the reference's log-probs come from a pass before training, which `epoch` includes. pairs_per_forward
    below the batch size accumulates gradients. half_base: LoRA's frozen base is held in ``half``, the dtype of
    products. nf4: its linear layers are held in 4 bits, with double quantization, as in QLoRA.
    """

    def __init__(
        self, folder: Path, store: GroupStore, batches: list[np.ndarray], *, lora: bool, precompute: bool = False,
        checkpointing: bool = False, pairs_per_forward: int | None = None, half_base: bool = False, scratch: Path,
        batch: int = BATCH, cpu: bool = True, half: torch.dtype = torch.bfloat16, nf4: bool = False,
    ):  # fmt: skip
        import datasets
        from peft import LoraConfig
        from transformers import AutoModelForCausalLM, BitsAndBytesConfig
        from transformers.utils import logging
        from trl import DPOConfig, DPOTrainer

        datasets.disable_progress_bars()
        logging.set_verbosity_error()

        class TokenIds(DPOTrainer):
            """DPOTrainer refuses token ids; what it would make of text is left out, the rest is as it is."""

            def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
                return dataset

        order = np.concatenate(batches)
        rows = [store[int(i)] for i in order]
        columns = {
            "prompt_ids": [g.prompt.tolist() for g in rows],
            "chosen_ids": [g.completions[0].tolist() for g in rows],
            "rejected_ids": [g.completions[1].tolist() for g in rows],
        }
        if precompute:  # `reference` measures the pass that fills these
            columns |= {"ref_chosen_logps": [0.0] * len(rows), "ref_rejected_logps": [0.0] * len(rows)}
        held: dict[str, Any] = {}
        if nf4:
            bits = BitsAndBytesConfig(
                load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=half,
            )  # fmt: skip
            held = {"quantization_config": bits, "device_map": {"": "cpu" if cpu else 0}}
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=half if half_base else torch.float32, **held)
        pairs_per_forward = pairs_per_forward or batch
        self.accumulate = batch // pairs_per_forward
        arguments = DPOConfig(
            output_dir=str(scratch / "trl"), per_device_train_batch_size=pairs_per_forward,
            gradient_accumulation_steps=self.accumulate, max_length=1024, beta=0.1, use_cpu=cpu,
            bf16=half == torch.bfloat16, fp16=half == torch.float16,
            gradient_checkpointing=checkpointing, report_to=[], save_strategy="no", max_steps=len(batches),
            train_sampling_strategy="sequential", disable_tqdm=True, learning_rate=1e-6,
        )  # fmt: skip
        self.watch = stopwatch()
        self.trainer = TokenIds(
            model, args=arguments, train_dataset=datasets.Dataset.from_dict(columns), callbacks=[self.watch],
            processing_class=_tokenizer(folder), peft_config=LoraConfig(**LORA) if lora else None,
        )  # fmt: skip
        if precompute:  # as its constructor does where it fills the columns itself
            self.trainer.precompute_ref_logps = True
            self.trainer.ref_model = None

    def train(self, steps: int) -> float:
        """Seconds of so many updates."""
        self.trainer.args.max_steps = steps
        with contextlib.redirect_stdout(io.StringIO()):
            self.trainer.train()
        return self.watch.seconds

    def reference(self, steps: int) -> float:
        """Seconds of the precomputed reference of so many updates' pairs."""
        began = clock()
        for _, batch in zip(range(steps * self.accumulate), self.trainer.get_train_dataloader(), strict=False):
            self.trainer.compute_ref_log_probs(self.trainer.model, batch)
        return clock() - began

    def epoch(self, steps: int) -> float:
        """Precomputed reference and updates."""
        return self.reference(steps) + self.train(steps)


def _tokenizer(folder: Path) -> Any:
    """TRL asks for one, if only for its padding id."""
    from transformers import AutoTokenizer

    from prefiere.demo.build import make_tokenizer

    return AutoTokenizer.from_pretrained(folder) if (folder / "tokenizer.json").is_file() else make_tokenizer()


def installed() -> bool:
    """Whether TRL is there to be measured against."""
    import importlib.util

    return importlib.util.find_spec("trl") is not None


class Apart:
    """Contenders that live in one process of their own, so that what prefiere sets for its process is not theirs.

    ``make``: a class for each name, with its keyword arguments. Attributes of this are their methods, called by name.
    """

    def __init__(self, make: dict[str, tuple[type, dict[str, Any]]]):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make), daemon=True)
        before = os.environ.get("GOMP_SPINCOUNT", "")
        os.environ["GOMP_SPINCOUNT"] = LIBRARY_SPINCOUNT
        self._process.start()
        os.environ["GOMP_SPINCOUNT"] = before

    def call(self, name: str, method: str) -> Callable[[int], float]:
        """A contender: the method of the named object, called over there."""

        def run(size: int) -> float:
            self._pipe.send((name, method, size))
            return float(self._pipe.recv())

        return run

    def close(self) -> None:
        """End the process."""
        self._pipe.send(None)
        self._process.join()


def _serve(pipe: Any, make: dict[str, tuple[type, dict[str, Any]]]) -> None:
    quiet()
    made = {name: kind(**arguments) for name, (kind, arguments) in make.items()}
    while (asked := pipe.recv()) is not None:
        name, method, size = asked
        pipe.send(getattr(made[name], method)(size))
