"""A model without contents: every layer, dtype and adapter as a run would load them, and not one weight.

Under torch's FakeTensorMode such a model computes shapes, so that what a run would need can be booked beforehand.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy, deepcopy
from typing import Any, Literal

import torch
from peft import get_peft_model
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from prefiere.kernels import attention
from prefiere.kernels.packed import Layout, PackedLinear
from prefiere.models.adapter import Adapter
from prefiere.models.classifier import decodes
from prefiere.models.load import base_scheme
from prefiere.models.quantize import Scheme
from prefiere.models.score_head import EncoderTrunk
from prefiere.models.source import Source, explain
from prefiere.models.trunk import CRITIC, POLICY, REWARD, Trunk


class Held(PackedLinear):
    """A layer that bitsandbytes holds: its bytes, and its kernel, which unpacks straight into the compute dtype."""

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """A weight [I, O] without contents, written all the same."""
        return torch.zeros(self.in_features, self.out_features, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """As bitsandbytes does, in the dtype of ``x``, and as PEFT does, on a copy."""
        return super().forward(x).to(x.dtype).clone()


def _quantized(module: nn.Linear, scheme: Scheme) -> PackedLinear:
    """The layer as it is after loading, in bytes."""
    i, o = module.in_features, module.out_features
    packed = scheme.config is not None and scheme.name not in ("nf4", "fp4", "int8")
    layout = Layout.of(scheme.config) if packed and scheme.config else Layout("gptq", scheme.bits, 64)
    made = (PackedLinear if packed else Held)(i, o, module.bias is not None, layout)
    for name in layout.tensors(1, 1):
        made._buffers.pop(name, None)
    groups = 1 if layout.group_size == -1 else -(-i // layout.group_size)
    made.register_buffer("qweight", torch.empty(i * layout.bits // 8, o, dtype=torch.uint8))
    made.register_buffer("qzeros", torch.empty(groups, o, dtype=torch.uint8))
    # The scales of bitsandbytes are the bytes above (nf4, quantized again) or one number for each output (int8).
    scales = torch.empty(groups if packed else 0, o, dtype=torch.float16)
    made.register_buffer("scales", scales)
    ordered = packed and bool(scheme.config and scheme.config.get("desc_act"))
    made.register_buffer("g_idx", torch.empty(i, dtype=torch.long) if ordered else None)
    return made


def hollow(
    source: Source,
    *,
    compute: torch.dtype,
    adapters: Sequence[Adapter],
    reward: bool,
    checkpointing: bool,
    packed: bool,
    mounted: Sequence[Adapter] = (),
    critic: Literal["own", "shared"] | None = None,
) -> Trunk:
    """The trunk of a run on torch's "meta" device. adapters: the policy's, and the critic's where there is one.

    ``reward``: a model that scores answers. ``mounted``: frozen reward models on the same base. ``critic``: of full
    fine-tuning, a model of its own or a head on the policy's; with adapters either is the second of them. Raises
    ModelError where there is no such model.
    """
    attention.register()
    scheme = base_scheme(source)
    try:
        shape = AutoConfig.from_pretrained(source.base, trust_remote_code=source.trust)
        if reward:
            shape.num_labels = 1
        kind = AutoModelForSequenceClassification if reward else AutoModelForCausalLM
        dtype = compute if adapters or scheme else torch.float32
        with torch.device("meta"):
            base: PreTrainedModel = kind.from_config(shape, trust_remote_code=source.trust, dtype=dtype)
    except (OSError, ValueError) as e:
        raise explain(source.base, e) from e
    encoder = reward and not decodes(base)  # asked before PEFT wraps the head
    if packed and not encoder:
        base.set_attn_implementation(attention.NAME)
    with torch.device("meta"):
        if scheme is not None:
            _quantize(base, scheme)
        configs = [copy(a.config) for a in (*adapters, *mounted)]
        for config in configs:
            config.task_type = "SEQ_CLS" if reward else config.task_type
            config.modules_to_save = None  # type: ignore[attr-defined]
        model: Any = get_peft_model(base, configs[0]) if configs else base
        names = [CRITIC] * (len(adapters) > 1) + [f"{REWARD}_{i}" for i in range(len(mounted))]
        for name, config in zip(names, configs[1:], strict=True):
            model.add_adapter(name, config)
        trunk = EncoderTrunk(model, typed=False) if encoder else Trunk(model, packed=packed)
        width = shape.get_text_config().hidden_size
        if reward and not encoder:
            trunk.heads[POLICY] = nn.Linear(width, 1, bias=False)
        if critic:
            trunk.heads[CRITIC] = nn.Linear(width, 1)
    for name, p in trunk.named_parameters():
        if adapters:
            trained = ".lora_" in name or "lora_magnitude" in name or name.startswith("heads.")
            p.requires_grad_(trained and f".{REWARD}_" not in name)
    if checkpointing:
        trunk.checkpoint_gradients()
        if adapters:
            trunk.lm.enable_input_require_grads()
    if critic == "own" and not adapters:
        trunk.bodies[CRITIC] = Trunk(deepcopy(trunk.decoder), packed=packed)  # type: ignore[arg-type]
        if checkpointing:
            trunk.bodies[CRITIC].checkpoint_gradients()  # type: ignore[operator]
    return trunk.train()


def _quantize(base: PreTrainedModel, scheme: Scheme) -> None:
    for name, module in list(base.named_modules()):
        if type(module) is nn.Linear and name.startswith(f"{base.base_model_prefix}."):
            base.set_submodule(name, _quantized(module, scheme))
        elif "norm" in type(module).__name__.lower():
            module.float()


def materialise(trunk: nn.Module) -> None:
    """Move a model from "meta" to the device of the surrounding FakeTensorMode; adapters and heads in fp32."""
    made: dict[int, Tensor] = {}

    def empty_like(old: Tensor, dtype: torch.dtype, grad: bool) -> Tensor:
        if id(old) not in made:
            empty = torch.empty(old.shape, dtype=dtype)
            made[id(old)] = nn.Parameter(empty, requires_grad=grad) if isinstance(old, nn.Parameter) else empty
        return made[id(old)]

    for module in trunk.modules():
        for name, p in list(module._parameters.items()):
            if p is not None:
                module._parameters[name] = empty_like(p, torch.float32 if p.requires_grad else p.dtype, p.requires_grad)  # type: ignore[assignment]
        for name, b in list(module._buffers.items()):
            if b is not None:
                module._buffers[name] = empty_like(b, b.dtype, False)
