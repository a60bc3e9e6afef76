"""From a name to a model ready to train: folder or hub id, dtype, LoRA, attention checked by a probe."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as hf_logging
from transformers.utils.peft_utils import find_adapter_config_file

from prefiere.models import attention, quantize
from prefiere.models.probe import probe
from prefiere.models.reference import keep_start
from prefiere.models.roles import POLICY, REFERENCE, Trunk, activate
from prefiere.models.shards import broken

hf_logging.disable_progress_bar()  # ours say more, and do not flicker by for every small file


class ModelError(ValueError):
    """A model that cannot be loaded, or not in the way asked for."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model comes from: its base, and the PEFT adapter on it if it is one. ``quantize``: how the base is held
    on the fly, where it is a run's, whose adapter was trained on it so."""

    base: str
    adapter: str | None
    trust: bool = False
    quantize: str = "none"

    @property
    def tokenizer(self) -> str:
        """The folder with the tokenizer: the adapter's where it has one."""
        if self.adapter and (Path(self.adapter) / "tokenizer_config.json").is_file():
            return self.adapter
        return self.base


def resolve(name: str | Path, *, trust: bool = False) -> Source:
    """Find out what a hub id, model folder, adapter folder or run folder holds.

    Raises ModelError, naming what is there and what to give instead.
    """
    path = Path(name)
    if (path / "recipe.yaml").is_file():
        if not (path / "model").is_dir():
            raise ModelError(f"{name} is a run that has no model yet: finish it, or name another model.")
        return replace(resolve(path / "model", trust=trust), quantize=_quantization_of_run(path))
    if path.is_dir():
        if (path / "adapter_config.json").is_file():
            base = json.loads((path / "adapter_config.json").read_text()).get("base_model_name_or_path")
            if not base:
                raise ModelError(f"{path}/adapter_config.json names no base model (base_model_name_or_path).")
            return Source(str(base), str(path), trust)
        if not (path / "config.json").is_file():
            raise ModelError(f"{path} is not a model folder: it has neither config.json nor adapter_config.json.")
        return Source(str(path.resolve()), None, trust)
    if str(name).count("/") > 1 or str(name).startswith((".", "/", "~")):
        raise ModelError(f"there is no model folder {name}. Give a folder, a hub id (owner/name), or a run.")
    try:
        found = find_adapter_config_file(str(name))
    except (OSError, ValueError):  # not there, gated, or no network: loading the base says which, in full
        found = None
    if found is not None:
        return Source(str(PeftConfig.from_pretrained(str(name)).base_model_name_or_path), str(name), trust)
    return Source(str(name), None, trust)


def _quantization_of_run(folder: Path) -> str:
    """How the base under a run's adapter was held in training, as the run has recorded it."""
    record = folder / "environment.json"
    choices = json.loads(record.read_text()).get("choices", []) if record.is_file() else []
    return next((str(c["value"]) for c in choices if c["name"] == "quantization"), "none")


def explain(name: str, error: Exception) -> ModelError:
    """What transformers could not load, in one line that says what to do."""
    text = str(error)
    low = text.lower()
    if "gated" in low or "401" in text or "403" in text:
        return ModelError(f"{name} is gated: accept its licence on its page, then run `hf auth login`.")
    if "safetensors" in low and ("pytorch_model" in low or ".bin" in low or "no file named" in low):
        return ModelError(
            f"{name} has no safetensors weights. Pickled checkpoints can run code and are refused; "
            "set trust_remote_code=true only if you trust their author."
        )
    if found := broken(Path(name)):
        return ModelError(f"cannot load {name}: {found}")
    if "ignore_mismatched_sizes" in text:
        return ModelError(
            f"cannot load {name}: its weights do not have the shapes that its config.json says (group_size and bits, "
            "where it is quantized). Download it again, or correct that file."
        )
    return ModelError(f"cannot load {name}: {text.strip().splitlines()[0] if text.strip() else error!r}")


