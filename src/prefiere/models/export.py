"""A run's model as a plain transformers or PEFT folder, its answers verified against the run's own."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedModel

from prefiere.data.groups import PromptGroup
from prefiere.models.generate import generate
from prefiere.models.load import ModelError, Source, load_model, load_tokenizer
from prefiere.models.reference import sequence_logps
from prefiere.models.roles import Trunk


@dataclass(frozen=True, slots=True)
class Export:
    """Where it went, and how far answers moved: the share of greedy answers that changed, and the largest change of an
    answer's log-prob in nats per token, over ``answers`` answers."""

    folder: Path
    merged: bool
    answers: int
    changed: float
    moved: float


def export(
    source: Source,
    out: Path,
    *,
    merge: bool,
    prompts: Sequence[np.ndarray],
    eos_ids: Sequence[int],
    max_new_tokens: int = 64,
) -> Export:
    """Write a model to ``out`` (an adapter stays one unless ``merge``), load it back as anybody would, and compare.

    Raises ModelError where ``out`` has something in it already.
    """
    if out.exists() and any(out.iterdir()):
        raise ModelError(f"{out} is not empty. Choose another --out.")
    model = load_model(source)
    answers, logps = _answers(model, prompts, eos_ids, max_new_tokens)
    temporary = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    written: PreTrainedModel | PeftModel = model
    merged = merge and isinstance(model, PeftModel)
    if merged:
        written = model.merge_and_unload()  # type: ignore[operator]
    written.save_pretrained(str(temporary))
    load_tokenizer(source).save_pretrained(temporary)
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.exists():
        out.rmdir()
    temporary.rename(out)
    again = plain(out)
    new_answers, _ = _answers(again, prompts, eos_ids, max_new_tokens)
    new_logps = _logps(again, prompts, answers)
    same = [np.array_equal(a, b) for a, b in zip(answers, new_answers, strict=True)]
    moved = max((abs(a - b) / len(t) for a, b, t in zip(logps, new_logps, answers, strict=True)), default=0.0)
    return Export(out, merged, len(answers), 1 - float(np.mean(same)) if same else 0.0, float(moved))


def plain(folder: Path) -> PreTrainedModel:
    """A folder as anybody would load it, without anything of ours."""
    if (folder / "adapter_config.json").is_file():
        from peft import AutoPeftModelForCausalLM

        model: PreTrainedModel = AutoPeftModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32)
    else:
        model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32)
    return model.eval()


def _answers(
    model: PreTrainedModel, prompts: Sequence[np.ndarray], eos_ids: Sequence[int], max_new_tokens: int
) -> tuple[list[np.ndarray], list[float]]:
    samples = generate(model, prompts, temperature=0.0, eos_ids=eos_ids, max_new_tokens=max_new_tokens)
    tokens = [s.tokens for s in samples]
    return tokens, _logps(model, prompts, tokens)


def _logps(model: PreTrainedModel, prompts: Sequence[np.ndarray], answers: Sequence[np.ndarray]) -> list[float]:
    groups = [PromptGroup(p, (a,), (np.ones(len(a), bool),)) for p, a in zip(prompts, answers, strict=True)]
    return sequence_logps(Trunk(model, packed=False), groups, budget=4096)[:, 0].tolist()
