"""A whole step of GRPO and of RLOO (sample, score, measure, learn) against TRL's trainers, and of PPO with four roles
against GRPO.

Both sides sample for the same prompts until the last token that is allowed (random weights end nothing), score with the
same function of token ids, and charge the KL to the reference. TRL runs without checkpointing, in the faster of `WAYS`,
which its warm-up tells; it lives in a process of its own. Products are in bf16 where the processor has them, else
everything is in fp32, on both sides.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import Bench, Contender, Row, clock, products
from benchmarks.contenders import LORA, Apart, installed, stopwatch
from benchmarks.peak import QUICK, matmul_peak, step_flops
from benchmarks.roles import reward_model
from benchmarks.workload import SHAPES
from prefiere.algorithms.on_policy import OnPolicy
from prefiere.tokens.groups import PromptGroup
from prefiere.tokens.pack import pack

PROMPTS, ANSWERS, TOKENS, LONGEST = 16, 4, 64, 256
STEPS = {"10m": 2}
"""Steps of a round, where it is more than one."""
WAYS = {"in one forward": PROMPTS * ANSWERS, "two prompts a forward": 2 * ANSWERS}
"""Answers in one forward of TRL's."""
CASES = [("grpo", "60m", False), ("grpo", "60m", True), ("grpo", "10m", False), ("rloo", "60m", False)]
GOAL = 6.0
PPO_GOAL = 1.5


def rows(bench: Bench) -> Iterable[Row]:
    """GRPO and RLOO against TRL, then PPO against GRPO."""
    half = products()
    for method, shape, lora in [("grpo", "tiny", False)] if bench.quick else CASES:
        if bench.quick or shape in bench.shapes:
            yield from _against_trl(bench, method, shape, lora, half)
    yield _against_grpo(bench, "tiny" if bench.quick else "60m", half)


def distinct(completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float]:
    """A reward that costs nothing: the share of an answer's tokens that differ."""
    return [len(set(ids)) / max(1, len(ids)) for ids in completion_ids]


def _title(name: str, shape: str, lora: bool, half: torch.dtype) -> str:
    dtype = {torch.bfloat16: "bf16", torch.float32: "fp32"}[half]
    answers = f"{PROMPTS} prompts x {ANSWERS} answers x {TOKENS} tokens"
    return f"{name} step, {SHAPES[shape].title}, {dtype}, {'LoRA' if lora else 'full'}, {answers}"


def _against_trl(bench: Bench, method: str, shape: str, lora: bool, half: torch.dtype) -> Iterable[Row]:
    folder, prompts = bench.folder(shape), _prompts(bench, shape)
    work = f"{_title(method.upper(), shape, lora, half)}, against TRL"
    if not installed():
        yield Row.missing(work, GOAL, "TRL is not installed")
        return
    mine = ours(method, folder, prompts, bench.out / f"{method}-{shape}-{lora}", lora=lora, half=half)
    seconds: dict[str, float] = {}
    same = {"method": method, "folder": folder, "prompts": prompts, "lora": lora, "half": half, "scratch": bench.out}
    peers = Apart({way: (Trl, {**same, "answers": n}) for way, n in WAYS.items()})
    best: list[str] = []
    peaks: list[float] = []

    def peak(_: int) -> float:
        peaks.append(matmul_peak(half, sizes=QUICK if bench.quick else None))
        return 1.0

    steps = STEPS.get(shape, 1)
    t = bench.alternate({"ours": _steps(mine, seconds), "trl": _fastest(peers, best), "peak": peak}, steps)
    peers.close()
    each = {name: [x / steps for x in found] for name, found in t.items()}
    parts = ", ".join(f"{name} {value:.2f}" for name, value in seconds.items())
    products = _flops(mine, lora) / float(np.median(peaks[1:])) / 1e9
    most = f"were products at the matmul peak all there is: {float(np.median(each['trl'])) / products:.1f}"
    yield Row.faster(work, each["ours"], each["trl"], goal=GOAL, note=f"of ours (s): {parts}; TRL {best[0]}; {most}")


def _fastest(peers: Apart, best: list[str]) -> Contender:
    """TRL, which warms up in every way of `WAYS` and goes on in the fastest; ``best`` gets its name."""

    def run(steps: int) -> float:
        seconds = {way: peers.call(way, "train")(steps) for way in best or WAYS}
        best[:] = [min(seconds, key=lambda way: seconds[way])]
        return seconds[best[0]]

    return run


def _flops(algorithm: OnPolicy, lora: bool) -> float:
    """Operations of the products of a step: the answers are drawn, measured by the reference, and learnt from."""
    answer = np.zeros(TOKENS, np.int32)
    answers, masks = (answer,) * ANSWERS, (answer == 0,) * ANSWERS
    batch = pack([PromptGroup(ids, answers, masks) for ids in algorithm.prompts.ids])
    config = algorithm.session.trunk.lm.config
    return 2 * step_flops(config, batch, backward=False) + step_flops(config, batch, weights=not lora)