def load_tokenizer(source: Source) -> PreTrainedTokenizerBase:
    """The tokenizer of a model; raises ModelError where there is none."""
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source.tokenizer, trust_remote_code=source.trust
        )
    except (OSError, ValueError) as e:
        raise explain(source.tokenizer, e) from e
    return tokenizer


def generation_config(source: Source) -> GenerationConfig:
    """How a model says that it generates; an empty configuration where it says nothing."""
    try:
        return GenerationConfig.from_pretrained(source.base)
    except OSError:  # many folders have none; the tokenizer's end token is then all there is
        return GenerationConfig()


def positions(source: Source) -> int | None:
    """The longest row that a model takes, in tokens; None where it sets no limit."""
    config = AutoConfig.from_pretrained(source.base, trust_remote_code=source.trust).get_text_config()
    return getattr(config, "max_position_embeddings", None)


def count_parameters(source: Source) -> int:
    """Parameters of the base model, without loading any weight."""
    try:
        config = AutoConfig.from_pretrained(source.base, trust_remote_code=source.trust)
        with torch.device("meta"):  # shapes without memory; tied weights stay one
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=source.trust)
    except (OSError, ValueError) as e:
        raise explain(source.base, e) from e
    return int(sum(p.numel() for p in model.parameters()))


def base_scheme(source: Source) -> quantize.Scheme | None:
    """How the base is held in few bits; None where it is dense. Raises ValueError for what cannot be trained."""
    if source.base.lower().endswith(".gguf"):
        raise ModelError(f"{source.base} is GGUF, which cannot be trained. {quantize.TRAINABLE}.")
    try:
        config = AutoConfig.from_pretrained(source.base, trust_remote_code=source.trust)
    except (OSError, ValueError) as e:
        raise explain(source.base, e) from e
    return quantize.scheme(source.base, config, source.quantize)


