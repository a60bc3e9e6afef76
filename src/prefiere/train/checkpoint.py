"""Checkpoints: everything that makes a resumed run equal an uninterrupted one, written so that a kill cannot harm it.

A checkpoint is a folder ``checkpoints/step-00000010``, written atomically: one that has this name is whole. A sharded
run writes its weights and the optimizer's moments in parts, one file for each process (`shard.store`); any other writes
them whole. A run takes up either kind.
"""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeAlias, get_type_hints

import torch
from pydantic import ConfigDict, Field, ValidationError, create_model
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from prefiere.files import atomic_folder, clean, first_link_out, remove_folder, seal, sealed
from prefiere.kernels.memory import out_of_memory
from prefiere.models.adapter import save_adapter
from prefiere.models.configuration import save_whole
from prefiere.models.load import without_bars
from prefiere.models.reference import REWRITES_BASE
from prefiere.models.score_head import save_normalisation
from prefiere.models.shard import store
from prefiere.models.shard.spread import gathered, in_parts, like, sharded, weights_of
from prefiere.models.trunk import POLICY, REFERENCE, Trunk, activate
from prefiere.run import Stop
from prefiere.tokens.tokenizer import ends_as_taught
from prefiere.train.engine import Engine

WHOLE = "trained.safetensors"
_Two = Annotated[list[float], Field(min_length=2, max_length=2)]
_Three = Annotated[list[float], Field(min_length=3, max_length=3)]


@dataclass
class State:
    """Everything of the loop that a checkpoint must remember (JSON). owed: gradient norm and rate of an update after
    which not everything that is due was done. pending: `Moments` of each metric since the last row."""

    step: int = 0
    seconds: float = 0.0
    tokens: int = 0
    best: float | None = None
    best_step: int | None = None
    stale: int = 0
    stop: Stop | None = None
    owed: _Two | None = None
    baseline: dict[str, float] = field(default_factory=dict)
    pending: dict[str, _Three] = field(default_factory=dict)
    pending_tokens: int = 0
    pending_seconds: float = 0.0

    def goes_on(self, total: int) -> bool:
        """Whether there is something left to do of a run of so many steps."""
        return self.stop is None and (self.owed is not None or self.step < total)


_Number: TypeAlias = float | int | bool | None
_OfState = {name: (hint, None) for name, hint in get_type_hints(State, include_extras=True).items()}
_Beside = {
    "step": (Annotated[int, Field(ge=0)], ...), "stop": (Any, ...), "budget": (Annotated[int, Field(ge=1)], ...),
    "backoffs": (int, ...), "method": (dict[str, _Number | dict[str, _Number]], ...), "rows": (dict[str, int], {}),
    "waiting": (list[dict[str, Any]], []),
}  # fmt: skip
_Written = create_model("_Written", __config__=ConfigDict(strict=True), **(_OfState | _Beside))  # type: ignore[call-overload]
"""What state.json holds."""


def save(folder: Path, step: int, engine: Engine, state: dict[str, Any]) -> Path:
    """Write a checkpoint of the trained weights, optimizer, schedule, scaler, torch's random state (nothing else draws
    from a global one) and ``state`` (JSON).

    Every process calls it; the first writes, and of a sharded run each its part. Raises OSError when it cannot be
    written, leaving earlier ones whole.
    """
    final = folder / f"step-{step:08d}"
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    random = engine.world.gather([{"cpu": torch.get_rng_state(), "cuda": cuda}])
    with ExitStack() as whole:
        temporary = None
        if engine.world.main:
            folder.mkdir(exist_ok=True)
            temporary = whole.enter_context(atomic_folder(final))
        if sharded(engine.trunk):
            there = engine.world.broadcast(temporary)
            assert there is not None
            store.write_parts(there, _spread_tensors(engine))
        if temporary is not None:
            _fill(temporary, engine, random, {**state, "step": step})
    engine.world.barrier()
    return final


def _spread_tensors(engine: Engine) -> dict[str, Tensor]:
    """The trained weights by name, and the optimizer's moments under theirs: ``exp_avg/NAME``."""
    named = {n: p for n, p in engine.trunk.named_parameters() if p.requires_grad}
    states = engine.optimizer.state
    moments = {f"{k}/{n}": x for n, p in named.items() for k, x in states.get(p, {}).items() if in_parts(x)}
    return {n: p.detach() for n, p in named.items()} | moments


def _fill(folder: Path, engine: Engine, random: list[dict[str, Any]], state: dict[str, Any]) -> None:
    """Write the files of a checkpoint that one process writes. random: torch's random state in each process."""
    optimizer = engine.optimizer.state_dict()
    if sharded(engine.trunk):
        parts = {i: {k: None if in_parts(x) else x for k, x in of.items()} for i, of in optimizer["state"].items()}
        optimizer = {**optimizer, "state": parts}
    else:
        weights = {n: p.detach().contiguous() for n, p in engine.trunk.named_parameters() if p.requires_grad}
        with _refused_by_the_disk():
            save_file(weights, folder / WHOLE)
    held = {
        "optimizer": optimizer, "scheduler": engine.scheduler.state_dict(), "scaler": engine.scaler.state_dict(),
    }  # fmt: skip
    with _refused_by_the_disk():
        torch.save(held, folder / "optimizer.pt")
        for rank, one in enumerate(random):
            torch.save(one, folder / f"rng-{rank}.pt")
    whole = {**state, "budget": engine.budget.tokens, "backoffs": engine.backoffs}
    (folder / "state.json").write_text(json.dumps(whole, indent=2))
    seal(folder)


