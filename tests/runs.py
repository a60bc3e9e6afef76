"""Tiny models, data and runs on disk for tests of training."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import processors
from transformers import BertConfig, BertModel, GenerationConfig

import tiny
from prefiere.console import Display
from prefiere.launch import launch
from prefiere.methods import METHODS
from prefiere.metrics import BOUNDS, COLUMNS, HELD_OUT
from prefiere.plan.device import Device
from prefiere.plan.plan import Plan, resolve
from prefiere.run import Run
from prefiere.settings import DPO, PolicyGradient, Reward, Settings
from prefiere.tokens.pack import PackedBatch, pack
from prefiere.train.engine import Engine
from prefiere.train.setup import Session, build_session
from prefiere.world import World
from random_groups import store

WORDS = "el perro es un animal que vive en la casa con gente y come pan the dog is a friend of man".split()  # noqa: SIM905


def model_folder(folder: Path, *, family: Any = "llama", chat: bool = True, seed: int = 0, **options: Any) -> Path:
    """A random tiny model with its tokenizer, as a transformers folder."""
    tokenizer = tiny.tokenizer("bpe", chat)
    end = tokenizer.eos_token_id
    tiny.model(family, vocab_size=len(tokenizer), seed=seed, eos_token_id=end, **options).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def ragged_folder(folder: Path, *, chat: bool = True, **options: Any) -> Path:
    """Such a model, whose sampled answers end early and at different lengths: every fifth token ends one."""
    model_folder(folder, chat=chat, **options)
    tokenizer = tiny.tokenizer("bpe", chat)
    ends = [tokenizer.eos_token_id, *range(10, len(tokenizer), 5)]
    GenerationConfig(eos_token_id=ends, pad_token_id=tokenizer.pad_token_id).save_pretrained(folder)
    return folder


def encoder_folder(folder: Path, *, seed: int = 0) -> Path:
    """A random tiny BERT with a tokenizer that pairs two texts, as a transformers folder."""
    tokenizer = tiny.tokenizer("wordpiece")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    tokenizer.add_special_tokens({"cls_token": "<s>", "sep_token": "</s>"})
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=64, initializer_range=0.2, pad_token_id=0, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"  # as BERT's own class has it
    told = json.loads(path.read_text()) | {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}
    path.write_text(json.dumps(told))
    return folder


def sentence(g: torch.Generator, longest: int = 10) -> str:
    """A few random words."""
    n = int(torch.randint(1, longest, (1,), generator=g))
    return " ".join(WORDS[int(i)] for i in torch.randint(0, len(WORDS), (n,), generator=g))


def pairs_file(path: Path, n: int = 24, seed: int = 0) -> Path:
    """n preference pairs over n prompts; the chosen answers name the dog, the rejected ones do not."""
    g = torch.Generator().manual_seed(seed)
    rows = [
        {"prompt": f"{i} {sentence(g)}?", "chosen": f"perro {sentence(g)}.", "rejected": f"pan {sentence(g)}."}
        for i in range(n)
    ]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def settings(tmp: Path, method: type[Settings] = DPO, **options: Any) -> Any:
    """Settings of a short run on a tiny model and 24 pairs."""
    model, data = tmp / "model", tmp / "pairs.jsonl"
    if not model.exists():
        model_folder(model)
    if not data.exists():
        pairs_file(data)
    given: dict[str, Any] = {
        "model": str(model), "data": str(data), "out": str(tmp / "run"), "batch_size": 8, "max_steps": 4,
        "learning_rate": 1e-3, "eval_size": 6,
    }  # fmt: skip
    if method is not Reward:
        given |= {"max_new_tokens": 6, "sample_prompts": 4}
    return method(**{**given, **options})


def prompts_file(path: Path, n: int = 16, seed: int = 0) -> Path:
    """n prompts of different lengths, one a line."""
    g = torch.Generator().manual_seed(seed)
    path.write_text("".join(f"{i} {sentence(g)}?\n" for i in range(n)))
    return path


def policy_settings(tmp: Path, method: str = "ppo", **options: Any) -> PolicyGradient:
    """Settings of a short run that samples 16 answers a step from a tiny model, rewarded by a function."""
    model, data = tmp / "model", tmp / "prompts.txt"
    if not model.exists():
        ragged_folder(model)
    if not data.exists():
        prompts_file(data)
    given: dict[str, Any] = {
        "method": method, "model": str(model), "data": str(data), "out": str(tmp / "run"), "max_steps": 3,
        "reward": "rewarding:letters", "batch_size": 16 if method in ("ppo", "reinforce") else 4, "eval_size": 4,
        "num_generations": 1 if method in ("ppo", "reinforce") else 4, "learning_rate": 1e-3, "max_new_tokens": 8,
        "sample_prompts": 4,
    }  # fmt: skip
    if method == "ppo":
        given |= {"num_ppo_epochs": 2}
    made = METHODS[method].settings(**{**given, **options})
    assert isinstance(made, PolicyGradient)
    return made


def policy_session(tmp: Path, method: str = "ppo", **options: Any) -> Session:
    """The parts of such a run."""
    s = policy_settings(tmp, method, **options)
    run = Run.create(s.out)
    return built(s, run)


def session(tmp: Path, method: type[Settings] = DPO, **options: Any) -> Session:
    """The parts of such a run."""
    s = settings(tmp, method, **options)
    return built(s, Run.create(s.out))


def built(settings: Settings, run: Run) -> Session:
    """What a run of these settings is built of."""
    world = World.open()
    return build_session(resolve(settings, Device.of(world.device)), run, Display(quiet=True), world=world)


def planned(settings: Settings) -> Plan:
    """What such a run is decided to be."""
    return resolve(settings, Device.of(World.open().device))


def batch() -> PackedBatch:
    """Three groups of two completions, in ids that every tiny model has."""
    return pack(list(store(3, 2, prompt=12, completion=8)))


def resumed(settings: Settings) -> Session:
    """What a run that was broken off is built of, when it goes on."""
    world, run = World.open(), Run(settings.out)
    recorded = {c["name"]: c["value"] for c in run.environment["choices"]}
    return build_session(resolve(settings, Device.of(world.device), recorded), run, Display(quiet=True), world=world)


class Killed(BaseException):
    """Nothing of ours catches it: what a kill leaves behind."""


def kill(settings: Settings, after: int) -> None:
    """Run until so many updates are done, and break off at the next one as a kill would."""
    real = Engine.update

    def update(self: Engine, *args: Any) -> Any:
        if self.scheduler.last_epoch == after:
            raise Killed
        return real(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "update", update)
        with pytest.raises(Killed):
            launch(settings, display=Display(quiet=True))


def unknown_columns(rows: Iterable[Mapping[str, Any]]) -> set[str]:
    """Columns of a log that the table does not have, or not with ``eval_``, or not with bounds."""
    plain = {c.name for c in COLUMNS}
    held_out = {HELD_OUT + c.name for c in COLUMNS if c.held_out}
    measured = {c.name for c in COLUMNS if c.interval != "none"}
    measured |= {HELD_OUT + name for name in measured} & held_out
    allowed = plain | held_out | {name + end for name in measured for end in BOUNDS}
    one = re.compile(r"rewards/[^/]+/(mean|std)")
    return {one.sub(r"rewards/NAME/\1", key) for row in rows for key in row} - allowed


def weights(run: Run) -> dict[str, torch.Tensor]:
    """The tensors of a run's model or adapter."""
    name = "adapter_model.safetensors" if (run.model / "adapter_config.json").exists() else "model.safetensors"
    return load_file(run.model / name)


def rows_without_clock(run: Run) -> list[dict[str, Any]]:
    """What a run logged, less what depends on the clock."""
    clock = ("seconds", "tokens_per_second", "peak_memory_mb")
    return [{k: v for k, v in row.items() if k not in clock and k[:5] != "time/"} for row in run.metrics]


def assert_same_run(one: Run, two: Run, *, sources: bool = True) -> None:
    """Weights, rows but for the clock, and samples of both are equal to the last bit. sources: of pairs as well, what
    they are called."""
    a, b = weights(one), weights(two)
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name
    assert rows_without_clock(one) == rows_without_clock(two)
    assert one.samples == two.samples
    pairs = [[{k: v for k, v in row.items() if sources or k != "source"} for row in run.pairs] for run in (one, two)]
    assert pairs[0] == pairs[1]
