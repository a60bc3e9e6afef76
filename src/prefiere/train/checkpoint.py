"""Checkpoints: everything that makes a resumed run equal an uninterrupted one, written so that a kill cannot harm it.

A checkpoint is a folder ``checkpoints/step-00000010``, written atomically: one that has this name is whole.
"""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerBase

from prefiere.files import atomic_folder, clean, remove_folder, seal, sealed
from prefiere.models.adapter import save_adapter
from prefiere.models.configuration import save_whole
from prefiere.models.load import without_bars
from prefiere.models.reference import REWRITES_BASE
from prefiere.models.score_head import save_normalisation
from prefiere.models.trunk import POLICY, REFERENCE, Trunk, activate
from prefiere.train.engine import Engine


def save(folder: Path, step: int, engine: Engine, state: dict[str, Any]) -> Path:
    """Write a checkpoint of the trained weights, optimizer, schedule, scaler, torch's random state (nothing else draws
    from a global one) and ``state`` (JSON).

    Every process calls it; the first writes. Raises OSError when it cannot be written, leaving earlier ones whole.
    """
    final = folder / f"step-{step:08d}"
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    random = engine.world.gather([{"cpu": torch.get_rng_state(), "cuda": cuda}])
    if engine.world.main:
        folder.mkdir(exist_ok=True)
        with atomic_folder(final) as temporary:
            _fill(temporary, engine, random, {**state, "step": step})
    engine.world.barrier()
    return final


def _fill(folder: Path, engine: Engine, random: list[dict[str, Any]], state: dict[str, Any]) -> None:
    """Write the files of a checkpoint. random: torch's random state in each process."""
    for rank, one in enumerate(random):
        torch.save(one, folder / f"rng-{rank}.pt")
    weights = {n: p.detach().contiguous() for n, p in engine.trunk.named_parameters() if p.requires_grad}
    save_file(weights, folder / "trained.safetensors")
    torch.save(
        {
            "optimizer": engine.optimizer.state_dict(),
            "scheduler": engine.scheduler.state_dict(),
            "scaler": engine.scaler.state_dict(),
        },
        folder / "optimizer.pt",
    )
    whole = {**state, "budget": engine.budget.tokens, "backoffs": engine.backoffs}
    (folder / "state.json").write_text(json.dumps(whole, indent=2))
    seal(folder)


def found(folder: Path) -> list[Path]:
    """Checkpoints, oldest first. `damage` tells of a disk's or a copy's faults in them."""
    return sorted(p for p in folder.glob("step-*") if p.is_dir() and not p.is_symlink())


def damage(path: Path) -> str | None:
    """The name of a file of a checkpoint that is not as it was written, or None."""
    return sealed(path)[1]