@contextmanager
def _refused_by_the_disk() -> Iterator[None]:
    """safetensors and torch raise errors of their own where a file cannot be written: raise OSError."""
    try:
        yield
    except (SafetensorError, RuntimeError) as e:
        if out_of_memory(e):
            raise
        raise OSError(str(e)) from e


def found(folder: Path) -> list[Path]:
    """Checkpoints, oldest first. `damage` tells of a disk's or a copy's faults in them."""
    return sorted(p for p in folder.glob("step-*") if p.is_dir() and not p.is_symlink())


def damage(path: Path) -> str | None:
    """The name of a file of a checkpoint that is not as it was written, or None. No checkpoint is written with a link
    out of it."""
    link = first_link_out(path)
    return link.name if link is not None else sealed(path)[1]


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
    """Put a checkpoint's trained weights back into the trunk. All processes call it."""
    trained = {n: p for n, p in engine.trunk.named_parameters() if p.requires_grad}
    if odd := read_weights(path, trained):
        raise ValueError(f"{path} does not fit this model (first difference: {odd}). Start over with --fresh.")


@torch.no_grad()
def read_weights(path: Path, trained: Mapping[str, Tensor], *, some: bool = False) -> str | None:
    """Copy a checkpoint's trained weights into tensors by their names; the first name that does not fit, or None.

    some: it may hold others as well.
    """
    whole = path / WHOLE
    names = {n for n in store.tensor_names(path) if "/" not in n}
    if odd := trained.keys() - names if some else trained.keys() ^ names:
        return sorted(odd)[0]
    if not whole.is_file() or any(map(in_parts, trained.values())):
        store.read_parts(path, {n: p.detach() for n, p in trained.items()})
        return None
    device = str(next(iter(trained.values())).device)
    with safe_open(whole, framework="pt", device=device) as file:
        for name, p in trained.items():
            tensor = file.get_tensor(name)
            if tensor.shape != p.shape:
                return name
            p.copy_(tensor)
    return None


_MISSHAPEN = (
    pickle.UnpicklingError, json.JSONDecodeError, ValidationError, KeyError, TypeError, AttributeError, IndexError,
    RuntimeError, EOFError,
)  # fmt: skip


def restore(path: Path, engine: Engine, method: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Put everything back as it was; returns the ``state`` that `save` was given, with ``step``. method: takes what the
    algorithm kept.

    Raises ValueError for a checkpoint of another model, or of another shape than ours.
    """
    try:
        state = _restored(path, engine)
        method(state["method"])
        return state
    except _MISSHAPEN as e:
        first = e.errors()[0] if isinstance(e, ValidationError) else None
        said = f"{'.'.join(map(str, first['loc']))}: {first['msg']}" if first else " ".join(str(e).split())[:200]
        raise ValueError(
            f"{path} is no checkpoint of this run ({type(e).__name__}: {said}). --fresh starts over."
        ) from e


def _restored(path: Path, engine: Engine) -> dict[str, Any]:
    load_weights(path, engine)
    # weights_only: a checkpoint folder can come from anywhere, and a pickle can run code.
    where = "cpu" if sharded(engine.trunk) else engine.trunk.device
    optimizer = torch.load(path / "optimizer.pt", map_location=where, weights_only=True)
    _place_moments(path, engine, optimizer["optimizer"]["state"])
    engine.optimizer.load_state_dict(optimizer["optimizer"])
    engine.scheduler.load_state_dict(optimizer["scheduler"])
    engine.scaler.load_state_dict(optimizer["scaler"])
    state: dict[str, Any] = json.loads((path / "state.json").read_text())
    _Written.model_validate(state)
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


def _place_moments(path: Path, engine: Engine, states: dict[int, dict[str, Any]]) -> None:
    """Make the optimizer's moments those of this process: read from parts, or cut out of whole ones."""
    named = {id(p): n for n, p in engine.trunk.named_parameters()}
    parameters = [p for group in engine.optimizer.param_groups for p in group["params"]]
    parts = dict[str, Tensor]()
    for i, state in states.items():
        p = parameters[i]
        for kind, value in state.items():
            if value is None:
                state[kind] = parts[f"{kind}/{named[id(p)]}"] = torch.zeros_like(p.detach())
            elif isinstance(value, Tensor) and value.shape == p.shape and value.ndim:
                state[kind] = like(p, value)
    if parts:
        store.read_parts(path, parts)


def save_model(
    trunk: Trunk,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    dtype: torch.dtype | None = None,
    *,
    main: bool = True,
) -> None:
    """The trained model or adapter with its tokenizer, as transformers and PEFT load them; written whole or not.

    dtype: of a whole model's weights (None: as the checkpoint that it began from). An adapter stays fp32. main: whether
    this is the process that writes; of a sharded trunk all processes call it.
    """
    model: Any = trunk.model
    weights: dict[str, Tensor] | None = None
    if sharded(trunk):
        kept = ((n, x) for n, x in weights_of(model).items() if x.requires_grad or not trunk.adapted)
        weights = gathered(kept, keep=main)
    if not main:
        return
    with atomic_folder(folder) as temporary, without_bars():
        if not trunk.adapted:
            ends_as_taught(model, tokenizer)
            save_whole(model, temporary, dtype, weights)
        elif str(getattr(model.peft_config[POLICY], "init_lora_weights", "")).lower().startswith(REWRITES_BASE):
            _save_as_lora(trunk, temporary)
        else:
            save_adapter(model, temporary, selected_adapters=[POLICY], state_dict=weights)
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
