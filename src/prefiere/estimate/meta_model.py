"""The models of a plan without their weights: every layer, dtype and adapter as a run loads them, on torch's "meta".

Under torch's FakeTensorMode such a model computes shapes, so that what a run would need can be booked beforehand.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy, deepcopy
from typing import Any

import torch
from peft import PeftConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from prefiere.kernels import attention
from prefiere.kernels.linear import route
from prefiere.kernels.packed import PackedLayout, PackedLinear
from prefiere.models.adapter import Adapter
from prefiere.models.classifier import decodes, install_head, scoring_config
from prefiere.models.load import base_scheme
from prefiere.models.quantize import Scheme
from prefiere.models.score_head import EncoderTrunk, Head, head_of
from prefiere.models.source import Source, config_of, readable
from prefiere.models.trunk import CRITIC, POLICY, REFERENCE, REWARD, Trunk, role_of
from prefiere.plan.plan import Plan


class OnTheFly(PackedLinear):
    """A layer that bitsandbytes quantizes: its bytes, and its kernel, which unpacks straight into the compute dtype."""

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """A weight [I, O] without contents, which counts as written."""
        return torch.zeros(self.in_features, self.out_features, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """As bitsandbytes does, in the dtype of ``x``, and as PEFT does, on a copy."""
        return super().forward(x).to(x.dtype).clone()


def _quantized(module: nn.Linear, scheme: Scheme) -> PackedLinear:
    """The layer as it is after loading, in bytes."""
    i, o = module.in_features, module.out_features
    packed = scheme.config is not None and scheme.name not in ("nf4", "fp4", "int8")
    layout = PackedLayout.of(scheme.config) if packed and scheme.config else PackedLayout("gptq", scheme.bits, 64)
    made = (PackedLinear if packed else OnTheFly)(i, o, module.bias is not None, layout)
    for name in layout.tensors(1, 1):
        made._buffers.pop(name, None)
    made.register_buffer("qweight", torch.empty(i * layout.bits // 8, o, dtype=torch.uint8))
    if not packed:
        made.register_buffer("qzeros", torch.empty(0))
        made.register_buffer("scales", _scales_of_bitsandbytes(i * o, o, scheme))
        return made
    groups = 1 if layout.group_size == -1 else -(-i // layout.group_size)
    made.register_buffer("qzeros", torch.empty(groups, o, dtype=torch.uint8))
    made.register_buffer("scales", torch.empty(groups, o, dtype=torch.float16))
    ordered = bool(scheme.config and scheme.config.get("desc_act"))
    made.register_buffer("g_idx", torch.empty(i, dtype=torch.long) if ordered else None)
    return made


def _scales_of_bitsandbytes(weights: int, outputs: int, scheme: Scheme) -> Tensor:
    """Bytes of what stands beside the codes of a layer: in int8 an fp32 number for each output; in 4 bits one for each
    block of 64 weights and the 16 values of a code, or, quantized again (Dettmers et al. 2023), a byte for each block,
    an fp32 number for each 256 of them, their offset, and the 256 values of theirs."""
    if scheme.bits == 8:
        return torch.empty(4 * outputs, dtype=torch.uint8)
    blocks = -(-weights // 64)
    again = scheme.config is None or bool(scheme.config.get("bnb_4bit_use_double_quant"))
    numbers = -(-blocks // 256) + 1 + 16 + 256 if again else blocks + 16
    return torch.empty((blocks if again else 0) + 4 * numbers, dtype=torch.uint8)


def meta_trunk(plan: Plan) -> Trunk:
    """The trunk of a run, with every role that the plan puts on it. Raises ModelError where there is no such model."""
    adapter, roles = plan.adapter, plan.roles
    packed = plan.rows is not False
    base, head = _base(plan.policy, plan.dtype, adapter is not None, scores=plan.scores, packed=packed)
    encoder = plan.scores and not decodes(base)  # asked before PEFT wraps the head
    with torch.device("meta"):
        model: Any = base
        trained: set[str] = set()
        if adapter is not None:
            model = get_peft_model(base, _trainable(adapter.config, head))
            trained = {name for name, p in model.named_parameters() if p.requires_grad}
            for name, config in _further(plan, adapter):
                model.add_adapter(name, config)
        route(model)
        trunk = EncoderTrunk(model, typed=False) if encoder else Trunk(model, packed=packed)
        if plan.scores and not encoder:
            trunk.heads[POLICY] = head_of(trunk)
        width = int(base.config.get_text_config().hidden_size)
        for name in _mounted_names(plan):
            trunk.heads[name] = Head(width, 1, bias=False)
        if roles.critic != "none":
            trunk.heads[CRITIC] = nn.Linear(width, 1)
    for name, p in model.named_parameters() if adapter is not None else ():
        p.requires_grad_(name in trained or role_of(name) == CRITIC)
    for name in _mounted_names(plan):
        trunk.heads[name].requires_grad_(False)
    if plan.settings.gradient_checkpointing:
        trunk.checkpoint_gradients()
        if adapter is not None:
            trunk.lm.enable_input_require_grads()
    if roles.critic == "own":
        trunk.bodies[CRITIC] = Trunk(deepcopy(trunk.decoder), packed=packed)  # type: ignore[arg-type]
        if plan.settings.gradient_checkpointing:
            trunk.bodies[CRITIC].checkpoint_gradients()  # type: ignore[operator]
    return trunk.train()


def meta_scorer(source: Source, adapter: Adapter | None, compute: torch.dtype) -> nn.Module:
    """A reward model as it is loaded beside a policy. Raises ModelError where there is no such model."""
    base, head = _base(source, compute, adapter is not None, scores=True, packed=False)
    with torch.device("meta"):
        model: nn.Module = base if adapter is None else get_peft_model(base, _trainable(adapter.config, head))
    return model


def _base(
    source: Source, compute: torch.dtype, adapted: bool, *, scores: bool, packed: bool
) -> tuple[PreTrainedModel, str]:
    """The model under all adapters, and the name of its score head where it ``scores``."""
    attention.register()
    scheme = base_scheme(source)
    shape = config_of(source)
    if scores:
        shape.num_labels = 1
    kind = AutoModelForSequenceClassification if scores else AutoModelForCausalLM
    dtype = compute if adapted or (scheme and not scores) else torch.float32
    with readable(source.base), torch.device("meta"):
        base: PreTrainedModel = kind.from_config(shape, trust_remote_code=source.trust, dtype=dtype)
    with torch.device("meta"):
        head = install_head(base, source) if scores else ""
        if packed and not (scores and not decodes(base)):
            base.set_attn_implementation(attention.NAME)
        if scheme is not None:
            _quantize(base, scheme)
    return base, head


def _trainable(config: PeftConfig, head: str) -> PeftConfig:
    """An adapter's configuration as a run trains it, with the score head where there is one."""
    made: Any = scoring_config(config, head) if head else copy(config)
    made.inference_mode, made.init_lora_weights = False, False  # no start is computed: there are no weights
    return made


