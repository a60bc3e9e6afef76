"""A run's model as a plain transformers or PEFT folder, its answers verified against the run's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from prefiere.asked.language import in_words
from prefiere.files import atomic_folder
from prefiere.kernels.memory import within_memory
from prefiere.models.adapter import names_in, save_adapter
from prefiere.models.configuration import larger_class, published, save_whole
from prefiere.models.load import base_scheme, load_model, load_tokenizer, without_bars
from prefiere.models.quantize import dequantize
from prefiere.models.reference import sequence_logps
from prefiere.models.source import ModelError, Source, adapter_config, config_of
from prefiere.models.trunk import Trunk, role_of
from prefiere.sample.local import generate
from prefiere.sample.plain import set_way, way_of
from prefiere.sample.sampling import Sampling, Vocabulary
from prefiere.tokens.groups import PromptGroup
from prefiere.tokens.tokenizer import ends_as_taught

EXACT = 1e-3
"""Nats per token that log-probs may differ by where nothing should: far above fp32 rounding, far below effects."""


@dataclass(frozen=True, slots=True)
class Moved:
    """How far answers are from the run's own: ``how`` the written model was run, the share of greedy answers that
    ``changed``, the ``mean`` and ``most`` absolute change of the log-prob of the run's answers, in nats per token.
    ``exact``: it should be none."""

    how: str
    changed: float
    mean: float
    most: float
    exact: bool


@dataclass(frozen=True, slots=True)
class Export:
    """Where it went, what it is, how the base was ``held`` in training (None: dense), and how far ``answers`` moved.

    Without answers nothing was compared: ``moved`` is empty.
    """

    folder: Path
    what: str
    held: str | None
    answers: int
    moved: list[Moved]


@within_memory("exporting", "it needs room for the model twice; a machine with more memory can do it")
def export_model(
    source: Source,
    out: Path,
    *,
    merge: bool,
    prompts: Sequence[np.ndarray],
    eos_ids: Sequence[int],
    max_new_tokens: int = 64,
    dtype: torch.dtype | None = None,
) -> Export:
    """Write a model to ``out`` (an adapter stays one unless ``merge``), load it back as anybody would, and compare.

    dtype: of its weights; None: that of the checkpoint, an adapter in fp32. An adapter on a quantized base is merged
    into the dense 16-bit weights that the base stands for. Raises ModelError where ``out`` has something in it already,
    and, naming the difference, where answers moved that should not.
    """
    if out.exists() and any(out.iterdir()):
        raise ModelError(f"{out} is not empty. Choose another --out.")
    scheme = base_scheme(source)
    model = load_model(source)
    way = way_of(model)
    answers, logps = _answers(model, prompts, eos_ids, max_new_tokens)
    merged = merge and isinstance(model, PeftModel)
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(out) as temporary, without_bars():
        whole = _written(model, source, merged, scheme is not None)
        said = whole.dtype if scheme is not None else published(whole).dtype
        tokenizer = load_tokenizer(source)
        ends_as_taught(whole, tokenizer)
        kept = _write(whole, temporary, dtype, said)
        tokenizer.save_pretrained(temporary)
    del model
    what = "merged model" if merged else "adapter" if source.adapter else "model"
    held = None if scheme is None else scheme.name
    if not answers:
        return Export(out, what, held, 0, [])

    def moved(how: str, again: PreTrainedModel, exact: bool) -> Moved:
        set_way(again, way)  # as it was found to decode: what is plain has not been tried
        new_answers, _ = _answers(again, prompts, eos_ids, max_new_tokens)
        new_logps = _logps(again, prompts, answers)
        same = [np.array_equal(a, b) for a, b in zip(answers, new_answers, strict=True)]
        off = [abs(a - b) / max(len(t), 1) for a, b, t in zip(logps, new_logps, answers, strict=True)]
        changed = 1 - float(np.mean(same))
        return Moved(how, changed, float(np.mean(off)), float(max(off)), exact)

    if scheme is None:
        rounded = kept != torch.float32 and (merged or dtype is not None)
        dtype_said = str(kept).removeprefix("torch.")
        how = in_words("use.as_rounded", dtype=dtype_said) if rounded else in_words("use.as_loaded")
        found = [moved(how, load_plain(out), not rounded)]
    elif merged:
        found = [moved(in_words("use.as_dense"), load_plain(out), False)]
    else:
        here = replace(source, adapter=str(out) if source.adapter else None)
        found = [moved(in_words("use.as_trained", scheme=scheme.name), load_model(here), dtype is None)]
        if scheme.config is None:  # the base is published dense: what happens to whoever does not quantize it
            found.append(moved(in_words("use.as_published"), load_plain(out), False))
    return Export(out, what, held, len(answers), found)


def _write(model: Any, folder: Path, dtype: torch.dtype | None, said: torch.dtype) -> torch.dtype:
    """Save a model or an adapter, in a dtype where one is asked for; returns the one that it is saved in.

    said: the dtype of a whole model where none is asked for.
    """
    if not isinstance(model, PeftModel):
        save_whole(model, folder, dtype or said)
        return dtype or said
    for name, p in model.named_parameters() if dtype is not None else ():
        if role_of(name) is not None:
            p.data = p.data.to(dtype)
    save_adapter(model, folder)
    return dtype or torch.float32


def _written(model: PreTrainedModel, source: Source, merged: bool, quantized: bool) -> Any:
    """What is saved: the model or adapter itself, or one dense model."""
    if not merged:
        return model
    if quantized:
        said = config_of(source).dtype
        dtype = said if said in (torch.float16, torch.bfloat16) else torch.bfloat16
        dense = dequantize(load_model(replace(source, adapter=None)), torch.float32)
        model = (
            PeftModel.from_pretrained(dense, str(source.adapter), key_mapping=names_in(dense))
            .merge_and_unload()
            .to(dtype)
        )  # rounded once
    else:
        model = model.merge_and_unload()  # type: ignore[operator]
    return model


@without_bars()
def load_plain(folder: Path) -> PreTrainedModel:
    """A folder as anybody would load it, without anything of ours."""
    if (folder / "adapter_config.json").is_file():
        told = adapter_config(str(folder))
        base, revision = str(told.base_model_name_or_path), told.revision
        whole = larger_class(AutoConfig.from_pretrained(base, revision=revision))
        model: Any
        if whole is None:
            model = AutoPeftModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32)
        else:
            published_as = getattr(transformers, whole).from_pretrained(base, revision=revision, dtype=torch.float32)
            model = PeftModel.from_pretrained(published_as, str(folder))
    else:
        model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32)
    return model.eval()


def _answers(
    model: PreTrainedModel, prompts: Sequence[np.ndarray], eos_ids: Sequence[int], max_new_tokens: int
) -> tuple[list[np.ndarray], list[float]]:
    greedy = Sampling(temperature=0.0, max_new_tokens=max_new_tokens)
    samples = generate(model, prompts, greedy, Vocabulary(tuple(eos_ids)))
    tokens = [s.tokens for s in samples]
    return tokens, _logps(model, prompts, tokens)


def _logps(model: PreTrainedModel, prompts: Sequence[np.ndarray], answers: Sequence[np.ndarray]) -> list[float]:
    groups = [PromptGroup(p, (a,), (np.ones(len(a), bool),)) for p, a in zip(prompts, answers, strict=True)]
    return sequence_logps(Trunk(model, packed=False), groups, budget=4096)[:, 0].tolist()
