"""The adapter that a run trains, as PEFT describes it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftConfig

from prefiere.models.source import ModelError


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
        try:
            return cls(PeftConfig.from_pretrained(folder))
        except (OSError, ValueError, TypeError) as e:
            raise ModelError(f"{folder}: its adapter_config.json cannot be read ({str(e).splitlines()[0]}).") from e

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
        return cls(found)


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else str(value)
