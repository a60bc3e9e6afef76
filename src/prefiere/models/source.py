"""From a name to what it holds: a hub id, a model folder, an adapter folder or a run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig
from peft.utils import load_peft_weights
from transformers import AutoConfig, GenerationConfig
from transformers.utils.peft_utils import find_adapter_config_file

from prefiere.asked.hub import cached, why_no_model
from prefiere.asked.language import in_words
from prefiere.files import first_link_out, leads_out
from prefiere.kernels.memory import OutOfMemory, out_of_memory
from prefiere.models.weight_files import damaged_file
from prefiere.run import INPUTS, Run, given_as
from prefiere.untrusted import UnreadableFile, read_json

PROMPT_LEARNING = ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING", "CPT", "ADAPTION_PROMPT")
"""Kinds of adapters that put learnt vectors before the text."""


class ModelError(ValueError):
    """A model that cannot be loaded, or not in the way asked for."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model comes from: its base, and the PEFT adapter on it if it is one. ``quantize``: how the base is held
    on the fly, where it is a run's, whose adapter was trained on it so. ``revision``: of a base on the hub, where one
    is named."""

    base: str
    adapter: str | None
    trust: bool = False
    quantize: str = "none"
    revision: str | None = None

    @property
    def tokenizer(self) -> str:
        """The folder with the tokenizer: the adapter's where it has one."""
        if self.adapter and (Path(self.adapter) / "tokenizer_config.json").is_file():
            return self.adapter
        return self.base


def find_model(name: str | Path, *, trust: bool = False) -> Source:
    """Find out what a hub id, model folder, adapter folder or run folder holds.

    Raises ModelError, naming what is there and what to give instead.
    """
    path = Path(name)
    if (path / "recipe.yaml").is_file():
        if not (path / "model").is_dir():
            raise ModelError(in_words("met.no_model_yet", name=name))
        if (link := first_link_out(path)) is not None:
            raise ModelError(f"{link} is a link that leads out of the run folder. Put what it points to in its place.")
        return replace(find_model(path / "model", trust=trust), quantize=quantization_of_run(path))
    if path.is_dir():
        if (path / "adapter_config.json").is_file():
            return Source(_base_of(path), str(path), trust, revision=adapter_config(str(path)).revision)
        if not (path / "config.json").is_file():
            raise ModelError(in_words("met.no_model_files", name=path))
        return Source(str(path.resolve()), None, trust)
    if str(name).count("/") > 1 or str(name).startswith((".", "/", "~")):
        raise ModelError(in_words("met.no_model_folder", name=name))
    repository, _, named = str(name).partition("@")
    revision = named or None
    if (why := why_no_model(repository, revision)) is not None:
        raise ModelError(why)
    if cached(repository, "config.json", revision):  # a base: without a network nothing more could be asked
        return Source(repository, None, trust, revision=revision)
    try:
        found = find_adapter_config_file(repository, revision=revision)
    except (OSError, ValueError):  # not there, gated, or no network: loading the base says which, in full
        found = None
    if found is None:
        return Source(repository, None, trust, revision=revision)
    if revision is not None:
        raise ModelError(f"{name} is an adapter: download that revision (hf download) and name its folder.")
    told = adapter_config(repository)
    return Source(str(told.base_model_name_or_path), repository, trust, revision=told.revision)


def _base_of(folder: Path) -> str:
    """The base that an adapter names. Raises ModelError, naming what to edit, where it names none that is usable."""
    file = folder / "adapter_config.json"
    try:
        told = read_json(file)
    except UnreadableFile as e:
        raise ModelError(f"{e} Download the adapter again.") from e
    base = str(told.get("base_model_name_or_path") or "")
    if not base:
        raise ModelError(f"{file} names no base model (base_model_name_or_path).")
    if str(told.get("peft_type", "LORA")) in PROMPT_LEARNING:
        raise ModelError(
            f"{folder} is a {told['peft_type']} adapter, which learns a prompt and no layers: name its base {base} "
            "instead, or an adapter of the LORA kind."
        )
    path = Path(base)
    if given_as(base) and (here := folder.parent / INPUTS / path.name).is_dir() and not leads_out(folder.parent, here):
        return str(here.resolve())  # a run keeps what was given in Python, wherever its folder is now
    if not path.is_dir() and (base.startswith(("/", ".", "~")) or base.count("/") > 1):
        raise ModelError(
            f"{folder} is an adapter on {base}, which is not there: set base_model_name_or_path in {file} to where it "
            "is now."
        )
    for stacked in (path, path / "model"):
        if (stacked / "adapter_config.json").is_file():
            raise ModelError(
                f"{folder} is an adapter on {base}, which is an adapter itself: merge that one first (prefiere export "
                f"{base} --merge --out FOLDER), and set base_model_name_or_path in {file} to FOLDER."
            )
    return base


