"""One trunk, many roles: the single nn.Module that is trained, and how policy and reference live in it.

With LoRA every role is an adapter on one frozen base. Switching roles copies nothing and never touches
``requires_grad``; under gradient checkpointing each recomputation runs under the role of its own forward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, cast

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel

from prefiere.kernels.attention import AttentionPlan, plan_attention
from prefiere.kernels.last_layer import trim
from prefiere.kernels.linear import as_made, products_of
from prefiere.kernels.logprobs import LogitTransform, TargetLogprobs, linear_logprobs, module_logprobs
from prefiere.kernels.longrope import own_positions
from prefiere.kernels.split import Split
from prefiere.tokens.pack import PackedBatch, unpack

POLICY = "default"
"""The trained adapter has PEFT's own name, so that it is saved and loaded as any other."""
REFERENCE = "reference"
"""The frozen copy of the adapter that a run started from, where it started from one."""
CRITIC = "critic"
"""The adapter, and the head, that say how good an answer is going to be."""
REWARD = "reward"
"""The frozen adapter, and the head, that score a whole answer."""


def role_of(parameter: str) -> str | None:
    """The role that a parameter of a trunk belongs to, by its name; None for the base, which all roles share.

    PEFT names the weights of an adapter after it (``lora_A.critic.weight``); heads and bodies are kept by role.
    """
    own = (POLICY, REFERENCE, CRITIC, REWARD)
    return next((p for p in parameter.split(".") if p in own or p.startswith(f"{REWARD}_")), None)


def activate(model: nn.Module, adapter: str | None) -> None:
    """Make every adapted layer use this adapter (None: the bare base), leaving ``requires_grad`` alone.

    PEFT's own ``set_adapter`` and ``disable_adapter`` freeze and thaw parameters as they switch, which would lose
    gradients in a backward that is still to come.
    """
    for module in model.modules():
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
            module._disable_adapters = adapter is None
            if adapter is not None:
                module._active_adapter = [adapter]


def logit_transform(config: Any, temperature: float = 1.0) -> LogitTransform:
    """What this architecture does to its logits, read off its configuration (Gemma, Cohere, Granite)."""
    scale = getattr(config, "logit_scale", None) or 1.0
    if getattr(config, "logits_scaling", None):
        scale = scale / config.logits_scaling
    return LogitTransform(float(scale), getattr(config, "final_logit_softcapping", None), temperature)