def _mounted_names(plan: Plan) -> list[str]:
    return [REWARD if i == 0 else f"{REWARD}_{i + 1}" for i in range(len(plan.roles.mounted))]


def _further(plan: Plan, adapter: Adapter) -> Sequence[tuple[str, PeftConfig]]:
    """Name and configuration of each adapter besides the policy's: the reference's, the critic's, the rewards'.

    The critic begins as the first reward model, where that is mounted, else as the policy.
    """
    found: list[tuple[str, Any]] = []
    if plan.roles.reference == "adapter":
        found.append((REFERENCE, copy(adapter.config)))
    if plan.roles.critic == "adapter":
        models = [r for r in plan.roles.rewards if r.where != "function"]
        start = models[0].adapter if models and models[0].where == "mounted" else adapter
        assert start is not None
        found.append((CRITIC, copy(start.config)))
    for name, scorer in zip(_mounted_names(plan), plan.roles.mounted, strict=True):
        assert scorer.adapter is not None
        found.append((name, copy(scorer.adapter.config)))
    for _, config in found:
        config.task_type, config.modules_to_save, config.init_lora_weights = "CAUSAL_LM", None, False
    return found


def _quantize(base: PreTrainedModel, scheme: Scheme) -> None:
    for name, module in list(base.named_modules()):
        if type(module) is nn.Linear and name.startswith(f"{base.base_model_prefix}."):
            base.set_submodule(name, _quantized(module, scheme))
        elif "norm" in type(module).__name__.lower():
            module.float()


def materialise(trunk: nn.Module) -> None:
    """Move a model from "meta" to the device of the surrounding FakeTensorMode; adapters and heads in fp32."""
    made: dict[int, Tensor] = {}
    named = trunk.named_parameters()
    added = {id(p) for name, p in named if role_of(name) is not None and ".original_module." not in name}

    def empty_like(old: Tensor) -> Tensor:
        if id(old) not in made:
            wide = id(old) in added or old.requires_grad
            empty = torch.empty(old.shape, dtype=torch.float32 if wide else old.dtype)
            made[id(old)] = nn.Parameter(empty, old.requires_grad) if isinstance(old, nn.Parameter) else empty
        return made[id(old)]

    for module in trunk.modules():
        for own in (module._parameters, module._buffers):
            for name, old in list(own.items()):
                if old is not None:
                    own[name] = empty_like(old)  # type: ignore[assignment]


def bytes_of(*modules: nn.Module) -> int:
    """Bytes of all parameters and buffers, each counted once."""
    tensors = {id(t): t for m in modules for t in (*m.parameters(), *m.buffers())}
    return sum(t.nbytes for t in tensors.values())