def writes_text(source: Source) -> None:
    """Raise ModelError for a reward model where a language model is asked for, by its configuration alone."""
    name = source.adapter or source.base
    if source.adapter:
        reward = str(adapter_config(source.adapter).task_type) in ("SEQ_CLS", "TaskType.SEQ_CLS")
    else:
        config = config_of(source)
        reward = any(a.endswith("ForSequenceClassification") for a in getattr(config, "architectures", None) or [])
    if reward:
        raise ModelError(in_words("met.is_reward_model", name=name))


def quantization_of_run(folder: Path) -> str:
    """How the base under a run's adapter was held in training, as the run has recorded it."""
    return str(Run(folder).choices.get("quantization", "none"))


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Whatever a library raises while it reads the files of a model, as a ModelError of one line.

    Those files may say anything, so anything may be raised; what is ours, and memory that ran out, passes.
    """
    try:
        yield
    except (ModelError, OutOfMemory):
        raise
    except Exception as e:
        if out_of_memory(e):
            raise
        raise explain(name, e) from e


def config_of(source: Source) -> Any:
    """A model's configuration. Raises ModelError where it cannot be read."""
    with readable(source.base):
        return AutoConfig.from_pretrained(source.base, revision=source.revision, trust_remote_code=source.trust)


def adapter_config(folder: str) -> PeftConfig:
    """An adapter's configuration, in a folder or on the hub. Raises ModelError where it cannot be read."""
    with readable(folder):
        return PeftConfig.from_pretrained(folder)


def adapter_weights(folder: str, device: str = "cpu", names: dict[str, str] | None = None) -> dict[str, torch.Tensor]:
    """An adapter's weights. names: PEFT's ``key_mapping``, where its base has other names here.

    Raises ModelError where they cannot be read, or are pickled.
    """
    if (path := Path(folder)).is_dir():
        if not (path / "adapter_model.safetensors").is_file():
            raise ModelError(
                f"{folder} has no adapter_model.safetensors. Pickled weights can run code and are refused: ask its "
                "author to save it as safetensors."
            )
        if found := damaged_file(path):
            raise ModelError(f"cannot load {folder}: {found}")
    with readable(folder):
        weights: dict[str, torch.Tensor] = load_peft_weights(folder, device=device, key_mapping=names)
    return weights


def explain(name: str, error: Exception) -> ModelError:
    """What transformers could not load, in one line that says what to do."""
    text = str(error)
    low = text.lower()
    if not Path(name).exists() and ("gated" in low or re.search(r"\b40[13]\b", text)):
        return ModelError(f"{name} is gated: accept its licence on its page, then run `hf auth login`.")
    if "safetensors" in low and ("pytorch_model" in low or ".bin" in low or "no file named" in low):
        return ModelError(
            f"{name} has no safetensors weights. Pickled checkpoints can run code and are refused; "
            "set trust_remote_code=true only if you trust their author."
        )
    if found := damaged_file(Path(name)):
        return ModelError(f"cannot load {name}: {found}")
    if "Unrecognized configuration class" in text:
        return ModelError(_other_kind(name, text))
    if "ignore_mismatched_sizes" in text:
        return ModelError(
            f"cannot load {name}: its weights do not have the shapes that its config.json says (group_size and bits, "
            "where it is quantized). Download it again, or correct that file."
        )
    return ModelError(f"cannot load {name}: {text.strip().splitlines()[0] if text.strip() else error!r}")


def _other_kind(name: str, text: str) -> str:
    """What a model is that transformers has no model of the asked kind for."""
    config = AutoConfig.from_pretrained(name)
    what = "is of another kind"
    if getattr(config, "is_encoder_decoder", False):
        what = "has an encoder and a decoder"
    elif any(getattr(config, f"{part}_config", None) is not None for part in ("vision", "audio")):
        what = "reads images or sound beside text"
    scores = "SequenceClassification" in text
    role, one = ("reward model", "classifier") if scores else ("policy", "text-only language model")
    return (
        f"{name} cannot be a {role}: {config.model_type} {what}, and transformers has no {one} of its kind. Name a "
        "language model that writes from left to right."
    )


def generation_config(source: Source) -> GenerationConfig:
    """How a model says that it generates: its generation_config.json, or else its config.json."""
    try:
        return GenerationConfig.from_pretrained(source.base, revision=source.revision or "main")
    except (OSError, TypeError, ValueError, AttributeError):  # there is none, or none that is one
        config = config_of(source)
        return GenerationConfig(eos_token_id=config.get_text_config().eos_token_id)


def positions(source: Source) -> int | None:
    """The longest row that a model takes, in tokens; None where it sets no limit."""
    config = config_of(source).get_text_config()
    found = getattr(config, "max_position_embeddings", None)
    return found if found and found > 0 else None  # XLNet's is -1
