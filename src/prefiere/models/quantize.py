"""How a frozen base is held in few bits: what was asked for or found, how it is loaded, and what it really is.

On the fly by bitsandbytes: NF4 with double quantization (QLoRA, Dettmers et al. 2023) and int8. Already quantized
checkpoints: bitsandbytes, and GPTQ, AWQ and compressed-tensors, which `models.packed` reads. Anything else is refused,
because its layers would not pass gradients on, or not the right ones, or are not small in memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from prefiere.kernels import packed

TRAINABLE = (
    "What can: quantize=nf4 or int8 on a dense model, or a checkpoint in GPTQ, AWQ, bitsandbytes or compressed-tensors"
)
PACKED = ("gptq", "awq", "compressed-tensors")
ON_THE_FLY = {"nf4": 4, "int8": 8}
LEAST = 0.5
"""Share of the weights between embeddings and head that must be quantized for the base to be called so."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """How a base is to be held. ``name``: nf4, fp4, int8, gptq, awq or compressed-tensors. ``config``: the checkpoint's
    own quantization_config; None where it is dense and quantized on the fly."""

    name: str
    bits: int
    config: dict[str, Any] | None = None

    def arguments(self, compute: torch.dtype) -> tuple[dict[str, Any] | None, dict[str, Any]]:
        """What from_pretrained takes: a quantization_config to put into the model's configuration, and keywords."""
        if self.name in ("nf4", "fp4", "int8"):
            if self.config is not None:  # computed as this run computes, whatever the checkpoint's author did
                return {**self.config, "bnb_4bit_compute_dtype": str(compute).removeprefix("torch.")}, {}
            options: dict[str, Any] = {"load_in_8bit": True}
            if self.bits == 4:
                options = {
                    "load_in_4bit": True,
                    "bnb_4bit_quant_type": "nf4",
                    "bnb_4bit_use_double_quant": True,
                    "bnb_4bit_compute_dtype": compute,
                }
            return None, {"quantization_config": BitsAndBytesConfig(**options)}
        return {"quant_method": packed.METHOD, "checkpoint": self.config}, {}


def scheme(name: str, config: Any, asked: str = "none") -> Scheme | None:
    """How model ``name`` is to be held, given its transformers configuration; None where it is and stays dense.

    Raises ValueError for what cannot be trained, for a second quantization, and for a missing package (with the line
    that installs it).
    """
    of = getattr(config, "quantization_config", None)
    found: dict[str, Any] | None = of if of is None or isinstance(of, dict) else of.to_dict()
    if found is None:
        if asked == "none":
            return None
        if asked not in ON_THE_FLY:
            raise ValueError(f"{name} is dense, and was {asked} when an adapter was trained on it. Restore it.")
        return _installed(Scheme(asked, ON_THE_FLY[asked]))
    made = _installed(_of_checkpoint(name, found))
    if asked not in ("none", made.name):
        raise ValueError(f"quantize={asked}: {name} is quantized already, as {made.name}. Leave quantize out.")
    return made


def _of_checkpoint(name: str, found: dict[str, Any]) -> Scheme:
    method = str(found.get("quant_method") or "")
    if found.get("load_in_4bit"):
        return Scheme(str(found.get("bnb_4bit_quant_type", "fp4")), 4, found)
    if found.get("load_in_8bit"):
        return Scheme("int8", 8, found)
    if method in PACKED:
        try:
            return Scheme(method, packed.PackedLayout.of(found).bits, found)
        except ValueError as e:
            raise ValueError(f"{name}: {e}. {TRAINABLE}.") from None
    raise ValueError(f"{name} is quantized as {method or found}, on which LoRA cannot be trained. {TRAINABLE}.")


def _installed(scheme: Scheme) -> Scheme:
    if scheme.name not in PACKED and find_spec("bitsandbytes") is None:
        raise ValueError(f"{scheme.name} needs bitsandbytes, which is not installed: pip install bitsandbytes")
    return scheme


# -- after loading ------------------------------------------------------------------------------------------------


def _kind(module: nn.Module) -> str | None:
    """What a layer's weight is really held as; None for a dense layer, whatever it is called."""
    name = type(module).__name__
    if isinstance(module, packed.PackedLinear):
        return module.layout.method
    weight = getattr(module, "weight", None)
    if name == "Linear4bit" and getattr(weight, "quant_state", None) is not None:
        return str(weight.quant_state.quant_type)  # type: ignore[union-attr]
    if name == "Linear8bitLt" and weight is not None and weight.dtype == torch.int8:
        return "int8"
    return None


def _size(module: nn.Module) -> int:
    """How many weights a quantized layer stands for."""
    return int(module.in_features) * int(module.out_features)  # type: ignore[arg-type]


def _int8_on_cpu() -> type[nn.Module]:
    import bitsandbytes as bnb

    class OnePath(bnb.nn.Linear8bitLt):
        """On a CPU bitsandbytes rounds activations in evaluation and not in training: always as in training."""

        def train(self, mode: bool = True) -> OnePath:
            return super().train(True)

    OnePath.__name__ = "Linear8bitLt"
    return OnePath


