"""A model without contents: every layer, dtype and adapter as a run would load them, and not one weight.

Under torch's FakeTensorMode such a model computes shapes, so that what a run would need can be booked beforehand.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any

import torch
from peft import get_peft_model
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from prefiere.models import attention
from prefiere.models.load import Adapter, Source, base_scheme, explain
from prefiere.models.packed import Layout, PackedLinear
from prefiere.models.quantize import Scheme
from prefiere.models.roles import POLICY, Trunk


class Held(PackedLinear):
    """A layer that bitsandbytes holds: its bytes, and its kernel, which unpacks straight into the compute dtype."""

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """A weight [I, O] without contents."""
        return torch.empty(self.in_features, self.out_features, dtype=dtype)

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
    made.register_buffer("g_idx", None)
    return made


def hollow(
    source: Source,
    *,
    compute: torch.dtype,
    adapters: Sequence[Adapter],
    reward: bool,
    checkpointing: bool,
    packed: bool,
) -> Trunk:
    """The trunk of a run on torch's "meta" device: the first adapter is the policy's, the others are roles beside it.

    ``reward``: a model that scores answers. Raises ModelError where there is no such model.
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
    if packed:
        base.set_attn_implementation(attention.NAME)
    with torch.device("meta"):
        if scheme is not None:
            _quantize(base, scheme)
        configs = [copy(a.config) for a in adapters]
        for config in configs:
            config.task_type = "SEQ_CLS" if reward else config.task_type
            config.modules_to_save = None  # type: ignore[attr-defined]
        model: Any = get_peft_model(base, configs[0]) if configs else base
        for number, config in enumerate(configs[1:]):
            model.add_adapter(f"role{number}", config)
        trunk = Trunk(model, packed=packed)
        if reward:
            trunk.heads[POLICY] = nn.Linear(shape.get_text_config().hidden_size, 1, bias=False)
    for name, p in trunk.named_parameters():
        if adapters:
            p.requires_grad_(".lora_" in name or "lora_magnitude" in name or name.startswith("heads."))
    if checkpointing:
        trunk.checkpoint_gradients()
        if adapters:
            trunk.lm.enable_input_require_grads()
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
