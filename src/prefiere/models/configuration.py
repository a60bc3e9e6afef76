"""A model's configuration as a run uses it, and as it was published, which is how it is saved again.

Nothing random is left in training, since what is measured and what is learnt must be one function; and nothing is put
out beside logits. Modules copy rates of dropout when they are made, so these are changed before. Rates of jitter stay,
since some routers read them in evaluation too (PhiMoE): what holds one runs as in evaluation.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

DROPS, JITTER = "drop", "jitter"
"""In the name of every rate at which something is dropped in training, and of every one at which it is disturbed."""
AUXILIARY = "output_router_logits"
"""Asks a mixture of experts for its routers' logits, and for a loss on them."""
_PUBLISHED, _STILL = "_prefiere_published", "_prefiere_still"


@dataclass(frozen=True, slots=True)
class TakenOut:
    """A language model that was taken out of a larger one, which reads images as well.

    whole: the class of that one. here, there: how the names of its modules begin in the language model, and in it.
    """

    whole: str
    here: str
    there: str

    def published(self, name: str) -> str:
        """The name there of a weight of an adapter here."""
        inner = name.removeprefix(_ADAPTED)
        return f"{_ADAPTED}{self.there}{inner.removeprefix(self.here)}" if inner.startswith(self.here) else name

    @property
    def mapping(self) -> dict[str, str]:
        """From names there to names here: PEFT's ``key_mapping``."""
        return {f"^{re.escape(self.there)}": self.here}


_ADAPTED = "base_model.model."


def larger_class(config: PreTrainedConfig) -> str | None:
    """The class of a checkpoint that holds more than the language model which transformers makes of it, or None."""
    made: Any = AutoModelForCausalLM._model_mapping.get(type(config), None)
    said = (getattr(config, "architectures", None) or [None])[0]
    if made is None or said is None or config.get_text_config() is config or made.__name__ == said:
        return None
    kind = getattr(transformers, str(said), None)  # a stranger's config.json may say anything
    return str(said) if isinstance(kind, type) and issubclass(kind, PreTrainedModel) else None


def taken_out(model: PreTrainedModel, config: PreTrainedConfig) -> TakenOut | None:
    """What a language model was taken out of, by the configuration of its checkpoint; None where that is all of it."""
    if (name := larger_class(config)) is None:
        return None
    with torch.device("meta"):
        whole = getattr(transformers, name)(config)
    places = [_place_of(m, m.get_input_embeddings()).split(".") for m in (model, whole)]
    while places[0] and places[1] and places[0][-1] == places[1][-1]:
        places = [place[:-1] for place in places]
    here, there = ("".join(f"{part}." for part in place) for place in places)
    return TakenOut(name, here, there)


def _place_of(model: nn.Module, part: nn.Module) -> str:
    return next(n for n, m in model.named_modules() if m is part)


@dataclass(frozen=True, slots=True)
class Published:
    """What a checkpoint says of itself: values that a run changes, by their path in the configuration, and the dtype
    of its weights. taken_out: of a larger model."""

    values: dict[tuple[str, ...], Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    taken_out: TakenOut | None = None

    @property
    def auxiliary(self) -> bool:
        """Whether it asks for a loss of its routers."""
        return any(path[-1] == AUXILIARY for path in self.values)


def _changed(config: Any, above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, value in list((config if isinstance(config, dict) else vars(config)).items()):
        path = (*above, str(name))
        if isinstance(value, PreTrainedConfig | dict):
            yield from _changed(value, path)
        elif isinstance(value, bool):
            if name == AUXILIARY and value:
                yield path, value
        elif isinstance(value, int | float) and value and DROPS in str(name):
            yield path, value


def _put(config: Any, path: tuple[str, ...], value: Any) -> None:
    *above, name = path
    for part in above:
        config = config[part] if isinstance(config, dict) else getattr(config, part)
    if isinstance(config, dict):
        config[name] = value
    else:
        setattr(config, name, value)


def calm(config: Any, folder: str | Path) -> Published:
    """Take what is random, and what is put out besides, from the configuration of a checkpoint; returns what it said.

    folder: where its weights may lie, which are asked for their dtype where the configuration does not say it.
    """
    values = dict(_changed(config))
    for path, value in values.items():
        _put(config, path, type(value)(0))
    said = getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None)
    return Published(values, said if isinstance(said, torch.dtype) else _dtype_of_files(Path(folder)))


def _dtype_of_files(folder: Path) -> torch.dtype:
    names = {"F16": torch.float16, "BF16": torch.bfloat16}
    for path in sorted(folder.glob("*.safetensors")) if folder.is_dir() else ():
        with safe_open(path, framework="pt") as f:
            for name in f.keys():  # noqa: SIM118 (no dictionary)
                return names.get(f.get_slice(name).get_dtype(), torch.float32)
    return torch.float32


def remember(model: nn.Module, published: Published) -> None:
    """Note with a model what its checkpoint said."""
    setattr(model, _PUBLISHED, published)


def published(model: nn.Module) -> Published:
    """What the checkpoint of a model said; nothing for a model that was not loaded here."""
    found: Published = getattr(model, _PUBLISHED, Published())
    return found


def no_dropout(model: nn.Module) -> None:
    """Leave nothing random in training: dropout layers, those of adapters included, drop nothing, and modules with a
    rate of jitter run as in evaluation."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif any(JITTER in name for name in vars(module)):
            module.__class__ = _as_in_evaluation(type(module))  # type: ignore[arg-type]
            module.eval()


def drops_out(model: nn.Module) -> bool:
    """Whether something is left that drops out in training: an adapter that was asked to."""
    return any(isinstance(m, nn.Dropout) and m.p > 0 for m in model.modules())


@cache
def _as_in_evaluation(kind: type[nn.Module]) -> type[nn.Module]:
    if hasattr(kind, _STILL):
        return kind

    class Still(kind):  # type: ignore[valid-type, misc]
        def train(self, mode: bool = True) -> Any:
            return super().train(False)

    Still.__name__, Still.__qualname__ = kind.__name__, kind.__qualname__
    setattr(Still, _STILL, True)
    return Still


@contextmanager
def _as_published(model: PreTrainedModel) -> Iterator[None]:
    values = published(model).values
    for path, value in values.items():
        _put(model.config, path, value)
    try:
        yield
    finally:
        for path, value in values.items():
            _put(model.config, path, type(value)(0))


def save_whole(
    model: PreTrainedModel, folder: Path, dtype: torch.dtype | None = None, weights: dict[str, Tensor] | None = None
) -> None:
    """Write a whole model as transformers does, with the configuration that it was published with.

    dtype: of its weights (None: as they were published); what is fp32 because it scores stays so. weights: by name, of
    a model that holds a part of them.
    """
    dtype = dtype or published(model).dtype
    with _as_published(model):
        if model.dtype == dtype:
            model.save_pretrained(folder, state_dict=weights)
            return
        model.save_pretrained(folder, state_dict=_cast(weights or model.state_dict(), dtype))
    path = folder / "config.json"
    told = json.loads(path.read_text())
    path.write_text(json.dumps(told | {"dtype": str(dtype).removeprefix("torch.")}, indent=2, sort_keys=True) + "\n")


def _cast(weights: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The weights in another dtype; those that are tied stay one tensor."""
    made: dict[tuple[int, torch.Size], Tensor] = {}
    out = {}
    for name, tensor in weights.items():
        key = tensor.data_ptr(), tensor.shape
        if key not in made:
            made[key] = tensor.to(dtype) if tensor.is_floating_point() else tensor
        out[name] = made[key]
    return out
