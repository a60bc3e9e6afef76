"""The adapter that a run trains, as PEFT describes it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from prefiere.models.configuration import published
from prefiere.models.source import ModelError, adapter_config

NAME_THEM = " Name the layers that take an adapter, such as lora_target_modules=[q_proj,v_proj]."
"""Said where an adapter on all linear layers fails."""


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
    def saved(cls, folder: str) -> Adapter:
        """The configuration of an adapter that exists, in a folder or on the hub. Raises ModelError where it cannot be
        read."""
        found = cls(adapter_config(folder))
        if found.biases != "none":
            raise ModelError(
                f"{folder}: it has trained biases of its base (bias={found.biases}), so that no reference is left: "
                f"merge it first (prefiere export {folder} --merge --out FOLDER) and start from FOLDER."
            )
        return found

    @property
    def hint(self) -> str:
        """What to do where some linear layers take no adapter: asked before PEFT has put it in their place."""
        every = getattr(self.config, "target_modules", None) == "all-linear"
        return NAME_THEM if every else ""

    @property
    def biases(self) -> str:
        """Which biases of the base are trained in place, where every role has them: "none" is what can be."""
        return str(getattr(self.config, "bias", "none"))

    def to_json(self) -> dict[str, Any]:
        """Plain values: PEFT's own."""
        plain: dict[str, Any] = json.loads(json.dumps(self.config.to_dict(), default=_plain, sort_keys=True))
        return plain

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
        made = cls(found)
        if made.biases != "none":
            raise ModelError(
                f"peft_config: bias={made.biases} trains biases of the base itself, so that the reference would move "
                "with the policy: leave it out (lora_bias=true trains biases of the adapter's own)."
            )
        return made


def names_in(base: PreTrainedModel) -> dict[str, str] | None:
    """PEFT's ``key_mapping`` for adapters of a base that was taken out of a larger model; None for any other."""
    whole = published(base).taken_out
    return None if whole is None else whole.mapping


def save_adapter(model: PeftModel, folder: Path, **options: Any) -> None:
    """Write an adapter as PEFT does, under the names of the class that its base was published as."""
    model.save_pretrained(str(folder), **options)
    whole = published(model.get_base_model()).taken_out
    if whole is not None:
        path = folder / "adapter_model.safetensors"
        weights = {whole.published(name): tensor for name, tensor in load_file(path).items()}
        save_file(weights, path, metadata={"format": "pt"})
        told = folder / "adapter_config.json"
        config = {name: _inner(value, whole.here) for name, value in json.loads(told.read_text()).items()}
        told.write_text(json.dumps(config, indent=2, sort_keys=True))


def _inner(value: Any, here: str) -> Any:
    """Names of modules without their beginning, as PEFT finds them in either class; any other value as it is."""
    if isinstance(value, list):
        return [name.removeprefix(here) if isinstance(name, str) else name for name in value]
    return {name.removeprefix(here): x for name, x in value.items()} if isinstance(value, dict) else value


def make_room(base: PreTrainedModel, weights: Mapping[str, Tensor]) -> None:
    """As many embeddings as an adapter was saved with: it may have tokens that the base does not have.

    weights: the adapter's, by their names in its file.
    """
    rows = max((len(weights[n]) for n in _tables(base) if n in weights), default=0)
    table: Any = base.get_input_embeddings()
    if rows > len(table.weight):
        with torch.random.fork_rng():  # new rows are drawn, and then overwritten by the adapter's
            base.resize_token_embeddings(rows, mean_resizing=False)


def _tables(base: PreTrainedModel) -> list[str]:
    """Names, in an adapter's file, of the base's embeddings and head."""
    ends = [m for m in (base.get_input_embeddings(), base.get_output_embeddings()) if m is not None]
    return [f"base_model.model.{n}.weight" for n, m in base.named_modules() if any(m is e for e in ends)]


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else str(value)
