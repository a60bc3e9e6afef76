"""Where a run's settings come from: defaults < recipe < flags < key=value.

A recipe is flat YAML. A key that TRL, transformers, LLaMA-Factory or Axolotl call otherwise is read where it means the
same, and is an error naming ours where it does not; a key that does not exist names the nearest one. Whatever is wrong
is said at once. No torch here.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, Self, get_args, get_origin, get_type_hints

import yaml
from pydantic import ValidationError

from prefiere.asked.foreign import HINTS, ON_POLICY_HINTS, of_an_update, taken
from prefiere.asked.language import in_words
from prefiere.files import short
from prefiere.methods import METHODS
from prefiere.settings import PolicyGradient, Settings
from prefiere.untrusted import yaml_document


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: the setting as it was given, where there is one, and a sentence that says where."""

    key: str | None
    line: str


MOST_SHOWN = 20
"""Problems listed at once; the rest is counted."""


class RecipeError(ValueError):
    """Settings that do not exist, cannot have their value or do not agree. problems: each of them, where they are told
    apart."""

    def __init__(self, message: str, problems: tuple[Problem, ...] = ()):
        super().__init__(message)
        self.problems = problems or (Problem(None, message),)

    @classmethod
    def of(cls, problems: Sequence[Problem], after: str = "") -> Self:
        """One line for one problem, a list of lines for several, with what to do about all of them ``after``."""
        lines = [p.line for p in problems]
        if len(lines) == 1:
            return cls(lines[0], tuple(problems))
        more = [f"and {len(lines) - MOST_SHOWN} more"] if len(lines) > MOST_SHOWN else []
        listed = "\n  ".join([f"{len(lines)} settings to put right:", *lines[:MOST_SHOWN], *more])
        return cls("\n".join(filter(None, [listed, after])), tuple(problems))


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting as somebody gave it: key, value, and where, for errors (``recipe.yaml:3: ``, ``--beta 0: ``)."""

    key: str
    value: Any
    where: str = ""


def accepts(model: type[Settings], key: str) -> str:
    """What a setting may be, in words: ``a number above 0 or auto``."""

    def words(kind: Any) -> list[str]:
        if get_origin(kind) is Annotated:
            return [m for m in get_args(kind) if isinstance(m, str)]
        if get_origin(kind) is Literal:
            return list(get_args(kind))
        if get_origin(kind) is list:
            return ["a list of " + " | ".join(words(get_args(kind)[0]))]
        if get_origin(kind) is dict:
            return ["a map"]
        if args := get_args(kind):
            return [w for a in args for w in words(a)]
        return {bool: ["true", "false"], str: ["text"], NoneType: ["none"]}[kind]

    found = words(get_type_hints(model, include_extras=True)[key])
    return " or ".join([", ".join(found[:-1]), found[-1]] if len(found) > 1 else found)


def _unknown(method: str, key: str, batch_size: str | None) -> str:
    """Why a key does not exist, and which one was meant. batch_size: what several keys come to together."""
    model = METHODS[method].settings
    theirs = HINTS | (ON_POLICY_HINTS if issubclass(model, PolicyGradient) else {})
    if batch_size is not None and key in ("per_device_train_batch_size", "gradient_accumulation_steps"):
        return in_words("error.write_instead", key=key, ours=batch_size)
    if key in theirs:
        return in_words("error.write_instead", key=key, ours=theirs[key])
    others = [name for name, other in METHODS.items() if key in other.settings.model_fields]
    if others:
        return in_words("error.of_another_method", key=key, others=", ".join(others), method=method)
    near = difflib.get_close_matches(key, model.model_fields, n=1)
    if near:
        return in_words("error.misspelt_setting", key=key, near=near[0])
    return in_words("error.no_setting", key=key, method=method)


def read_keys(path: str | Path) -> dict[str, tuple[Any, str]]:
    """Key -> (value, ``file:line: ``) of a flat YAML file.

    Raises FileNotFoundError where there is none, RecipeError for what is no map of keys.
    """
    try:
        loader, node = yaml_document(Path(path).read_text(encoding="utf-8"))
        if node is None:
            return {}
        if not isinstance(node, yaml.MappingNode):
            raise RecipeError(f"{path}: a recipe is lines of `key: value`, and this file is not.")
        found: dict[str, tuple[Any, str]] = {}
        for key_node, value_node in node.value:
            key, where = str(key_node.value), f"{path}:{key_node.start_mark.line + 1}: "
            if key in found:
                raise RecipeError(f"{where}{key} stands here a second time. Keep one.")
            found[key] = loader.construct_object(value_node, deep=True), where
        return found
    except (FileNotFoundError, IsADirectoryError) as e:
        raise FileNotFoundError(in_words("met.no_recipe", path=path)) from e
    except UnicodeDecodeError as e:
        raise RecipeError(f"{path}: not UTF-8 text at byte {e.start}.") from e
    except PermissionError as e:
        raise RecipeError(f"{path}: cannot be read: {e.strerror}.") from e
    except RecipeError:
        raise
    except (ValueError, RecursionError) as e:
        raise RecipeError(f"{path}: not a recipe: {e}.") from e
    except yaml.YAMLError as e:
        line = f":{e.problem_mark.line + 1}" if isinstance(e, yaml.MarkedYAMLError) and e.problem_mark else ""
        problem = e.problem if isinstance(e, yaml.MarkedYAMLError) else " ".join(str(e).split())
        raise RecipeError(f"{path}{line}: not valid YAML: {problem}.") from e


def method_in(path: str | Path) -> str | None:
    """The method that a recipe states, if it does. Raises as `load` does."""
    given = read_keys(path)
    return str(given["method"][0]) if "method" in given else None


def override(text: str, typed: str | None = None) -> Setting:
    """``key=value`` with its YAML value; an empty value is none. typed: how it was written, if otherwise."""
    key, _, value = text.partition("=")
    try:
        return Setting(key.strip(), value_of(value), f"{typed or text}: ")
    except (yaml.YAMLError, ValueError) as e:  # ValueError: a day that no month has
        raise RecipeError(f"{typed or text}: the value is not valid YAML. Quote it: {key}='\"...\"'.") from e


def value_of(word: str) -> Any:
    """The YAML value of a word of a command. Raises yaml.YAMLError, and ValueError for a day that no month has.

    A command has no comments: a word in which YAML sees one is text, all of it.
    """
    value, end = yaml.safe_load(word), 0
    for token in yaml.scan(word):
        if "#" in word[end : token.start_mark.index]:
            return word
        end = token.end_mark.index
    return value


def _check(model: type[Settings], key: str, value: Any) -> Any:
    """What pydantic would take silently or explain badly."""
    kinds = accepts(model, key)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping) and "a map" not in kinds:
        raise RecipeError(
            f"{key} holds nested keys ({', '.join(map(str, value))[:80]}). Keys are flat: write each at the margin."
        )
    if isinstance(value, bool) and "true" not in kinds:
        raise RecipeError(f"{key} must be {kinds}, not {str(value).lower()}.")
    if isinstance(value, list) and len(value) == 1 and "a list" not in kinds:  # TRL's loss_type: [sigmoid]
        return _check(model, key, value[0])
    may_be_nothing = NoneType in get_args(get_type_hints(model)[key])  # where "none" is a word of its own, it stays
    return None if isinstance(value, str) and value.lower() == "none" and may_be_nothing else value


def _merged(method: str, levels: Iterable[Iterable[Setting]]) -> tuple[dict[str, Setting], list[Problem]]:
    """Every setting by our name, later levels over earlier ones, and what is wrong with them.

    Other tools' names are read where they mean the same. Two that say different things of one setting are wrong within
    a level.
    """
    model = METHODS[method].settings
    found: dict[str, Setting] = {}
    problems: list[Problem] = []
    for level in levels:
        here: dict[str, Setting] = {}
        level = list(level)
        together = of_an_update({given.key: given.value for given in level})
        for given in level:
            said = {given.key: given.value} if given.key in model.model_fields else taken(given.key, given.value)
            if said is None or not said.keys() <= model.model_fields.keys():
                problems.append(Problem(given.key, given.where + _unknown(method, given.key, together)))
                continue
            for key, value in said.items():
                other = here.get(key)
                if other is not None and other.key != given.key and other.value != value:
                    both = f"{other.key} and {given.key} both say what {key} is. Keep one."
                    problems.append(Problem(given.key, given.where + both))
                try:
                    here[key] = Setting(given.key, _check(model, key, value), given.where)
                except RecipeError as e:
                    problems.append(Problem(given.key, f"{given.where}{e}"))
        found |= here
    return found, problems


def load(
    method: str | None,
    recipe: str | Path | None = None,
    flags: Mapping[str, Any] | None = None,
    overrides: Iterable[str | Setting] = (),
    problems: Sequence[str] = (),
) -> Settings:
    """The settings of one run: defaults < recipe < flags < key=value.

    ``method`` is the command (``None``: whatever the recipe says). problems: what is known to be wrong besides. Raises
    RecipeError with all that is wrong, each with file, line and key, or FileNotFoundError.
    """
    of_file = [Setting(key, value, where) for key, (value, where) in read_keys(recipe).items()] if recipe else []
    levels = [of_file, [Setting(key, value) for key, value in (flags or {}).items()]]
    levels.append([override(o) if isinstance(o, str) else o for o in overrides])
    stated = _method(method, [g for level in levels for g in level if g.key == "method"], recipe)
    levels = [[g for g in level if g.key != "method"] for level in levels]
    given, wrong = _merged(stated, levels)
    wrong = [*(Problem(None, line) for line in problems), *wrong]
    made = _settled(METHODS[stated].settings, stated, given, wrong)
    if wrong or made is None:
        theirs = [p for p in wrong if p.key in HINTS and recipe is not None and p.line.startswith(f"{recipe}:")]
        translate = f"`prefiere recipe from {recipe}` writes a recipe of ours from another tool's file."
        raise RecipeError.of(wrong, translate if len(theirs) > 2 else "")
    return made


def _method(method: str | None, said: Sequence[Setting], recipe: str | Path | None) -> str:
    """The method that is asked for. Raises RecipeError where there is none, or the recipe is for another."""
    stated = said[-1].value if said else method
    where = said[-1].where if said else "" if recipe is None else f"{recipe}: "
    if stated is None:
        raise RecipeError(f"{where}no method is named. Write `method: dpo`, or another of {', '.join(METHODS)}.")
    if stated not in METHODS:
        raise RecipeError(f"{where}method must be one of {', '.join(METHODS)}, not {short(stated)}.")
    if method is not None and stated != method:
        raise RecipeError(f"{where}this is a recipe for `prefiere {stated}`, not for `prefiere {method}`.")
    return str(stated)


def _settled(model: type[Settings], method: str, given: Mapping[str, Setting], wrong: list[Problem]) -> Settings | None:
    """The settings, as far as they can be made; what is wrong with them is added to ``wrong``.

    A value that cannot be is left out and the rest is looked at again, so that all is said at once.
    """
    values = {"method": method, **{key: g.value for key, g in given.items()}}
    refused = {p.key for p in wrong}
    while True:
        try:
            return model(**values)
        except ValidationError as e:
            errors = e.errors(include_url=False)
        for key in dict.fromkeys(str(error["loc"][0]) for error in errors if error["loc"]):
            field = model.model_fields[key]
            if key in values:
                kinds, was = accepts(model, key), given[key]
                wrong.append(Problem(was.key, f"{was.where}{key} must be {kinds}, not {short(was.value)}."))
            elif key not in refused:
                told = f"give --{key} or write `{key}:` in the recipe ({field.description})"
                wrong.append(Problem(key, f"{key} is missing: {told}."))
            values[key] = "?" if field.is_required() else field.default
        for error in errors:
            if not error["loc"]:  # settings that do not agree: each sentence begins with the key
                for line in error["msg"].removeprefix("Value error, ").split("\n"):
                    key = line.split()[0]
                    wrong.append(Problem(given[key].key, f"{given[key].where}{line}.") if key in given else
                                 Problem(key, f"{line}."))  # fmt: skip
                return None


def validate(
    path: str | Path, overrides: Iterable[str | Setting] = (), problems: Sequence[str] = (), method: str | None = None
) -> Settings:
    """Check a recipe that may leave what it must have (``model``, ...) to flags. Raises as `load` does."""
    given, overrides = read_keys(path), list(overrides)
    named = [str(given["method"][0])] if "method" in given else []
    named += [str(o.value) for o in overrides if isinstance(o, Setting) and o.key == "method"]
    model = _settings_of(named[-1] if named else method or "")
    here = {ours for key, (value, _) in given.items() for ours in {key: value} | dict(taken(key, value) or {})}
    left = [key for key, field in model.model_fields.items() if field.is_required() and key not in here | {"method"}]
    return load(method, path, dict.fromkeys(left, "?"), overrides, problems)


def _settings_of(method: str) -> type[Settings]:
    """What a method takes; what all take, for a method that there is not."""
    return METHODS[method].settings if method in METHODS else Settings


def changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Names of the settings that differ and must not within one run (see ``Settings.free``).

    Both are flat maps as ``model_dump`` gives them; a key that one side lacks has its default there. Keys that are no
    settings (any more) do not count.
    """
    model = _settings_of(str(new.get("method")))
    old = {ours: v for key, value in old.items() for ours, v in _by_our_name(model, key, value).items()}
    defaults = {name: field.default for name, field in model.model_fields.items()}
    return [k for k in defaults if k not in model.free and old.get(k, defaults.get(k)) != new.get(k, defaults.get(k))]


def _by_our_name(model: type[Settings], key: str, value: Any) -> Mapping[str, Any]:
    """A recorded setting under the name that it has today."""
    return {key: value} if key in model.model_fields else taken(key, value) or {key: value}