def loaded(
    source: Source, dtype: torch.dtype, device: torch.device | str, kind: Any = AutoModelForCausalLM, **options: Any
) -> tuple[PreTrainedModel, set[str]]:
    """The base of a source as a model of this ``kind``, without dropout, and the names of weights that it lacks.

    Raises ModelError where it cannot be loaded.
    """
    attention.register()
    scheme = base_scheme(source)
    if scheme is not None:
        stored, held = scheme.arguments(dtype)
        options |= {**held, "device_map": {"": device}}
        if stored is not None:
            options.setdefault("config", AutoConfig.from_pretrained(source.base, trust_remote_code=source.trust))
            options["config"].quantization_config = stored
    model: PreTrainedModel
    try:
        model, info = kind.from_pretrained(
            source.base,
            dtype=dtype,
            use_safetensors=None if source.trust else True,
            trust_remote_code=source.trust,
            output_loading_info=True,
            **options,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as e:
        raise explain(source.base, e) from e
    if scheme is None:
        torch.nn.Module.to(model, device)
    else:
        lost = sorted(n for n in info["missing_keys"] if n.startswith(f"{model.base_model_prefix}."))
        if lost:
            raise ModelError(f"{source.base} lacks weights that its configuration names ({lost[0]}, ...).")
        quantize.make_safe(model)
        quantize.check(model, scheme, source.base)
    for name in ("attention_dropout", "attn_pdrop", "resid_pdrop", "embd_pdrop", "hidden_dropout"):
        if getattr(model.config, name, 0):
            setattr(model.config, name, 0.0)
    no_dropout(model)
    return model, set(info["missing_keys"])


def no_dropout(model: torch.nn.Module) -> None:
    """Switch dropout off, whatever the mode: what is measured and what is learnt are then the same function."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0


def load_model(
    source: Source, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> PreTrainedModel:
    """A model to sample from or evaluate: the adapter, if any, on its base (not merged)."""
    model = loaded(source, dtype, device)[0]
    if source.adapter:
        model = PeftModel.from_pretrained(model, source.adapter)  # type: ignore[assignment]
    return model.eval()


@dataclass(frozen=True, slots=True)
class Adapter:
    """The LoRA adapter to train: PEFT's own configuration."""

    config: PeftConfig

    @classmethod
    def lora(
        cls, *, r: int, alpha: float, dropout: float, targets: str | list[str], dora: bool, rslora: bool
    ) -> Adapter:
        return cls(
            LoraConfig(
                r=r,
                lora_alpha=alpha,  # type: ignore[arg-type]
                lora_dropout=dropout,
                target_modules=targets,
                use_dora=dora,
                use_rslora=rslora,
                task_type="CAUSAL_LM",
            )
        )

    @classmethod
    def of(cls, config: str | Mapping[str, Any]) -> Adapter:
        """Any PEFT configuration, from a map or the path of an adapter_config.json."""
        from peft import get_peft_config

        if isinstance(config, str):
            path = Path(config)
            if not path.is_file():
                raise ModelError(f"peft_config: there is no file {config}.")
            config = json.loads(path.read_text())
        values = {"task_type": "CAUSAL_LM", "peft_type": "LORA"} | dict(config)  # type: ignore[arg-type]
        if str(values.get("init_lora_weights", "")).lower() == "loftq":
            raise ModelError(
                "peft_config: a LoftQ start rounds the base's weights for good, so that the adapter fits no published "
                "model: leave init_lora_weights out, and set quantize=nf4."
            )
        try:
            found = get_peft_config(values)
        except (TypeError, ValueError, KeyError) as e:
            raise ModelError(f"peft_config: {e}") from e
        if found.is_prompt_learning:
            raise ModelError(f"peft_config: {values['peft_type']} learns a prompt, not layers: use LORA or its kin.")
        return cls(found)


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
    frozen copy of it becomes the reference. ``packed`` None lets the probe decide.
    """
    adapted = adapter is not None or source.adapter is not None
    quantized = base_scheme(source) is not None
    base = loaded(source, compute if adapted or quantized else torch.float32, device)[0]
    if packed is None:
        reason = probe(base, max_length)
        packed = reason is None
        how = "packed rows with shared prefixes" if packed else f"padded rows: {reason}"
    else:
        how = "packed rows with shared prefixes" if packed else "padded rows, as asked"
    if packed:
        base.set_attn_implementation(attention.NAME)
    quantize.norms_in_fp32(base)
    model: PreTrainedModel | PeftModel = base
    if source.adapter:
        model = PeftModel.from_pretrained(base, source.adapter, is_trainable=True)
        model.load_adapter(source.adapter, adapter_name=REFERENCE, is_trainable=False)
        activate(model, POLICY)
    elif adapter is not None:
        model = _adapted(base, adapter, source.base)
    trunk = Trunk(model, packed=packed)
    if adapted:
        if source.adapter is None:
            keep_start(trunk)
        for name, p in model.named_parameters():
            p.requires_grad_(p.requires_grad and f".{REFERENCE}." not in name)
            if p.requires_grad or f".{REFERENCE}." in name:
                p.data = p.data.float()
    if gradient_checkpointing:
        trunk.checkpoint_gradients()
        if adapted:
            trunk.lm.enable_input_require_grads()
    return trunk.train(), how


def _adapted(base: PreTrainedModel, adapter: Adapter, name: str) -> PeftModel:
    try:
        model = get_peft_model(base, adapter.config)
    except (ValueError, TypeError, AttributeError, ImportError) as e:
        raise ModelError(f"the adapter does not fit {name}: {str(e).splitlines()[0]}") from e
    assert isinstance(model, PeftModel)
    return model


def fingerprint(model: torch.nn.Module, keep: Callable[[str], bool] = lambda name: True) -> str:
    """A hash of every weight (whose name ``keep`` takes): what "the policy as it was before this run" is called by."""
    h = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(item for item in model.state_dict().items() if keep(item[0])):
        h.update(name.encode())
        h.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return h.hexdigest()
