"""A model that a notebook has loaded, with its tokenizer, as a folder: by its own save, under a hash of what it holds.

An adapter is saved alone, as PEFT does; its base is where it was loaded from.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefiere.files import short
from prefiere.recipe import RecipeError

TOKENIZERS = ("tokenizer", "processing_class")
"""What a call may name a loaded model's tokenizer."""


@dataclass(frozen=True)
class Loaded:
    """A model of transformers or PEFT in memory, and its tokenizer. base: of an adapter, where its base is."""

    model: Any
    tokenizer: Any
    base: str | None = None

    @property
    def said(self) -> str | None:
        """What is to be known of it."""
        return f"model: an adapter; its base is {self.base}, as it is there" if self.base else None

    def digest(self) -> str:
        """A hash of weights, configuration and tokenizer, 32 letters."""
        from prefiere.models.load import fingerprint

        h = hashlib.blake2b(digest_size=16)
        if self.base is None:
            h.update(fingerprint(self.model).encode())
            told = [self.model.config.to_dict(), getattr(self.model, "generation_config", None)]
        else:
            from peft import get_peft_model_state_dict

            active = self.model.active_adapter
            for name, tensor in sorted(get_peft_model_state_dict(self.model, adapter_name=active).items()):
                h.update(name.encode())
                h.update(_bytes(tensor))
            told = [self.model.peft_config[active].to_dict(), self.base]
        told += [_vocabulary(self.tokenizer), self.tokenizer.special_tokens_map, self.tokenizer.chat_template]
        h.update(json.dumps(told, sort_keys=True, default=_text).encode())
        return h.hexdigest()

    def write(self, folder: Path) -> None:
        """Fill a folder as `transformers` and PEFT load it."""
        from prefiere.models.load import without_bars

        with without_bars():
            if self.base is None:
                self.model.save_pretrained(folder)
            else:
                self._write_adapter(folder)
            self.tokenizer.save_pretrained(folder)

    def outline(self, folder: Path) -> None:
        """Fill a folder with all but weights: what it takes to say what a run would need."""
        if self.base is None:
            self.model.config.save_pretrained(folder)
            if (generation := getattr(self.model, "generation_config", None)) is not None:
                generation.save_pretrained(folder)
        else:
            self.model.peft_config[self.model.active_adapter].save_pretrained(folder)
            self._names_its_base(folder)
        self.tokenizer.save_pretrained(folder)

    def _write_adapter(self, folder: Path) -> None:
        active = self.model.active_adapter
        self.model.save_pretrained(folder, selected_adapters=[active])
        if (within := folder / active).is_dir():  # where PEFT puts an adapter of another name than "default"
            for path in within.iterdir():
                path.rename(folder / path.name)
            within.rmdir()
        self._names_its_base(folder)

    def _names_its_base(self, folder: Path) -> None:
        config = folder / "adapter_config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": self.base}, indent=2))


def _bytes(tensor: Any) -> Any:
    import torch

    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _text(value: Any) -> Any:
    """What JSON has no form of: a configuration within one, a set, a dtype."""
    if hasattr(value, "to_dict"):
        return value.to_dict()
    return sorted(map(str, value)) if isinstance(value, set | frozenset) else str(value)


def _vocabulary(tokenizer: Any) -> Any:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return backend.to_str() if backend is not None else sorted(tokenizer.get_vocab().items())


def taken_with_tokenizer(flat: dict[str, Any]) -> Loaded | None:
    """The model that a call has loaded, with the tokenizer that it gives, which is taken out of ``flat``.

    None where the model is a name. Raises RecipeError where one of the two is missing, or is something else.
    """
    given = {key: flat.pop(key) for key in TOKENIZERS if flat.get(key) is not None}
    for key in TOKENIZERS:
        flat.pop(key, None)
    model = flat.get("model")
    if model is None or isinstance(model, str) or hasattr(model, "__fspath__"):
        if given:
            raise RecipeError(
                f"{next(iter(given))} goes with a loaded model; a named one brings its own. Leave it out."
            )
        return None
    if not is_model(model):
        kind = type(model).__name__
        raise RecipeError(f"model must be a name, or a model of transformers or PEFT, not {kind} {short(model)}.")
    if len(given) != 1:
        raise RecipeError("model: a loaded model needs its tokenizer, once: give tokenizer=...")
    (key, tokenizer) = next(iter(given.items()))
    return _loaded("model", model, key, tokenizer)


def is_model(value: Any) -> bool:
    """Whether this is a model of transformers or PEFT in memory."""
    transformers = sys.modules.get("transformers")
    return _is_adapted(value) or (transformers is not None and isinstance(value, transformers.PreTrainedModel))


def _is_adapted(value: Any) -> bool:
    peft = sys.modules.get("peft")
    return peft is not None and isinstance(value, peft.PeftModel)


def scorer_in_memory(key: str, value: Any) -> Loaded | None:
    """The model that scores, of ``(model, tokenizer)``; None for any other value.

    Raises RecipeError for a model without its tokenizer.
    """
    if is_model(value):
        raise RecipeError(
            f"{key}: a loaded model needs its tokenizer: give ({key}_model, tokenizer), the two together."
        )
    if not (isinstance(value, tuple) and len(value) == 2 and is_model(value[0])) or is_model(value[1]):
        return None
    model, tokenizer = value
    return _loaded(key, model, key, tokenizer)


def _loaded(name: str, model: Any, key: str, tokenizer: Any) -> Loaded:
    """A model and its tokenizer. name, key: what the call gives the two as."""
    if not hasattr(tokenizer, "save_pretrained") or not hasattr(tokenizer, "special_tokens_map"):
        raise RecipeError(f"{key} must be a tokenizer of transformers, not {type(tokenizer).__name__}.")
    if any(p.device.type == "meta" for p in model.parameters()):
        raise RecipeError(
            f"{name}: parts of it are not in memory (device_map offloads them). Load it whole, or name it."
        )
    return Loaded(model, tokenizer, _base_of(model, name) if _is_adapted(model) else None)


def _base_of(model: Any, given: str) -> str:
    """Where the base of an adapter is. Raises RecipeError where it cannot be found again."""
    base = model.get_base_model()
    name = str(model.peft_config[model.active_adapter].base_model_name_or_path or base.config.name_or_path or "")
    if not name:
        raise RecipeError(
            f"{given}: the base under this adapter has no name to find it by. Save the base (save_pretrained), load it "
            "from there, and put the adapter on it."
        )
    name = str(Path(name).resolve()) if Path(name).is_dir() else name
    if getattr(base.config, "quantization_config", None) is not None and not _quantized_there(name):
        raise RecipeError(
            f"{given}: its base was quantized while it was loaded. Give its name, {name!r}, with quantize=nf4 (or "
            "int8) and lora=true: the adapter is then made here."
        )
    return name


def _quantized_there(name: str) -> bool:
    from prefiere.models.source import Source, config_of

    found: Mapping[str, Any] | None = getattr(config_of(Source(name, None)), "quantization_config", None)
    return found is not None
