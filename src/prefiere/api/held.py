"""From what a call in Python holds to settings that name it: one place for every function that trains.

The settings are checked before anything is read or written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from prefiere import recipe as recipes
from prefiere.api.functions import mark_of, recorded_name
from prefiere.api.loaded import Loaded, scorer_in_memory, taken_with_tokenizer
from prefiere.api.rows import Rows, rows_of
from prefiere.asked.foreign import ours_of
from prefiere.data.schema import Kind
from prefiere.data.splits import ReadFor
from prefiere.files import short
from prefiere.in_memory import EVENTS, InMemory, Input
from prefiere.methods import METHODS
from prefiere.recipe import RecipeError
from prefiere.run import INPUTS
from prefiere.settings import Settings

ROWS: dict[str, ReadFor] = {"data": "train", "eval_data": "eval", "sample_prompts": "eval"}
"""The settings that rows may be given as, and what they are read for."""
FUNCTIONS = ("reward", "judge")
"""The settings that functions, and models that score, may be given as."""
_HELD = "?"  # stands for what is held in memory until the settings are known to be right


def settle(method: str, recipe: str | Path | None, values: Mapping[str, Any]) -> tuple[Settings, InMemory]:
    """The settings of a call, and what they name that the call holds. Raises ValueError as `recipe.load` does."""
    if method not in METHODS:
        raise RecipeError(
            f"method must be one of {', '.join(METHODS)}, not {short(method)}. A recipe is given as recipe=..."
        )
    flat, functions = _by_our_names(method, values), dict[str, Callable[..., Any]]()
    callbacks = {event: flat.pop(event) for event in EVENTS if event in flat}
    for event, callback in list(callbacks.items()):
        if callback is None:
            del callbacks[event]
        elif not callable(callback):
            raise RecipeError(f"{event} must be a function, not {short(callback)}.")
    scorers = dict[str, tuple[str, Loaded]]()
    for key in FUNCTIONS:
        if key in flat:
            flat[key] = _named(key, flat[key], functions, scorers)
    model = taken_with_tokenizer(flat)
    held = {key: flat[key] for key in ROWS if _in_memory(flat.get(key))}
    settings = recipes.load(method, recipe, flat | dict.fromkeys([*held, *(["model"] if model else [])], _HELD))
    folder, update = Path(settings.out) / INPUTS, dict[str, Any]()
    given = InMemory(functions, {name: mark_of(f) for name, f in functions.items()}, callbacks=callbacks)
    for key, value in held.items():
        split = settings.data_split if key == "data" else None
        rows, split_read = rows_of(value, key, _kind(settings, key), split=split, purpose=ROWS[key])
        assert rows is not None
        given, update[key] = _kept(given, rows, folder / f"{key}-{rows.digest()}.jsonl")
        if split_read:
            update["data_split"] = None
    if model is not None:
        given, update["model"] = _kept(given, model, folder / f"model-{model.digest()}")
    for name, (key, scorer) in scorers.items():
        given, path = _kept(given, scorer, folder / f"{key}-{scorer.digest()}")
        said = update.get(key, getattr(settings, key))
        update[key] = [path if one == name else one for one in said] if isinstance(said, list) else path
    return settings.model_copy(update=update), given


def _in_memory(value: Any) -> bool:
    """Whether a value is neither a name nor a number nor nothing."""
    return value is not None and not hasattr(value, "__fspath__") and not isinstance(value, str | int)


def _by_our_names(method: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The same values. ``prompts`` is ``data`` where prompts are what a method reads, as on the command line."""
    fields, found = METHODS[method].settings.model_fields, dict[str, str]()
    for key in values:
        ours = "data" if key == "prompts" and METHODS[method].family == "policy" else key
        ours = ours if ours in fields else ours_of(ours)
        if ours in found:
            raise RecipeError(f"{found[ours]} and {key} are the same setting here: give one of them.")
        found[ours] = key
    return {ours: values[key] for ours, key in found.items()}


def _named(
    key: str, value: Any, functions: dict[str, Callable[..., Any]], scorers: dict[str, tuple[str, Loaded]]
) -> Any:
    """The value with names in the place of functions and of models in memory, which are added to ``functions`` and to
    ``scorers``. Raises RecipeError for two functions of one name, and for a model without its tokenizer."""
    if (scorer := scorer_in_memory(key, value)) is not None:
        name = f"{_HELD}{len(scorers)}"
        scorers[name] = (key, scorer)
        return name
    if isinstance(value, list | tuple):
        return [_named(key, v, functions, scorers) for v in value]
    if not callable(value):
        return value
    name = recorded_name(value)
    if functions.setdefault(name, value) is not value:
        raise RecipeError(f"{key}: two functions are called {name}. Give one of them another name.")
    return name


def _kind(settings: Settings, key: str) -> Kind:
    return "prompts" if key == "sample_prompts" else METHODS[settings.method].reads(settings)


def _kept(given: InMemory, held: Rows | Loaded, path: Path) -> tuple[InMemory, str]:
    """What is given, with rows or a model that the run keeps at a path, and the name of that."""
    said = (*given.said, held.said) if held.said is not None else given.said
    kept = Input(path, held.write)
    if isinstance(held, Loaded):
        kept = replace(kept, folder=True, outline=held.outline)
    return replace(given, inputs=(*given.inputs, kept), said=said), str(path)
