"""The model of an earlier step, out of a run's checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from prefiere.methods import METHODS
from prefiere.models.adapter import Adapter
from prefiere.models.load import load_policy, load_tokenizer
from prefiere.models.source import find_model, quantization_of_run
from prefiere.run import Run, RunError
from prefiere.train import checkpoint


def write_step(run: Run, step: int, out: Path, *, trust: bool = False) -> None:
    """Write the policy as it was after ``step`` updates as a model or adapter folder, as the run itself would have.

    Raises RunError for a step without a whole checkpoint, naming those that there are, and for a reward model, whose
    scale is known at the end of its run only.
    """
    method = METHODS.get(str(run.recipe.get("method")))
    if method is None or "model" not in run.recipe:
        raise RunError(f"{run.folder / 'recipe.yaml'} names no method or no model: this is no run to take a step of.")
    if method.family == "reward":
        raise RunError(f"{run.folder} is a reward model, which is scaled at the end of its run: leave --step out.")
    path = run.checkpoints / f"step-{step:08d}"
    there = [int(p.name.removeprefix("step-")) for p in checkpoint.found(run.checkpoints)]
    if step not in there:
        kept = f"it has kept {', '.join(map(str, there))}" if there else "it has kept none"
        raise RunError(f"{run.folder} has no checkpoint of step {step}: {kept} (save_steps, save_total_limit).")
    if (off := checkpoint.damage(path)) is not None:
        raise RunError(f"{path / off} is damaged: choose another step of {', '.join(map(str, there))}.")
    source = replace(find_model(str(run.recipe["model"]), trust=trust), quantize=quantization_of_run(run.folder))
    described = run.environment.get("plan", {}).get("adapter")
    adapter = Adapter.of(described) if described and source.adapter is None else None
    trunk, _ = load_policy(source, compute=torch.float32, adapter=adapter, packed=False)
    policy = {n: p for n, p in trunk.named_parameters() if p.requires_grad}
    if odd := checkpoint.read_weights(path, policy, some=True):
        raise RunError(f"{path} does not fit {run.recipe['model']} (first difference: {odd}).")
    checkpoint.save_model(trunk, load_tokenizer(source), out)
