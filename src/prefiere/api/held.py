"""From what a call in Python holds to settings that name it: one place for every function that trains.

The settings are checked before anything is read or written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from prefiere import recipe as recipes
from prefiere.api.rows import Rows, rows_of
from prefiere.data.schema import Kind
from prefiere.data.splits import ReadFor
from prefiere.in_memory import InMemory, Input
from prefiere.methods import METHODS
from prefiere.recipe import RecipeError
from prefiere.run import INPUTS
from prefiere.settings import Settings

ROWS: dict[str, ReadFor] = {"data": "train", "eval_data": "eval", "sample_prompts": "eval"}
"""The settings that rows may be given as, and what they are read for."""
_HELD = "?"  # stands for what is held in memory until the settings are known to be right


def settle(method: str, recipe: str | Path | None, values: Mapping[str, Any]) -> tuple[Settings, InMemory]:
    """The settings of a call, and what they name that the call holds. Raises ValueError as `recipe.load` does."""
    flat = _with_prompts(method, values)
    held = {key: flat[key] for key in ROWS if _in_memory(flat.get(key))}
    settings = recipes.load(method, recipe, flat | dict.fromkeys(held, _HELD))
    folder, given, update = Path(settings.out) / INPUTS, InMemory(), dict[str, Any]()
    for key, value in held.items():
        split = settings.data_split if key == "data" else None
        rows, split_read = rows_of(value, key, _kind(settings, key), split=split, purpose=ROWS[key])
        assert rows is not None
        given, update[key] = _kept(given, rows, folder)
        if split_read:
            update["data_split"] = None
    return settings.model_copy(update=update), given


def _in_memory(value: Any) -> bool:
    """Whether a value is neither a name nor a number nor nothing."""
    return value is not None and not hasattr(value, "__fspath__") and not isinstance(value, str | int)


def _with_prompts(method: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The same values; ``prompts`` is ``data`` where prompts are what a method reads, as on the command line."""
    if "prompts" not in values or METHODS[method].family != "policy":
        return dict(values)
    if "data" in values:
        raise RecipeError("prompts and data are the same setting here: give one of them.")
    return {"data" if k == "prompts" else k: v for k, v in values.items()}


def _kind(settings: Settings, key: str) -> Kind:
    return "prompts" if key == "sample_prompts" else METHODS[settings.method].reads(settings)


def _kept(given: InMemory, rows: Rows, folder: Path) -> tuple[InMemory, str]:
    """What is given, with these rows, and the name under which the run keeps them."""
    path = folder / f"{rows.key}-{rows.digest()}.jsonl"
    said = (*given.said, rows.said) if rows.said is not None else given.said
    return replace(given, inputs=(*given.inputs, Input(path, rows.write)), said=said), str(path)