def newest(folder: Path, say: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that is as it was written, or None where there is none at all.

    ``say`` is told of those that are damaged. Raises ValueError where all are.
    """
    there = found(folder)
    for path in reversed(there):
        off = damage(path)
        if off is None:
            return path
        say(f"{path / off} is damaged: this checkpoint is passed over")
    if there:
        raise ValueError(
            f"every checkpoint in {folder} is damaged. Restore one from a copy, or start over with --fresh."
        )
    return None


def rotate(folder: Path, step: int, keep: int, best: int | None) -> None:
    """Delete all but the last ``keep`` checkpoints up to a step and the best one.

    What lies beyond the step is damaged, and the run went on from an earlier one. What a kill left half-written goes.
    """
    clean(folder)
    spared = {f"step-{best:08d}"} if best is not None else set()
    last = f"step-{step:08d}"
    there = found(folder)
    past = [p for p in there if p.name <= last]
    for path in [*(p for p in there if p.name > last), *past[:-keep]]:
        if path.name not in spared:
            remove_folder(path)


def load_weights(path: Path, engine: Engine) -> None:
    """Put a checkpoint's trained weights back into the trunk."""
    weights = load_file(path / "trained.safetensors", device=str(engine.trunk.device))
    trained = {n: p for n, p in engine.trunk.named_parameters() if p.requires_grad}
    if weights.keys() != trained.keys():
        odd = sorted(weights.keys() ^ trained.keys())[0]
        raise ValueError(f"{path} does not fit this model (first difference: {odd}). Start over with --fresh.")
    with torch.no_grad():
        for name, p in trained.items():
            p.copy_(weights[name])


_MISSHAPEN = (pickle.UnpicklingError, KeyError, TypeError, AttributeError, IndexError, RuntimeError, EOFError)


def restore(path: Path, engine: Engine) -> dict[str, Any]:
    """Put everything back as it was; returns the ``state`` that `save` was given, with ``step``.

    Raises ValueError for a checkpoint of another model, or of another shape than ours.
    """
    try:
        return _restored(path, engine)
    except _MISSHAPEN as e:
        said = " ".join(str(e).split())[:200]
        raise ValueError(
            f"{path} is no checkpoint of this run ({type(e).__name__}: {said}). --fresh starts over."
        ) from e


def _restored(path: Path, engine: Engine) -> dict[str, Any]:
    load_weights(path, engine)
    # weights_only: a checkpoint folder can come from anywhere, and a pickle can run code.
    optimizer = torch.load(path / "optimizer.pt", map_location=engine.trunk.device, weights_only=True)
    engine.optimizer.load_state_dict(optimizer["optimizer"])
    engine.scheduler.load_state_dict(optimizer["scheduler"])
    engine.scaler.load_state_dict(optimizer["scaler"])
    state: dict[str, Any] = json.loads((path / "state.json").read_text())
    lacking = {"step", "stop", "method", "backoffs", "budget"} - state.keys()
    if lacking:
        raise KeyError(f"state.json lacks {sorted(lacking)[0]}")
    random = path / f"rng-{engine.world.rank}.pt"
    if random.is_file():
        rng = torch.load(random, map_location="cpu", weights_only=True)
        torch.set_rng_state(rng["cpu"])
        if rng["cuda"]:
            for i, one in enumerate(rng["cuda"][: torch.cuda.device_count()]):
                torch.cuda.set_rng_state(one, i)
    else:  # there are more processes than before
        torch.manual_seed(1000 * state["step"] + engine.world.rank)
    engine.backoffs = state["backoffs"]
    if engine.adapt:  # a budget that was asked for may have been asked for anew
        engine.budget.tokens = state["budget"]
    return state


def save_model(
    trunk: Trunk, tokenizer: PreTrainedTokenizerBase, folder: Path, dtype: torch.dtype | None = None
) -> None:
    """The trained model or adapter with its tokenizer, as transformers and PEFT load them; written whole or not.

    dtype: of a whole model's weights (None: as the checkpoint that it began from). An adapter stays fp32.
    """
    model: Any = trunk.model
    with atomic_folder(folder) as temporary, without_bars():
        if not trunk.adapted:
            save_whole(model, temporary, dtype)
        elif str(getattr(model.peft_config[POLICY], "init_lora_weights", "")).lower().startswith(REWRITES_BASE):
            _save_as_lora(trunk, temporary)
        else:
            save_adapter(model, temporary, selected_adapters=[POLICY])
        tokenizer.save_pretrained(temporary)
        save_normalisation(trunk, temporary)


def _save_as_lora(trunk: Trunk, folder: Path) -> None:
    """An adapter whose start took weights out of the base, as plain LoRA of twice the rank on the untouched base."""
    model: Any = trunk.model
    start = folder / "start"
    model.save_pretrained(start, selected_adapters=[REFERENCE])
    (start / REFERENCE).rename(start / "initial")
    converted = {"path_initial_model_for_weight_conversion": str(start / "initial")}
    save_adapter(model, folder, selected_adapters=[POLICY], **converted)
    shutil.rmtree(start)
    activate(model, trunk._role)