def make_safe(model: PreTrainedModel) -> None:
    """Turn off what makes training wrong after an evaluation; to be called before the first forward.

    On CPUs with bfloat16 instructions bitsandbytes repacks 4-bit weights in the first evaluation, for a kernel without
    a gradient; in int8 it rounds activations in evaluation and not in training.
    """
    on_cpu = next(model.parameters()).device.type == "cpu"
    one_path = _int8_on_cpu() if on_cpu and any(_kind(m) == "int8" for m in model.modules()) else None
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
        if one_path is not None and _kind(module) == "int8":
            module.__class__ = one_path
            module.train()


def norms_in_fp32(model: PreTrainedModel) -> None:
    """QLoRA's precision, where the base is quantized: layer norms in fp32, the rest in the 16-bit dtype."""
    for module in model.modules() if getattr(model, "is_quantized", False) else ():
        if "norm" in type(module).__name__.lower():
            module.float()


@dataclass(frozen=True, slots=True)
class Held:
    """What a loaded base really is: ``layers`` of its ``linear`` layers are quantized, a ``share`` of the weights
    between embeddings and head."""

    layers: int
    linear: int
    share: float


def held(model: PreTrainedModel) -> Held:
    """Count what is quantized, by how weights are stored; adapters on the base do not count."""
    modules = list(model.base_model.modules())
    tuners = [m for m in modules if isinstance(m, BaseTunerLayer)]
    added = {id(m) for t in tuners for n, child in t.named_children() if n != "base_layer" for m in child.modules()}
    ends = {id(m) for m in (model.get_input_embeddings(), model.get_output_embeddings()) if m is not None}
    layers = [m for m in modules if id(m) not in added | ends | {id(t) for t in tuners}]
    quantized = [m for m in layers if _kind(m) is not None]
    dense = [m for m in layers if _kind(m) is None and isinstance(m, nn.Linear)]
    few = sum(_size(m) for m in quantized)
    own = {id(p): p.numel() for m in layers if _kind(m) is None for p in m.parameters(recurse=False)}
    rest = sum(own.values())
    return Held(len(quantized), len(quantized) + len(dense), few / max(1, few + rest))


def check_quantized(model: PreTrainedModel, scheme: Scheme, name: str) -> Held:
    """Raise ValueError where a base that should be held in few bits is not, or where its groups are damaged."""
    found = held(model)
    if found.share < LEAST:
        raise ValueError(
            f"{name} would not be {scheme.bits}-bit: {scheme.name} holds {found.layers} of its {found.linear} linear "
            f"layers, {found.share:.0%} of its weights (the rest are no linear layers). Leave quantize out, or name "
            "another model."
        )
    for layer, module in model.named_modules():
        if isinstance(module, packed.PackedLinear) and not module.sound():
            raise ValueError(f"{name} is damaged: {layer} has inputs in groups that there are not. Download it again.")
    return found


def parameters(model: nn.Module) -> int:
    """Parameters of a model, a quantized layer counted as the weights that it stands for."""
    quantized = [m for m in model.modules() if _kind(m) is not None]
    weights = {id(m.weight) for m in quantized if isinstance(getattr(m, "weight", None), nn.Parameter)}
    return sum(_size(m) for m in quantized) + sum(p.numel() for p in model.parameters() if id(p) not in weights)


# -- back to a dense model ----------------------------------------------------------------------------------------


def weight_of(module: nn.Module) -> Tensor:
    """fp32 [O, I]: what a quantized layer's weight stands for."""
    kind = _kind(module)
    if isinstance(module, packed.PackedLinear):
        return module.dequantize(torch.float32).T
    weight: Any = module.weight
    if kind in ("nf4", "fp4"):
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(weight.data, weight.quant_state).float()
    if kind == "int8":
        state: Any = module.state
        codes, scale = (weight.CB, weight.SCB) if weight.CB is not None else (state.CB, state.SCB)
        return codes.float() * (scale[:, None].float() / 127.0)
    raise ValueError(f"a {kind or type(module).__name__} layer cannot be written as dense weights")


def dequantize(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Replace every quantized layer by a dense one, in place, and forget that there was a quantization."""
    for name, module in list(model.named_modules()):
        if _kind(module) is None:
            continue
        weight = weight_of(module)
        bias = getattr(module, "bias", None)
        dense = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta", dtype=dtype)
        dense.weight = nn.Parameter(weight.to(dtype).contiguous(), requires_grad=False)
        if bias is not None:
            dense.bias = nn.Parameter(bias.detach().to(dtype), requires_grad=False)
        model.set_submodule(name, dense)
    quantizer: Any = getattr(model, "hf_quantizer", None)
    if quantizer is not None:
        quantizer.remove_quantization_config(model)
    for flag in ("is_loaded_in_4bit", "is_loaded_in_8bit", "_is_quantized"):
        if hasattr(model, flag):
            delattr(model, flag)
    nn.Module.to(model, dtype)
    return model
