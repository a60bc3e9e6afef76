"""The optimizer, the schedule, and what a setting of "auto" comes to, with the reason in words."""

from __future__ import annotations

import sys

import psutil
import torch
from torch import nn
from transformers import get_scheduler

from prefiere.models.trunk import CRITIC, role_of
from prefiere.settings import Settings


def peak_memory_mb() -> float:
    """Peak memory so far in MB: of the CUDA allocator where there is one, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    if sys.platform == "win32":
        return float(psutil.Process().memory_info().peak_wset / 1e6)
    import resource  # there is none on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak / 1e3


def make_optimizer(
    module: nn.Module, settings: Settings, rate: float, critic: float | None = None
) -> torch.optim.AdamW:
    """AdamW over the trainable parameters, at one rate but for the critic's (none: the same); weight decay on matrices
    only."""
    named = [(role_of(n), p) for n, p in module.named_parameters() if p.requires_grad]
    groups = [
        {
            "params": [p for role, p in named if (role == CRITIC) == of_critic and (p.ndim >= 2) == matrix],
            "weight_decay": settings.weight_decay if matrix else 0.0,
            "lr": critic if of_critic and critic is not None else rate,
        }
        for of_critic in (False, True)
        for matrix in (True, False)
    ]
    return torch.optim.AdamW(
        [g for g in groups if g["params"]],
        betas=(settings.adam_beta1, settings.adam_beta2),
        eps=settings.adam_epsilon,
        fused=True,
    )


def make_scheduler(
    optimizer: torch.optim.Optimizer, settings: Settings, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """Warm-up over ``warmup_steps``, below 1 a share of the steps, then the named course to the last step."""
    asked = settings.warmup_steps
    warmup = round(asked * steps) if asked < 1 else int(asked)
    return get_scheduler(
        settings.lr_scheduler_type,
        optimizer,
        num_warmup_steps=warmup,
        num_training_steps=steps,
    )
