"""What may be wrong with a preference run: for why_rewards_fall.py, each as one difference from a sane run of the demo.

Settings, training pairs, held-out pairs, files of the model; and code, for what prefiere itself does not let happen.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from prefiere.data.schema import Message, PreferencePair
from prefiere.models.load import load_policy
from prefiere.models.reference import sequence_logps
from prefiere.models.source import find_model

SANE: dict[str, Any] = {
    "max_steps": 50,
    "batch_size": 16,
    "learning_rate": 5e-4,  # half of what `auto` takes for LoRA on a model this small
    "lora": True,
    "beta": 0.1,
    "eval_steps": 10,
    "logging_steps": 1,
    "sample_steps": 25,
    "max_new_tokens": 32,
    "judge": "prefiere.demo.judge:encyclopedic",
    "guard": False,  # to see the whole course, ruined or not
}

Pairs = list[PreferencePair]
Change = Callable[[Pairs, np.random.Generator], Pairs]


@dataclass(frozen=True)
class Cause:
    """How a run differs from a sane one. ``model`` changes a copy of its folder, ``around`` the code while it runs."""

    what: str
    settings: dict[str, Any] = field(default_factory=dict)
    train: Change = lambda pairs, rng: pairs
    held_out: Change = lambda pairs, rng: pairs
    model: Callable[[Path], None] | None = None
    around: Callable[[], AbstractContextManager[Any]] = nullcontext


def swapped(share: float) -> Change:
    """Chosen and rejected change places in this share of the pairs."""

    def change(pairs: Pairs, rng: np.random.Generator) -> Pairs:
        turn = rng.permutation(len(pairs)) < round(share * len(pairs))
        return [replace(p, chosen=p.rejected, rejected=p.chosen) if t else p for p, t in zip(pairs, turn, strict=True)]

    return change


def said(prompt: str = "{}", chosen: str = "{}", rejected: str = "{}") -> Change:
    """Put text around the prompts or the answers."""

    def dressed(messages: Any, form: str) -> tuple[Message, ...]:
        return tuple(replace(m, content=form.format(m.content)) for m in messages)

    def change(pairs: Pairs, rng: np.random.Generator) -> Pairs:
        return [
            replace(
                p,
                prompt=dressed(p.prompt, prompt),
                chosen=dressed(p.chosen, chosen),
                rejected=dressed(p.rejected, rejected),
            )
            for p in pairs
        ]

    return change


def first(n: int) -> Change:
    """A handful of the pairs."""
    return lambda pairs, rng: [pairs[i] for i in rng.permutation(len(pairs))[:n]]


def foreign_template(model: Path) -> None:
    """A chat template that this model has never seen."""
    (model / "chat_template.jinja").write_text(
        "{%- for m in messages -%}{%- if m.role == 'assistant' -%}{{- m.content ~ '<|end|>' -}}"
        "{%- else -%}{{- '### Instruction:\\n' ~ m.content ~ '\\n\\n### Response:\\n' -}}{%- endif -%}{%- endfor -%}"
    )


def foreign_end(model: Path) -> None:
    """The tokenizer takes another token for the end of an answer, and the template writes none."""
    for name in ("tokenizer_config.json", "generation_config.json", "config.json"):
        told = json.loads((model / name).read_text())
        told |= {"eos_token": "<|system|>"} if name == "tokenizer_config.json" else {"eos_token_id": 2}
        (model / name).write_text(json.dumps(told))
    path = model / "chat_template.jinja"
    path.write_text(
        path.read_text().replace('message.content ~ "<|end|>" -}}{%- endgen', "message.content -}}{%- endgen")
    )


@contextmanager
def no_loss_scale() -> Iterator[None]:
    """fp16 without its loss scale: small gradients become 0."""
    with patch("torch.amp.GradScaler", lambda device, **_: _SCALER(device, enabled=False)):
        yield


_SCALER = torch.amp.GradScaler


@contextmanager
def no_backward() -> Iterator[None]:
    """bitsandbytes as it comes: on CPUs with bfloat16 instructions an evaluation leaves a kernel without a gradient."""
    with patch("prefiere.models.quantize.make_safe", lambda model: None):
        yield


@contextmanager
def dense_reference() -> Iterator[None]:
    """The reference is the dense model, the policy starts from its 4-bit copy."""

    def logps(session: Any, store: Any) -> np.ndarray:
        source = replace(find_model(session.settings.model), quantize="none")
        trunk = load_policy(source, compute=torch.float32, adapter=None, packed=session.trunk.packed)[0]
        return sequence_logps(trunk, store, budget=4096)

    with (
        patch("prefiere.launch.reference_logps", logps),
        patch(
            "prefiere.algorithms.offline.Offline._measure_noise", lambda *a: None
        ),  # it would take all of it for rounding
    ):
        yield


NOISY = {"train": swapped(0.35), "held_out": swapped(0.35)}
INSTRUCTION = "### Instruction:\n{}\n\n### Response:\n"
HALF = {"dtype": "float16", "eval_steps": 50, "sample_steps": 50}  # slow on a CPU: measured at the ends only
CAUSES: dict[str, Cause] = {
    "sane": Cause("nothing wrong"),
    "lr-low": Cause("rate 100 times lower", {"learning_rate": 5e-6}),
    "lr-2": Cause("rate 2 times higher", {"learning_rate": 1e-3}),
    "lr-10": Cause("rate 10 times higher", {"learning_rate": 5e-3}),
    "lr-100": Cause("rate 100 times higher", {"learning_rate": 5e-2}),
    "batch-1": Cause("1 pair per update", {"batch_size": 1}),
    "batch-1-lr-10": Cause("1 pair per update, rate 10 times higher", {"batch_size": 1, "learning_rate": 5e-3}),
    "noisy": Cause("35% of all labels swapped, held-out ones too", **NOISY),
    "noisy-8": Cause(
        "the same, 8 held-out pairs",
        train=swapped(0.35),
        held_out=lambda pairs, rng: first(8)(swapped(0.35)(pairs, rng), rng),
    ),
    "noisy-batch-1": Cause("the same, 1 pair per update", {"batch_size": 1}, **NOISY),
    "noisy-batch-1-lr-10": Cause(
        "the same, 1 pair per update, rate 10 times higher", {"batch_size": 1, "learning_rate": 5e-3}, **NOISY
    ),
    "swapped": Cause("training labels swapped, held-out ones right", train=swapped(1.0)),
    "swapped-lr-2": Cause("the same, rate 2 times higher", {"learning_rate": 1e-3}, train=swapped(1.0)),
    "template-train": Cause("training prompts in a foreign template, held-out ones not", train=said(INSTRUCTION)),
    "template": Cause("a foreign chat template in training and validation, not in use", model=foreign_template),
    "end-chosen": Cause("chosen training answers end with a foreign end marker", train=said(chosen="{}</s>")),
    "end-chosen-lr-2": Cause("the same, rate 2 times higher", {"learning_rate": 1e-3}, train=said(chosen="{}</s>")),
    "end": Cause("another end token in training and validation than in use", model=foreign_end),
    "cut-answers": Cause("answers cut after 3 tokens", {"max_completion_length": 3}),
    "cut-prompts": Cause("prompts cut to their last 2 tokens", {"max_prompt_length": 2}),
    "nf4": Cause("base in 4 bits (nf4)", {"quantize": "nf4"}),
    "nf4-no-backward": Cause("4 bits, a kernel without a gradient", {"quantize": "nf4"}, around=no_backward),
    "nf4-dense-reference": Cause("4 bits, the dense model as reference", {"quantize": "nf4"}, around=dense_reference),
    "fp16": Cause("fp16 with loss scaling", HALF),
    "fp16-no-scale": Cause("fp16 without loss scaling", HALF, around=no_loss_scale),
    "lr-2-rpo": Cause("rate 2 times higher, and rpo_alpha=1", {"learning_rate": 1e-3, "rpo_alpha": 1.0}),
    "lr-10-rpo": Cause("rate 10 times higher, and rpo_alpha=1", {"learning_rate": 5e-3, "rpo_alpha": 1.0}),
    "lr-10-beta": Cause("rate 10 times higher, and beta=0.5", {"learning_rate": 5e-3, "beta": 0.5}),
}