class Trunk(nn.Module):
    """A causal language model (or a PEFT model around one) that turns packed batches into log-probs.

    ``packed`` says whether rows run packed with shared prefixes; otherwise each completion runs as a padded row of a
    plain forward, with the model's own logits. The model is taken as it is: whoever loads it routes its layers
    (`models.load`). ``heads`` holds a linear map from hidden states to one number for each role that needs one (critic,
    reward model), ``bodies`` the models of roles that do not share this one. ``split``: how processes share the tokens
    of a packed row, where several do; they then call the trunk together, on the same batch.
    """

    def __init__(self, model: PreTrainedModel | PeftModel, *, packed: bool = True):
        super().__init__()
        self.model = model
        self.packed = packed
        self.heads = nn.ModuleDict()
        self.bodies = nn.ModuleDict()
        self.split: Split | None = None
        self.computes_on: torch.device | None = None
        self._role: str | None = POLICY

    @property
    def lm(self) -> PreTrainedModel:
        """The causal language model itself, adapted layers in place."""
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model  # type: ignore[return-value]

    @property
    def adapted(self) -> bool:
        return isinstance(self.model, PeftModel)

    @property
    def device(self) -> torch.device:
        """Where it computes: where its weights are, but for sharded ones that rest elsewhere (``computes_on``)."""
        return self.computes_on or next(self.model.parameters()).device

    @contextmanager
    def role(self, adapter: str | None) -> Iterator[None]:
        """Run forwards under this adapter (None: the base without one). A full model has the policy's role only."""
        before, self._role = self._role, adapter
        if self.adapted:
            activate(self.model, adapter)
        try:
            yield
        finally:
            self._role = before
            if self.adapted:
                activate(self.model, before)

    def checkpoint_gradients(self) -> None:
        """Recompute activations in the backward, each under the role that its forward ran under."""

        def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            return nullcontext(), self.role(self._role)

        self.lm.activation_checkpointing_enable({"use_reentrant": False, "context_fn": contexts})

    def forward(
        self, batch: PackedBatch, *, temperature: float = 1.0, entropy: bool = False, plan: AttentionPlan | None = None
    ) -> TargetLogprobs:
        """Log-probs [N] of the batch's targets under the active role (see `TargetLogprobs`)."""
        if not self.packed:
            return self._padded(batch, temperature, entropy)
        own = self._own(batch, batch.predictor_N)
        hidden = self.read(batch, batch.predictor_N[own], batch.reads, plan)
        logp, correct, spread = self.head(hidden, batch.target_N[own], temperature=temperature, entropy=entropy)
        whole = partial(self._whole, own=own, count=len(batch.target_N))
        return TargetLogprobs(whole(logp), whole(correct), None if spread is None else whole(spread))

    def values(self, batch: PackedBatch, role: str, plan: AttentionPlan | None = None) -> Tensor:
        """What a critic expects of each target's answer [N], before the target is chosen, in fp32."""
        body = self
        if role in self.bodies:
            body = cast(Trunk, self.bodies[role])
        own = body._own(batch, batch.predictor_N)
        with body.role(role):
            states = body._states(batch, batch.predictor_N[own], batch.owner_N[own], plan, batch.reads)
        return body._whole(self.number(states, role), own, len(batch.owner_N))

    def scores(self, batch: PackedBatch, role: str, plan: AttentionPlan | None = None) -> Tensor:
        """A reward model's score of each completion [C], read at its last token, in fp32."""
        own, every_C = self._own(batch, batch.last_C), torch.arange(batch.completions, device=batch.tokens_T.device)
        with self.role(role):
            ends = tuple((s.stop - 1, s.stop) for s in batch.segments)
            states = self._states(batch, batch.last_C[own], every_C[own], plan, ends)
        return self._whole(self.number(states, role), own, batch.completions)

    def number(self, states_MH: Tensor, role: str) -> Tensor:
        """The head of a role applied to hidden states: [M], never rounded below fp32."""
        head = self.heads[role]
        assert isinstance(head, nn.Linear)
        with torch.autocast(states_MH.device.type, enabled=False):
            bias = None if head.bias is None else head.bias.float()
            return torch.nn.functional.linear(states_MH.float(), head.weight.float(), bias)[:, 0].clone()

    def states(
        self,
        batch: PackedBatch,
        place_M: Tensor,
        owner_M: Tensor,
        plan: AttentionPlan | None = None,
        reads: tuple[tuple[int, int], ...] = (),
    ) -> Tensor:
        """The trunk's last hidden states [M, H] at places of the packed row, as its owner sees it.

        reads: runs of rows that hold these places, one for each segment, where they are known (`PackedBatch`).
        """
        own = self._own(batch, place_M)
        return self._whole(self._states(batch, place_M[own], owner_M[own], plan, reads), own, len(place_M))

    def settle(self) -> None:
        """Nothing: a call of the trunk that computes nothing (`shard.spread`)."""

    def _own(self, batch: PackedBatch, place_M: Tensor) -> Tensor | slice:
        """Which of these places of a row this process computes."""
        return slice(None) if self.split is None else self.split.own(place_M, batch.tokens_T.shape[0])

    def _whole(self, said_O: Tensor, own: Tensor | slice, count: int) -> Tensor:
        """What all processes say of ``count`` places, of what each says of its own."""
        return said_O if self.split is None or isinstance(own, slice) else self.split.whole(said_O, own, count)

    # What a trunk's own functions call: of a sharded one, those that `spread.ENTRIES` names let go of the weights.
    def _states(
        self,
        batch: PackedBatch,
        place_M: Tensor,
        owner_M: Tensor,
        plan: AttentionPlan | None,
        reads: tuple[tuple[int, int], ...],
    ) -> Tensor:
        if self.packed:
            return self.read(batch, place_M, reads, plan)
        rows = unpack(batch)
        own = own_positions(self.lm, rows.mask_CL)
        out = self.decoder(input_ids=rows.ids_CL, attention_mask=rows.mask_CL, use_cache=False, **own).last_hidden_state
        states: Tensor = out[owner_M, batch.positions_T[place_M]]
        return states

    @property
    def decoder(self) -> nn.Module:
        """The language model without a head."""
        found: nn.Module = self.lm.get_decoder() if hasattr(self.lm, "get_decoder") else self.lm.base_model
        if found is self.lm or isinstance(found, nn.Linear):  # ModernBERT calls its head so, Llama 4 the whole
            inside = (m for m in self.lm.children() if isinstance(m, PreTrainedModel))
            found = next(inside, self.lm.base_model)
        return found

    def read(
        self, batch: PackedBatch, place_M: Tensor, reads: tuple[tuple[int, int], ...], plan: AttentionPlan | None
    ) -> Tensor:
        """The last hidden states [M, H] at places of a packed row, each of this process's where several share it; the
        last layer runs on the rows of ``reads``."""
        trimmed = reads if trim(self.decoder) else ()
        plan = plan or plan_attention(batch.segments, batch.tokens_T.device, trimmed, self.split)
        if self.split is not None:
            place_M = place_M - self.split.run(plan.size).start
        if plan.last is not None and plan.last.rows_M is not None:
            place_M = torch.searchsorted(plan.last.rows_M, place_M)
        return self.hidden(batch, plan).index_select(0, place_M)

    def hidden(self, batch: PackedBatch, plan: AttentionPlan) -> Tensor:
        """The trunk's last hidden states of a packed row, or of the rows that the plan's last layer has; where several
        processes share the row, of this one's tokens."""
        run = slice(None) if self.split is None else self.split.run(plan.size)
        no_mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=batch.tokens_T.device)  # 4D: taken as it is, unused
        out = self.decoder(
            input_ids=batch.tokens_T[None, run],
            position_ids=batch.positions_T[None, run],
            attention_mask=no_mask,
            use_cache=False,
            segments=plan,
        )
        states: Tensor = out.last_hidden_state[0]
        return states

    def head(
        self, hidden_NH: Tensor, target_N: Tensor, *, temperature: float = 1.0, entropy: bool = False
    ) -> TargetLogprobs:
        """Log-probs of targets given the hidden states that predict them."""
        head = self.lm.get_output_embeddings()
        transform = logit_transform(self.lm.config, temperature)
        if type(head) is nn.Linear and as_made(head):
            products, bias = products_of(head), head.bias
            return linear_logprobs(
                hidden_NH, head.weight, target_N, bias_V=bias, transform=transform, entropy=entropy, products=products
            )
        call: Callable[[Tensor], Tensor] = head
        vocabulary = self.lm.config.get_text_config().vocab_size
        return module_logprobs(call, hidden_NH, target_N, vocabulary=vocabulary, transform=transform, entropy=entropy)

    def _padded(self, batch: PackedBatch, temperature: float, entropy: bool) -> TargetLogprobs:
        rows = unpack(batch)
        own = own_positions(self.lm, rows.mask_CL)
        logits = self.lm(input_ids=rows.ids_CL, attention_mask=rows.mask_CL, use_cache=False, **own).logits
        z = logits[rows.row_N, rows.column_N].float() / temperature
        logp = torch.log_softmax(z, -1)
        picked = logp.gather(-1, batch.target_N[:, None])[:, 0]
        correct = (picked >= logp.amax(-1)).float().detach()
        return TargetLogprobs(picked, correct, -(logp.exp() * logp).sum(-1).detach() if entropy else None)
