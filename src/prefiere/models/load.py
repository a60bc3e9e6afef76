"""From a name to a model ready to train: folder or hub id, dtype, LoRA, attention checked by a probe.

Here, and in `classifier.load_reward` for reward models, the layers of a model are routed (`kernels.linear`), once its
adapters are in place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as hf_logging

from prefiere.asked.language import in_words
from prefiere.kernels import attention
from prefiere.kernels.linear import route
from prefiere.kernels.longrope import keep_own_positions
from prefiere.models import quantize
from prefiere.models.adapter import Adapter, make_room, names_in
from prefiere.models.check.rows import probe
from prefiere.models.check.trial import running, try_policy
from prefiere.models.check.weights import nothing_missing
from prefiere.models.configuration import calm, no_dropout, remember, taken_out
from prefiere.models.reference import keep_start
from prefiere.models.source import ModelError, Source, adapter_weights, config_of, readable, writes_text
from prefiere.models.trunk import POLICY, REFERENCE, Trunk, activate, role_of
from prefiere.run import given_as


@contextmanager
def without_bars() -> Iterator[None]:
    """No progress bars of transformers meanwhile: ours say more, and do not flicker by for every small file."""
    before = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if before:
            hf_logging.enable_progress_bar()


def load_tokenizer(source: Source) -> PreTrainedTokenizerBase:
    """The tokenizer of a model; raises ModelError where there is none."""
    with readable(source.tokenizer):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source.tokenizer,
            revision=source.revision if source.tokenizer == source.base else None,
            trust_remote_code=source.trust,
        )
    return tokenizer


def count_parameters(source: Source) -> int:
    """Parameters of the base model, without loading any weight."""
    config = config_of(source)
    with readable(source.base), torch.device("meta"):  # shapes without memory; tied weights stay one
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=source.trust)
    return int(sum(p.numel() for p in model.parameters()))


def base_scheme(source: Source) -> quantize.Scheme | None:
    """How the base is held in few bits; None where it is dense. Raises ValueError for what cannot be trained."""
    if source.base.lower().endswith(".gguf"):
        raise ModelError(f"{source.base} is GGUF, which cannot be trained. {quantize.TRAINABLE}.")
    return quantize.scheme(source.base, config_of(source), source.quantize)


def loaded(
    source: Source, dtype: torch.dtype, device: torch.device | str, kind: Any = AutoModelForCausalLM, **options: Any
) -> tuple[PreTrainedModel, set[str]]:
    """The base of a source as a model of this ``kind``, without dropout, and the names of weights that it lacks. On
    torch's meta device nothing is read, and its weights have no contents.

    Raises ModelError where it cannot be loaded, and for a language model that lacks any.
    """
    attention.register()
    scheme = base_scheme(source)
    if "config" not in options:
        options["config"] = config_of(source)
    said = calm(options["config"], source.base)
    if scheme is not None:
        stored, held = scheme.arguments(dtype)
        options |= {**held, "device_map": {"": device}}
        if stored is not None:
            options["config"].quantization_config = stored
    model: PreTrainedModel
    if torch.device(device).type == "meta":
        with torch.device(device):
            model = kind.from_config(options["config"], dtype=dtype, trust_remote_code=source.trust)
        remember(model, said)
        no_dropout(model)
        keep_own_positions(model)
        return model, set()
    with readable(source.base), without_bars():
        model, info = kind.from_pretrained(
            source.base,
            revision=source.revision,
            dtype=dtype,
            use_safetensors=None if source.trust else True,
            trust_remote_code=source.trust,
            output_loading_info=True,
            **options,
        )
    nothing_missing(source.base, model, info, whole=kind is AutoModelForCausalLM)
    if kind is AutoModelForCausalLM:
        with readable(source.base):
            said = replace(said, taken_out=taken_out(model, options["config"]))
    remember(model, said)
    if scheme is None:
        torch.nn.Module.to(model, device)
    else:
        quantize.make_safe(model)
        quantize.check_quantized(model, scheme, source.base)
    no_dropout(model)
    keep_own_positions(model)
    return model, set(info["missing_keys"])


def load_model(
    source: Source, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> PreTrainedModel:
    """A model to sample from or evaluate, tried out: the adapter, if any, on its base (not merged), layers routed."""
    base_scheme(source)  # says of GGUF what it is
    writes_text(source)
    model = loaded(source, dtype, device)[0]
    if source.adapter:
        model = _with_adapter(model, source.adapter, trainable=False)  # type: ignore[assignment]
    route(model)
    try_policy(Trunk(model, packed=False), source.adapter or source.base, learns=False)
    return model.eval()


def load_policy(
    source: Source,
    *,
    compute: torch.dtype,
    adapter: Adapter | None,
    device: torch.device | str = "cpu",
    gradient_checkpointing: bool = False,
    max_length: int = 1024,
    packed: bool | None = None,
) -> tuple[Trunk, str]:
    """The trunk to train, and in words how its rows run.

    Full fine-tuning keeps the weights in fp32 and computes under autocast; with an adapter the frozen base is held
    in ``compute``, or in few bits, and the adapter in fp32. An adapter that the source came with is trained on, and a
    frozen copy of it becomes the reference. ``packed`` None lets the probe decide. Layers are routed.
    """
    adapted = adapter is not None or source.adapter is not None
    quantized = base_scheme(source) is not None
    base = loaded(source, compute if adapted or quantized else torch.float32, device)[0]
    if packed is None:
        reason = probe(base, max_length)
        packed = reason is None
        how = in_words("why.packed") if packed else in_words("why.padded", why=reason)
    else:
        how = in_words("why.packed" if packed else "why.padded_as_asked")
    if packed:
        base.set_attn_implementation(attention.NAME)
    quantize.norms_in_fp32(base)
    model: PreTrainedModel | PeftModel = base
    hint = ""
    if source.adapter:
        model = _with_adapter(base, source.adapter, trainable=True)
        model.load_adapter(source.adapter, adapter_name=REFERENCE, is_trainable=False, key_mapping=names_in(base))
        activate(model, POLICY)
    elif adapter is not None:
        hint = adapter.hint
        model = _adapted(base, adapter, source)
    route(model)
    trunk = Trunk(model, packed=packed)
    if adapted:
        if source.adapter is None and torch.device(device).type != "meta":
            with running(source.base, hint):
                keep_start(trunk)
        for name, p in model.named_parameters():
            p.requires_grad_(p.requires_grad and role_of(name) != REFERENCE)
            if p.requires_grad or role_of(name) == REFERENCE:
                p.data = p.data.float()
    if gradient_checkpointing:
        trunk.checkpoint_gradients()
        if adapted:
            trunk.lm.enable_input_require_grads()
    return trunk.train(), how


def _with_adapter(base: PreTrainedModel, folder: str, *, trainable: bool) -> PeftModel:
    names = names_in(base)
    weights = adapter_weights(folder, names=names)
    try:
        make_room(base, weights)
        model = PeftModel.from_pretrained(base, folder, is_trainable=trainable, key_mapping=names)
    except (RuntimeError, ValueError, KeyError, OSError, TypeError, AttributeError) as e:
        why = (str(e).strip() or repr(e)).splitlines()[-1].strip()
        raise ModelError(f"{folder} does not fit its base: {why}") from e
    if given_as(base.name_or_path or ""):  # it is where the run's folder is now
        model.active_peft_config.base_model_name_or_path = base.name_or_path
    return model


def _adapted(base: PreTrainedModel, adapter: Adapter, source: Source) -> PeftModel:
    hint = adapter.hint
    try:
        model = get_peft_model(base, adapter.config, revision=source.revision)
    except (ValueError, TypeError, AttributeError, ImportError) as e:
        why = str(e).splitlines()[0].rstrip(".")
        raise ModelError(f"the adapter does not fit {source.base}: {why}.{hint}") from e
    assert isinstance(model, PeftModel)
    return model


def fingerprint(model: torch.nn.Module, keep: Callable[[str], bool] = lambda name: True) -> str:
    """A hash of every weight (whose name ``keep`` takes): what "the policy as it was before this run" is called by."""
    h = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(item for item in model.state_dict().items() if keep(item[0])):
        h.update(name.encode())
        h.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return h.hexdigest()