def _against_grpo(bench: Bench, shape: str, half: torch.dtype) -> Row:
    """Answers and reward model are the same; PPO has a critic besides."""
    folder, prompts = bench.folder(shape), _prompts(bench, shape)
    reward = reward_model(folder, bench.out / f"reward-{shape}")
    given: dict[str, Any] = {"lora": True, "half": half, "reward": str(reward)}
    made = {m: ours(m, folder, prompts, bench.out / f"{m}-roles-{shape}", **given) for m in ("ppo", "grpo")}
    t = bench.alternate({m: _steps(a, {}) for m, a in made.items()}, STEPS.get(shape, 1))
    work = f"{_title('PPO', shape, True, half)}, four roles: share of GRPO's time"
    return Row.smaller(work, t["ppo"], t["grpo"], goal=PPO_GOAL, unit="s", note="one pass each, one reward model")


def _prompts(bench: Bench, shape: str) -> Path:
    """A JSONL of prompts of evenly spread ranks of length, none longer than `LONGEST` tokens."""
    path = bench.out / f"prompts-{shape}.jsonl"
    tokenizer, store = bench.tokenizer(SHAPES[shape].words), bench.store(SHAPES[shape].words)
    short = [
        i for i in np.argsort([len(g.prompt) for g in store], kind="stable") if len(store[int(i)].prompt) <= LONGEST
    ]
    chosen = [short[int(k)] for k in np.linspace(0, len(short) - 1, PROMPTS + 2)[1:-1]]
    texts = [tokenizer.decode(store[int(i)].prompt.tolist()) for i in chosen]
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts), encoding="utf-8")
    return path


# -- who is measured --------------------------------------------------------------------------------------------------


def ours(
    method: str, model: Path, prompts: Path, out: Path, *, lora: bool, half: torch.dtype,
    reward: str = f"{__name__}:distinct",
) -> OnPolicy:  # fmt: skip
    """A run of prefiere's, ready for its first step."""
    from importlib import import_module

    from prefiere.console import Display
    from prefiere.methods import METHODS
    from prefiere.plan.device import Device
    from prefiere.plan.plan import resolve
    from prefiere.run import Run
    from prefiere.train.setup import build_session
    from prefiere.world import World

    charged = {"kl_loss_coef": 0.04} if method == "grpo" else {"kl_coef": 0.04}
    settings = METHODS[method].settings(
        model=str(model), data=str(prompts), out=str(out), reward=reward, lora=lora, batch_size=PROMPTS,
        dtype=str(half).removeprefix("torch."), max_new_tokens=TOKENS, num_ppo_epochs=1, learning_rate=1e-6,
        eval_size=0, sample_steps=0, max_steps=1000, num_generations=ANSWERS, **charged,
    )  # fmt: skip
    world = World.open(cpu=True)
    session = build_session(
        resolve(settings, Device.of(world.device)), Run.create(settings.out), Display(quiet=True), world=world
    )
    algorithm: OnPolicy = import_module(METHODS[method].home).build(session)
    assert algorithm.examples == PROMPTS, "a step is of all prompts"
    return algorithm


def _steps(algorithm: OnPolicy, seconds: dict[str, float]) -> Contender:
    """Its steps, one after the other; ``seconds`` gets what the last one's parts took."""
    done = 0

    def run(steps: int) -> float:
        nonlocal done
        began = clock()
        for _ in range(steps):
            update = algorithm.step(done)
            done += 1
        seconds.update((n.removeprefix("time/"), m.mean) for n, m in update.metrics.items() if n.startswith("time/"))
        return clock() - began

    return run


class Trl:
    """TRL's GRPOTrainer or RLOOTrainer. answers: how many of them one forward takes; gradients accumulate to a step."""

    def __init__(
        self, method: str, folder: Path, prompts: Path, *, lora: bool, half: torch.dtype, answers: int, scratch: Path
    ):
        import datasets
        import trl
        from peft import LoraConfig
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging

        datasets.disable_progress_bars()
        logging.set_verbosity_error()

        arguments = getattr(trl, f"{method.upper()}Config")(
            output_dir=str(scratch / "trl"), per_device_train_batch_size=answers,
            gradient_accumulation_steps=PROMPTS * ANSWERS // answers, num_generations=ANSWERS,
            max_completion_length=TOKENS, temperature=1.0, beta=0.04, num_iterations=1, use_cpu=True,
            bf16=half == torch.bfloat16, gradient_checkpointing=False, report_to=[], save_strategy="no",
            disable_tqdm=True, learning_rate=1e-6, logging_steps=1000,
        )  # fmt: skip
        self.watch = stopwatch()
        with contextlib.redirect_stdout(io.StringIO()):
            self.trainer = getattr(trl, f"{method.upper()}Trainer")(
                AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), reward_funcs=distinct,
                args=arguments, train_dataset=datasets.Dataset.from_json(str(prompts)), callbacks=[self.watch],
                processing_class=AutoTokenizer.from_pretrained(folder, padding_side="left"),
                peft_config=LoraConfig(**LORA) if lora else None,
            )  # fmt: skip

    def train(self, steps: int) -> float:
        """Seconds of so many steps."""
        self.trainer.args.max_steps = steps
        with contextlib.redirect_stdout(io.StringIO()):
            self.trainer.train()
        return float(self.watch.seconds)
