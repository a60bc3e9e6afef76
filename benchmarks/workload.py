"""What is worked on: pairs with the lengths of hh-harmless, models of random weights, windows of an epoch."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from prefiere.data.schema import PreferencePair
from prefiere.tokens.groups import GroupStore
from prefiere.tokens.template import messages

MAX_LENGTH = 1024
BATCH = 8


def texts(part: Any) -> list[str]:
    """The text of every message of a prompt or an answer."""
    return [m.content for m in messages(part, "user")]


@cache
def generated(n: int, seed: int = 0) -> list[PreferencePair]:
    """Pairs of random words: lengths are log-normal with the parameters of hh-harmless under a BPE of 8k, words follow
    Zipf's law."""
    rng = np.random.default_rng(seed)
    letters = list("abcdefghijklmnopqrstuvwxyz")
    words = np.asarray(["".join(rng.choice(letters, rng.integers(2, 8))) for _ in range(6000)])
    chance = 1 / np.arange(1, len(words) + 1)
    chance /= chance.sum()

    def text(mean: float, deviation: float) -> str:
        size = int(np.clip(rng.lognormal(mean, deviation), 2, 900))
        return " ".join(rng.choice(words, size, p=chance))

    return [
        PreferencePair(prompt=text(4.43, 0.98), chosen=" " + text(3.37, 0.87), rejected=" " + text(3.57, 0.92))
        for _ in range(n)
    ]


def write_pairs(path: Path, pairs: Iterable[PreferencePair]) -> Path:
    """Pairs as a JSONL file of plain strings that every tool reads."""
    with path.open("w", encoding="utf-8") as f:
        for p in pairs:
            parts = {n: "\n\n".join(texts(getattr(p, n))) for n in ("prompt", "chosen", "rejected")}
            f.write(json.dumps(parts) + "\n")
    return path


# -- the models -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """A model's name in the table, its BPE, its full vocabulary, and its configuration."""

    title: str
    words: int
    vocabulary: int
    config: dict[str, Any]


QWEN = {
    "hidden_size": 896, "intermediate_size": 4864, "num_attention_heads": 14, "num_key_value_heads": 2,
    "rope_theta": 1e6, "tie_word_embeddings": True,
}  # fmt: skip
SHAPES = {
    "10m": Shape(
        "10M Llama, 8k words", 8192, 8192,
        {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 4},
    ),
    "60m": Shape(
        "60M Llama, 32k words", 32768, 32768,
        {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8},
    ),
    "qwen": Shape("Qwen2.5-0.5B cut to 2 layers, 152k words", 32768, 151936, {**QWEN, "num_hidden_layers": 2}),
    "qwen-whole": Shape("Qwen2.5-0.5B, 24 layers, 152k words", 32768, 151936, {**QWEN, "num_hidden_layers": 24}),
    "tiny": Shape(
        "tiny Llama", 1024, 1024,
        {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2},
    ),
}  # fmt: skip


def make_model(shape: str, tokenizer: PreTrainedTokenizerFast) -> Any:
    """A model of random weights in fp32; the same every time."""
    s = SHAPES[shape]
    ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    fields = {"vocab_size": s.vocabulary, "max_position_embeddings": 2048, **s.config, **ends}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        qwen = shape.startswith("qwen")
        return Qwen2ForCausalLM(Qwen2Config(**fields)) if qwen else LlamaForCausalLM(LlamaConfig(**fields))


# -- a window that stands for an epoch --------------------------------------------------------------------------------


def lengths_of(store: GroupStore) -> np.ndarray:
    """int64 [n, 4]: tokens of prompt + longer answer, of the prompt, of the chosen and of the rejected answer."""
    prompt = np.asarray([len(g.prompt) for g in store])
    answers = np.asarray([[len(c) for c in g.completions] for g in store])
    return np.column_stack([prompt + answers.max(1), prompt, answers])


def window(store: GroupStore, steps: int, *, grouped: bool, tries: int = 3000) -> list[np.ndarray]:
    """``steps`` batches that stand for an epoch: of so many random draws the one whose padded, distinct and answer
    tokens are all closest to the epoch's mean. ``grouped``: batches of pairs next to each other in length."""
    lengths = lengths_of(store)
    n = len(store) // BATCH
    rng = np.random.default_rng(0)
    by_length = np.argsort(lengths[:, 0], kind="stable")[: n * BATCH].reshape(n, BATCH)

    def cost(batches: np.ndarray) -> np.ndarray:
        x = lengths[batches]
        distinct = x[..., 1:].sum((-1, -2)).mean()
        return np.asarray([2 * BATCH * x[..., 0].max(-1).mean(), distinct, x[..., 2:].sum((-1, -2)).mean()])

    def batches() -> np.ndarray:
        return by_length if grouped else rng.permutation(len(store))[: n * BATCH].reshape(n, BATCH)

    whole = np.mean([cost(batches()) for _ in range(20)], 0)

    def draw() -> np.ndarray:
        return (
            by_length[rng.permutation(n)[:steps]]
            if grouped
            else rng.permutation(len(store))[: steps * BATCH].reshape(steps, BATCH)
        )

    drawn = [draw() for _ in range(tries)]
    best = min(drawn, key=lambda b: float(np.abs(cost(b) / whole - 1).max()))
    return list(best)
