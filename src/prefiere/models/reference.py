"""The reference: the policy as it was before this run, and its log-probs.

The log-probs of the data are computed once, before the first update, by the policy itself on the same code path, so
that the first loss is exact, and kept on disk under a key that covers all that they depend on. Sampled answers need a
live reference: the base without its adapter, the frozen copy of a starting adapter, or a frozen copy of a full model.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor

from prefiere.cache import entry
from prefiere.kernels.logprobs import TargetLogprobs
from prefiere.models.measure import Budget, Cut, measure
from prefiere.models.shard.spread import full, weights_of
from prefiere.models.trunk import POLICY, REFERENCE, Trunk, activate
from prefiere.tokens.groups import PromptGroup
from prefiere.tokens.pack import PackedBatch
from prefiere.tokens.schedule import longest_first

REWRITES_BASE = ("pissa", "olora", "corda", "lora_ga")
"""Starts of an adapter that move a part of the base's weights into it."""


class Reference:
    """A frozen stand-in for the policy before the run; costs a copy of the weights in full fine-tuning only."""

    def __init__(self, trunk: Trunk):
        self._trunk = trunk
        self._copy: Trunk | None = None
        if not trunk.adapted:
            self._copy = Trunk(copy.deepcopy(trunk.model).eval().requires_grad_(False), packed=trunk.packed)
        self._adapter = REFERENCE if trunk.adapted and REFERENCE in trunk.model.peft_config else None

    @property
    def copied(self) -> Trunk | None:
        """The copy of the weights, where there is one."""
        return self._copy

    @contextmanager
    def live(self) -> Iterator[Trunk]:
        """The trunk under the reference's role."""
        if self._copy is not None:
            yield self._copy
        else:
            with self._trunk.role(self._adapter):
                yield self._trunk


def sequence_logps(
    trunk: Trunk,
    groups: Sequence[PromptGroup],
    *,
    budget: Budget | int,
    autocast: torch.dtype | None = None,
    cut: Cut = longest_first,
    progress: Callable[[int], None] | None = None,
) -> np.ndarray:
    """float32 [n, k]: log-prob of each completion's scored tokens, summed, in nats.

    budget: tokens in a batch, or how many to begin with. cut: into batches; a group that is in none is left at 0.
    Raises OutOfMemory where a single group does not fit.
    """
    if not len(groups):
        return np.zeros((0, 1), np.float32)
    k = len(groups[0].completions)

    def summed(out: TargetLogprobs, batch: PackedBatch) -> dict[str, Tensor]:
        sums_C = torch.zeros(batch.completions, device=trunk.device).index_add_(0, batch.owner_N, out.logp_N)
        return {"logp": sums_C.view(-1, k)}

    most = budget if isinstance(budget, Budget) else Budget(budget)
    told = progress or (lambda n: None)
    out = np.zeros((len(groups), k), np.float32)
    for part in measure(trunk, groups, trunk, summed, budget=most, compute=autocast, cut=cut, progress=told):
        out[list(part.groups)] = part.arrays["logp"]
    return out


def token_logps(
    trunk: Trunk,
    groups: Sequence[PromptGroup],
    *,
    budget: Budget | int,
    autocast: torch.dtype | None = None,
    temperature: float = 1.0,
) -> np.ndarray:
    """float32 [N]: log-prob of each token of one completion to each prompt, in the groups' order, in nats, with logits
    over ``temperature``. budget: as in `sequence_logps`."""
    first = np.concatenate([[0], np.cumsum([len(g.completions[0]) for g in groups])]).astype(np.int64)
    most = budget if isinstance(budget, Budget) else Budget(budget)

    def forward(batch: PackedBatch) -> TargetLogprobs:
        out: TargetLogprobs = trunk(batch, temperature=temperature)
        return out

    def kept(out: TargetLogprobs, batch: PackedBatch) -> dict[str, Tensor]:
        return {"logp": out.logp_N}

    found = np.zeros(int(first[-1]), np.float32)
    for part in measure(trunk, groups, forward, kept, budget=most, compute=autocast):
        at = np.concatenate([np.arange(first[g], first[g + 1]) for g in part.groups])
        found[at] = part.arrays["logp"]
    return found


def model_key(trunk: Trunk) -> dict[str, str]:
    """Everything about a model that log-probs depend on: its weights, its configuration (quantization included), and
    how its rows run. An adapter that adds nothing yet does not count, whatever its seed and shape.

    Of a sharded trunk, all processes ask together."""
    state = weights_of(trunk.model)
    adapter = {name for name in state if ".lora_" in name}
    # W + B A is W exactly while B is 0. DoRA scales by a norm of it, which rounds.
    idle = not any("lora_magnitude" in n or ("_B." in n and bool(full(state[n]).any())) for n in sorted(adapter))
    h = hashlib.blake2b(digest_size=16)
    for name in sorted(state.keys() - adapter if idle else state.keys()):
        tensor = full(state[name].detach()).cpu().contiguous().reshape(-1)
        h.update(f"{name.removeprefix('base_model.model.').replace('.base_layer.', '.')} {tensor.dtype}".encode())
        h.update(tensor.view(torch.uint8).numpy().data)
    shape = {n: v for n, v in trunk.lm.config.to_dict().items() if n not in ("_name_or_path", "transformers_version")}
    config = hashlib.blake2b(json.dumps(shape, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()
    return {"weights": h.hexdigest(), "config": config, "rows": "packed" if trunk.packed else "padded"}


def cached_logps(key: Mapping[str, str], settle: Callable[[np.ndarray | None], np.ndarray]) -> np.ndarray:
    """Reference log-probs [n, k], kept in the cache that runs share.

    key: everything that the values depend on and nothing else: `model_key`, token ids, compute dtype. settle: is given
    the values that are kept, or None, and gives the values; they are kept where there were none.
    """
    with entry("reference", key) as kept:
        values = settle(np.load(kept.folder / "logps.npy") if kept.whole else None)
        if not kept.whole:
            with kept.making() as (folder, _):
                np.save(folder / "logps.npy", values)
    return values


@torch.no_grad()
def keep_start(trunk: Trunk) -> None:
    """Keep a frozen copy of a new adapter as the reference, where the base without it is not what the run starts from.

    LoRA starts as the identity, and then nothing is kept: switched off, it gives the reference. PiSSA (Meng et al.
    2024) and OLoRA (Büyükakyüz 2024) move a part of the base's weights into the adapter; random or LoftQ starts are
    no identity either. The rule is what the logits say, to the last bit.
    """
    model = trunk.model
    assert isinstance(model, PeftModel)
    rng = np.random.default_rng(0)
    tokens = torch.from_numpy(rng.integers(0, model.config.get_text_config().vocab_size, (1, 16))).to(trunk.device)
    was_training = model.training
    model.eval()
    with torch.autocast(trunk.device.type, enabled=False):
        states = []
        for role in (POLICY, None):
            with trunk.role(role):
                states.append(trunk.decoder(input_ids=tokens, use_cache=False).last_hidden_state)
    model.train(was_training)
    if torch.equal(*states):
        return
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    config = copy.deepcopy(model.peft_config[POLICY])
    config.init_lora_weights = False  # type: ignore[attr-defined]
    model.add_adapter(REFERENCE, config)
    saved = get_peft_model_state_dict(model, adapter_name=POLICY)
    set_peft_model_state_dict(model, saved, adapter_name=REFERENCE)
    activate(model, POLICY)
    for name, p in model.named_parameters():
        p.requires_grad_(name in trained)
