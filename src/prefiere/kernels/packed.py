"""Linear layers of GPTQ, AWQ and compressed-tensors checkpoints: packed integers with group scales.

    W[i, o] = scale[g(i), o] * (code[i, o] - zero[g(i), o])

The packages that transformers reads these formats with have fast kernels without a gradient once the model has been
evaluated, slow ones that keep every layer's unpacked weight for the backward, or unpack the whole model at its first
use. These layers unpack a weight when it is used, forward and backward, and keep nothing. Group size, act-order and
zeros are as the checkpoint has them. Formats: Frantar et al. 2023 (GPTQ) and Lin et al. 2023 (AWQ), as AutoGPTQ and
AutoAWQ store them, and compressed-tensors' pack-quantized integers.

Suffixes: _I inputs, _O outputs, _G groups, _P packed words or bytes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

METHOD = "prefiere-packed"
"""The name under which transformers knows how these checkpoints are loaded here."""
BITS = (4, 8)
_AWQ_ORDER = [0, 4, 1, 5, 2, 6, 3, 7]  # where the eight outputs of an AWQ word lie in it


@dataclass(frozen=True, slots=True)
class PackedLayout:
    """How a checkpoint packs its integers. group_size -1: one group. offset: what is added to a stored zero. stored:
    zeros are stored (else all are the middle). ordered: inputs say which group they are in (act-order)."""

    method: Literal["gptq", "awq", "compressed-tensors"]
    bits: int
    group_size: int
    offset: int = 0
    stored: bool = True
    ordered: bool = False

    @classmethod
    def of(cls, config: dict[str, Any]) -> PackedLayout:
        """From a checkpoint's ``quantization_config``. Raises ValueError for a variant that is not read."""
        method = config["quant_method"]
        if method == "compressed-tensors":
            return cls._compressed(config)
        bits = int(config.get("bits", config.get("w_bit", 0)))
        version = config.get("version", "gemm") if method == "awq" else config.get("checkpoint_format", "gptq")
        known = {"gemm": 0} if method == "awq" else {"gptq": 1, "gptq_v2": 0}
        if str(version).lower() not in known:
            raise ValueError(f"{method.upper()} in the layout {version!r}: {' and '.join(known)} are read")
        size = config.get("group_size", config.get("q_group_size", 128))
        return cls(method, bits, size, known[str(version).lower()], ordered=method == "gptq")._checked()

    @classmethod
    def _compressed(cls, config: dict[str, Any]) -> PackedLayout:
        groups = list((config.get("config_groups") or {}).values())
        weights = [g.get("weights") or {} for g in groups]
        if config.get("format") != "pack-quantized" or len(groups) != 1 or groups[0].get("input_activations"):
            what = f"{len(groups)} groups" if len(groups) != 1 else f"the format {config.get('format')!r}"
            what = "quantized activations" if groups and groups[0].get("input_activations") else what
            raise ValueError(f"compressed-tensors with {what}: one group of pack-quantized weights is read")
        w = weights[0]
        if w.get("type", "int") != "int" or w.get("strategy") not in ("group", "channel"):
            raise ValueError(
                f"compressed-tensors with {w.get('type')} weights by {w.get('strategy')}: integers by group or channel "
                "are read"
            )
        size = w.get("group_size") or -1
        ordered = w.get("actorder") in ("group", "dynamic")
        made = cls("compressed-tensors", int(w.get("num_bits", 0)), size, 0, not w.get("symmetric", True), ordered)
        return made._checked()

    def _checked(self) -> PackedLayout:
        name = self.method if self.method == "compressed-tensors" else self.method.upper()
        known = (4,) if self.method == "awq" else BITS
        if self.bits not in known:
            raise ValueError(f"{name} weights of {self.bits} bits: {' or '.join(map(str, known))} are read")
        if not isinstance(self.group_size, int) or (self.group_size < 1 and self.group_size != -1):
            raise ValueError(f"{name} with group_size {self.group_size}: it is -1 or a whole number from 1")
        return self

    def tensors(self, inputs: int, outputs: int) -> dict[str, Tensor]:
        """The tensors of one layer, under the checkpoint's names."""
        groups = 1 if self.group_size == -1 else -(-inputs // self.group_size)
        words = 32 // self.bits

        def integers(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.int32)

        if self.method == "compressed-tensors":
            found = {
                "weight_packed": integers(outputs, -(-inputs // words)),
                "weight_scale": torch.zeros(outputs, groups, dtype=torch.float32),
                "weight_shape": torch.zeros(2, dtype=torch.int64),
            }
            zeros = {"weight_zero_point": integers(-(-outputs // words), groups)} if self.stored else {}
            return found | zeros | ({"weight_g_idx": integers(inputs)} if self.ordered else {})
        gptq = self.method == "gptq"
        return {
            "qweight": integers(inputs // words, outputs) if gptq else integers(inputs, outputs // words),
            "qzeros": integers(groups, -(-outputs // words)),
            "scales": torch.zeros(groups, outputs, dtype=torch.float16),
        } | ({"g_idx": integers(inputs)} if gptq else {})


def _words(packed: Tensor, bits: int) -> Tensor:
    """uint8 [..., 32 / bits]: the integers of int32 words, lowest bits first."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32, device=packed.device)
    return ((packed[..., None] >> shifts) & (2**bits - 1)).to(torch.uint8)


class _Product(torch.autograd.Function):
    """x @ W for a frozen packed W [I, O], which is unpacked twice and never kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: PackedLinear) -> Tensor:
        ctx.layer = layer
        return x @ layer.dequantize(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad @ ctx.layer.dequantize(grad.dtype).T, None


class PackedLinear(nn.Linear):
    """A frozen linear layer on packed integers. Its ``weight`` is None, so that nothing can write to one in vain."""

    weight: Any = None
    qweight: Tensor
    qzeros: Tensor
    scales: Tensor
    g_idx: Tensor | None

    def __init__(self, inputs: int, outputs: int, bias: bool, layout: PackedLayout):
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.layout = inputs, outputs, layout
        for name, tensor in layout.tensors(inputs, outputs).items():
            self.register_buffer(name, tensor)
        self.register_buffer("bias", torch.zeros(outputs, dtype=torch.float16) if bias else None)
        self._is_hf_initialized = True  # transformers would draw a random weight

    @torch.no_grad()
    def repack(self) -> None:
        """From the checkpoint's words to bytes: qweight [I / 2 or I, O], qzeros [G, O]. Called once, after loading."""
        bits = self.layout.bits
        tensors = {name: self._buffers.pop(name) for name in self.layout.tensors(1, 1)}
        codes_IO, zeros_GO, scales_GO, g_idx = self._integers(tensors)
        size = self.in_features if self.layout.group_size == -1 else self.layout.group_size
        plain = torch.arange(self.in_features, device=codes_IO.device) // size
        g_idx = plain if g_idx is None else g_idx.long()
        regular = self.in_features % size == 0 and torch.equal(g_idx, plain)  # equal groups, one after the other
        if bits == 4:
            codes_IO = torch.nn.functional.pad(codes_IO, (0, 0, 0, self.in_features % 2))
            codes_IO = codes_IO[0::2] | (codes_IO[1::2] << 4)
        self.register_buffer("qweight", codes_IO.contiguous())
        self.register_buffer("qzeros", zeros_GO.contiguous())
        self.register_buffer("scales", scales_GO.contiguous())
        self.register_buffer("g_idx", None if regular else g_idx)

    def _integers(self, tensors: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """uint8 codes [I, O] and zeros [G, O], scales [G, O], and the group of each input where it is stored."""
        bits, shape = self.layout.bits, (self.in_features, self.out_features)
        if self.layout.method == "compressed-tensors":
            codes = _words(tensors["weight_packed"], bits).flatten(1)[:, : self.in_features].T
            scales = tensors["weight_scale"].T
            if self.layout.stored:
                words = _words(tensors["weight_zero_point"], bits)  # these run along the outputs
                zeros = words.permute(1, 0, 2).flatten(1)[:, : self.out_features]
            else:
                zeros = torch.full(scales.shape, 2 ** (bits - 1), dtype=torch.uint8, device=scales.device)
            return codes, zeros, scales, tensors.get("weight_g_idx")
        codes, zeros = _words(tensors["qweight"], bits), _words(tensors["qzeros"], bits)
        if self.layout.method == "gptq":
            codes = codes.transpose(1, 2)  # words run along the inputs
        else:
            codes, zeros = codes[..., _AWQ_ORDER], zeros[..., _AWQ_ORDER]
        zeros = zeros.flatten(1)[:, : self.out_features] + self.layout.offset
        return codes.reshape(shape), zeros, tensors["scales"], tensors.get("g_idx")

    def sound(self) -> bool:
        """Whether every input is in a group that there is."""
        return self.g_idx is None or bool((self.g_idx >= 0).all() and (self.g_idx < len(self.scales)).all())

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """The weight [I, O] in ``dtype``, as x @ W takes it."""
        codes = self.qweight
        if self.layout.bits == 4:
            codes = torch.stack((codes & 15, codes >> 4), 1).flatten(0, 1)[: self.in_features]
        # Differences of bytes and their products with fp16 scales round once, in fp16, as GPTQ and AWQ define them.
        work = torch.float32 if dtype == torch.float32 else self.scales.dtype
        scales, zeros = self.scales.to(work), self.qzeros.to(work)
        if self.g_idx is not None:
            weight = codes.to(work).sub_(zeros.index_select(0, self.g_idx)).mul_(scales.index_select(0, self.g_idx))
        else:
            grouped = codes.view(scales.shape[0], -1, self.out_features).to(work)
            weight = grouped.sub_(zeros[:, None]).mul_(scales[:, None]).flatten(0, 1)
        return weight.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., I] -> [..., O], in the autocast dtype where autocast is on, else in that of ``x``."""
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        out: Tensor = _Product.apply(x.to(dtype), self)
        return out if self.bias is None else out + self.bias.to(dtype)


def _is_packed(name: str, config: dict[str, Any], trunk: str) -> bool:
    """Whether a checkpoint says that this linear layer is packed; a head outside the ``trunk`` is only where named."""
    if not name.startswith(f"{trunk}.") and not (name == "lm_head" and config.get("lm_head")):
        return False
    if config["quant_method"] == "compressed-tensors":
        left_out = [*(config.get("ignore") or [])]
        (group,) = config["config_groups"].values()
        targets = group.get("targets") or ["Linear"]
        chosen = any(t == "Linear" or _matches(t, name) for t in targets)
        return chosen and not any(_matches(i, name) for i in left_out)
    if any(part in name for part in config.get("modules_to_not_convert") or []):
        return False
    inside = config.get("modules_in_block_to_quantize")
    names = [n for group in inside for n in ([group] if isinstance(group, str) else group)] if inside else None
    return names is None or any(name.endswith(n) for n in names)


def _matches(pattern: str, name: str) -> bool:
    return bool(re.match(pattern[3:], name)) if pattern.startswith("re:") else pattern == name


@register_quantization_config(METHOD)
class PackedConfig(QuantizationConfigMixin):
    """A checkpoint's own ``quantization_config``, under a name that leads to `PackedQuantizer`."""

    def __init__(self, checkpoint: dict[str, Any], **kwargs: Any):
        self.quant_method = METHOD  # type: ignore[assignment]
        self.checkpoint = checkpoint


@register_quantizer(METHOD)
class PackedQuantizer(HfQuantizer):
    """Puts `PackedLinear` where a checkpoint has packed layers, before transformers reads the weights into them."""

    quantization_config: PackedConfig

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:
        config = self.quantization_config.checkpoint
        layout = PackedLayout.of(config)
        for name, module in list(model.named_modules()):
            if type(module) is nn.Linear and _is_packed(name, config, model.base_model_prefix):
                packed = PackedLinear(module.in_features, module.out_features, module.bias is not None, layout)
                model.set_submodule(name, packed.to("meta"))

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:
        for module in model.modules():
            if isinstance(module, PackedLinear):
                module.repack()

    def is_serializable(self) -> bool:
        """The base is never written: an adapter is, or a dense merge."""
        return False

    @property
    def is_trainable(self) -> bool:
        """Adapters on it are."""
        return True
