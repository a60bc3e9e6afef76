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
from prefiere.asked.language import in_words
from prefiere.models.quantize import parameters as logical_parameters
from prefiere.run import RunError, called
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


def versions_moved(before: dict[str, Any], now: dict[str, Any]) -> dict[str, list[str | None]]:
    """Packages whose version is another than when the run began: the old and the new one."""
    old = before.get("versions", {})
    return {n: [old.get(n), v] for n, v in now["versions"].items() if n in old and old[n] != v}


def same_as_before(session: Session, before: dict[str, Any]) -> None:
    """A resumed run must see the data and the model that it began with. Raises RunError."""
    if before.get("reference") != session.fingerprint:
        raise RunError(
            f"{called(session.settings.model)} has changed since this run began. Restore it, or use --fresh."
        )
    for name, mark in before.get("rewards", {}).items():
        if session.reward_fingerprints.get(name) != mark:
            raise RunError(f"the reward model {name} has changed since this run began. Restore it, or use --fresh.")
    old = session.run.data.get("fingerprint")
    if old != session.data.account["fingerprint"]:
        raise RunError(f"{called(session.settings.data)} has changed since this run began. Restore it, or use --fresh.")
    if before.get("world_size") != session.world.size:
        session.display.say(in_words("progress.other_processes"))
