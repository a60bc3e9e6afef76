"""The critic: what an answer is going to be worth, told at each of its tokens.

With LoRA it is an adapter and a head on the policy's own trunk. In full fine-tuning it is a model of its own, or, where
asked, a head that reads the policy's states. It begins where the reward model is, if that has the policy's shape.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from prefiere.asked.language import in_words
from prefiere.models.reward_model import RewardModel
from prefiere.models.trunk import CRITIC, POLICY, Trunk, activate, role_of


class ValueHead(nn.Linear):
    """From a hidden state to a value. ``as_reward``: it began as a reward model, so its values are in that unit."""

    as_reward = False


def attach_critic(trunk: Trunk, *, share: bool = False, start: RewardModel | None = None, seed: int = 0) -> str:
    """Give the trunk a critic with trainable parameters; returns in words what it begins from.

    start: a reward model to begin from, if it is mounted on the trunk, or has the policy's shape and a linear head;
    otherwise the critic begins from the policy, with a new head that depends on ``seed`` alone.
    """
    width = int(trunk.lm.config.get_text_config().hidden_size)
    head = ValueHead(width, 1, device=trunk.device)
    nn.init.zeros_(head.bias)
    source = None
    if trunk.adapted:
        nn.init.zeros_(head.weight)
        source = start if start is not None and start.trunk is trunk else None
        _copy_adapter(trunk, source.role if source else POLICY)
    else:
        draw = torch.Generator(head.weight.device).manual_seed(seed)
        # Huang et al. 2024, "The N+ implementation details"
        nn.init.normal_(head.weight, std=(width + 1) ** -0.5, generator=draw)
        if not share:
            source = start if start is not None and same_architecture(start.trunk, trunk) else None
            body = copy.deepcopy(source.trunk.decoder if source else trunk.decoder)
            rows = source.trunk.packed if source else trunk.packed
            trunk.bodies[CRITIC] = Trunk(body.requires_grad_(True).float(), packed=rows)  # type: ignore[arg-type]
            if trunk.lm.is_activation_checkpointing:
                trunk.bodies[CRITIC].checkpoint_gradients()  # type: ignore[operator]
    if source is not None:
        _as_score(source, head)
    trunk.heads[CRITIC] = head
    return in_words("why.critic_as_reward" if source else "why.critic_as_policy")


def rescale_critic(trunk: Trunk, std: float) -> bool:
    """Give a critic that began as the reward model values in rewards divided by ``std``; whether it is such a one.

    A new head is left as it is: it learns from rewards that are divided already.
    """
    head = trunk.heads[CRITIC]
    if not (isinstance(head, ValueHead) and head.as_reward):
        return False
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.div_(std)
    return True


def same_architecture(one: Trunk, other: Trunk) -> bool:
    """Whether two models are the same kind of decoder with weights of the same shapes."""
    a, b = ({n: p.shape for n, p in t.decoder.named_parameters()} for t in (one, other))
    return type(one.decoder) is type(other.decoder) and a == b


def _as_score(source: RewardModel, head: ValueHead) -> None:
    """Make a head say what the reward model says: its own head, less what its scores are centred by."""
    own = source.trunk.heads[source.role]
    with torch.no_grad():
        head.weight.copy_(own.weight)  # type: ignore[arg-type]
        head.bias.fill_(-source.normalisation.mean)
    head.as_reward = True


def _copy_adapter(trunk: Trunk, role: str) -> None:
    """One more adapter, with the configuration and the weights of another role's, in fp32."""
    model: Any = trunk.model
    config = copy.deepcopy(model.peft_config[role])
    config.inference_mode = False
    config.init_lora_weights = False  # a start that takes weights out of the base would take them once more
    model.add_adapter(CRITIC, config)
    activate(model, POLICY)
    named = dict(model.named_parameters())
    for name, parameter in named.items():
        if role_of(name) == CRITIC:
            own = ".".join(role if part == CRITIC else part for part in name.split("."))
            parameter.data = named[own].detach().float().clone()
            parameter.requires_grad_(True)
