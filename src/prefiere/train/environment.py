"""What environment.json says of a run: versions, hardware, and each automatic choice with its reason."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from prefiere.asked.hub import commit_of
from prefiere.models.quantize import parameters as logical_parameters
from prefiere.train.setup import Session

VERSIONS = (
    "prefiere", "torch", "transformers", "peft", "accelerate", "datasets", "tokenizers", "numpy", "bitsandbytes",
)  # fmt: skip


def environment(session: Session) -> dict[str, Any]:
    """What environment.json says: versions, hardware, choices."""
    versions: dict[str, str | None] = {}
    for name in VERSIONS:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    device = session.world.device
    return {
        "versions": {"python": platform.python_version(), **versions},
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{device.type} ({platform.machine()})",
        "threads": torch.get_num_threads(),
        "world_size": session.world.size,
        "platform": platform.platform(),
        "command": " ".join(["prefiere", *sys.argv[1:]]) if Path(sys.argv[0]).name.startswith("prefiere") else None,
        "reference": session.fingerprint,
        "model_commit": commit_of(session.plan.policy.base, session.plan.policy.revision),
        "rewards": session.reward_fingerprints,
        "functions": dict(session.given.marks),
        "parameters": {
            "all": logical_parameters(session.trunk),
            "trained": sum(p.numel() for p in session.engine.parameters),
        },
        "vocabulary": int(session.trunk.lm.config.get_text_config().vocab_size),
        "plan": session.plan.to_json(),
        "choices": [{"name": c.name, "value": c.value, "why": c.why} for c in session.choices],
        "pid": os.getpid(),
    }
