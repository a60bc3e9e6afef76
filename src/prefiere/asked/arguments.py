"""The words after a command: ``--key value``, ``--key=value`` and ``key=value`` alike, and a recipe.

A form that looks right and is read otherwise (``beta 0.2``, ``beta:0.2``, ``learning_rate= 1e-5``, data in the place of
a recipe) is explained in one line. No torch here.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefiere import recipe
from prefiere.asked.foreign import HINTS, taken
from prefiere.methods import METHODS
from prefiere.recipe import RecipeError, Setting
from prefiere.settings import Settings

_KINDS = {key: recipe.accepts(row.settings, key) for row in METHODS.values() for key in row.settings.model_fields}
_KNOWN = _KINDS.keys() | HINTS.keys()
_BOOLEAN = re.compile(r"true|false|yes|no|on|off", re.IGNORECASE)
_DATA = re.compile(r".*\.(jsonl|ndjson|csv|tsv|parquet|arrow|txt|xlsx|db|sqlite|zip|gz|bz2|xz|zst)|postgres\w*://.*")
_RECIPE = (".yaml", ".yml")


@dataclass
class Words:
    """What the words of a command say.

    recipe: a file. settings: in their order. others: words that are neither, where a command takes such. problems: what
    cannot be read, a line each.
    """

    recipe: str | None = None
    settings: list[Setting] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def method(self) -> Any:
        """The method that a setting names; None where none does."""
        return next((g.value for g in reversed(self.settings) if g.key == "method"), None)


def as_settings(words: Sequence[str], *, others: bool = False) -> Words:
    """Read the words after a command. others: those that are no settings are kept, and not taken as a recipe."""
    found, left = Words(), list(words)
    while left:
        word = left.pop(0)
        if word.startswith("--") and len(word) > 2:
            _option(word, left, found)
        elif re.match(r"[\w-]+\s*=", word):
            _equation(word, left, found)
        elif others and Path(word).exists():
            found.others.append(word)
        elif (odd := _misread(word, left, others)) is not None:
            found.problems.append(odd)
        elif others:
            found.others.append(word)
        else:
            _recipe(word, found)
    return found


def settings_of(method: str | None, words: Sequence[str], flags: Mapping[str, Any]) -> Settings:
    """The settings of a command from its words and its own flags (None: not given). Raises as `recipe.load` does."""
    found = as_settings(words)
    given = {key: value for key, value in flags.items() if value is not None}
    return recipe.load(method, found.recipe, given, found.settings, found.problems)


def one_dash(word: str, options: Collection[str]) -> str | None:
    """What is wrong with a word that begins with one dash and is a setting's or an option's long name, or any name with
    its value: its first letter alone would be read. None for any other word.

    options: long names of the command's own, without dashes.
    """
    match = re.fullmatch(r"-([A-Za-z][\w-]+)(=.*)?", word, re.DOTALL)
    if match is None:
        return None
    key = _key(match[1])
    if match[2] is None and match[1] not in options and not {key, key.removeprefix("no_")} & _KNOWN:
        return None
    return f"{word}: a long name has two dashes: -{word}."


def _key(text: str) -> str:
    return text.strip().replace("-", "_")


def _option(word: str, left: list[str], found: Words) -> None:
    """``--key value``, ``--key=value``, ``--flag`` or ``--no-flag``; takes its value from what is left."""
    name, equals, value = word[2:].partition("=")
    key, typed = _key(name), word
    if key in ("config", "recipe"):
        value = value if equals else left.pop(0) if left and not left[0].startswith("--") else ""
        _recipe(value, found) if value else found.problems.append(f"{word} needs a file: {word} recipe.yaml.")
        return
    off = key.removeprefix("no_")
    if off != key and key not in _KNOWN and not equals and (_switch(off) or off in HINTS):
        found.settings.append(Setting(off, False, f"{word}: "))
        return
    if not equals:
        values = _values_of(key, left)
        if not values and not _may_stand_alone(key):
            found.problems.append(f"{word} needs a value: {word} {_example(key)}.")
            return
        typed = " ".join([word, *values])
        if len(values) > 1:
            _setting_of_several(key, values, typed, found)
            return
        value = values[0] if values else "true"
    _setting(f"{key}={value}", typed, found)


def _equation(word: str, left: list[str], found: Words) -> None:
    """``key=value``; a value that stands apart is explained."""
    name, _, value = word.partition("=")
    if not value and left and _is_value(left[0]) and not Path(left[0]).exists():
        apart = left.pop(0)
        found.problems.append(f"{word} {apart}: no space after the equals sign: write {name.strip()}={apart}.")
        return
    _setting(f"{_key(name)}={value}", word, found)


def _setting(text: str, typed: str, found: Words) -> None:
    try:
        found.settings.append(recipe.override(text, typed))
    except RecipeError as e:
        found.problems.append(str(e))


def _setting_of_several(key: str, values: Sequence[str], typed: str, found: Words) -> None:
    try:
        read = [recipe.override(f"{key}={value}", typed).value for value in values]
        found.settings.append(Setting(key, read, f"{typed}: "))
    except RecipeError as e:
        found.problems.append(str(e))


def _recipe(word: str, found: Words) -> None:
    """Take a word as the recipe, or say why it is none."""
    path = Path(word)
    if _DATA.fullmatch(word.lower()):
        found.problems.append(f"{word}: this is data, and a recipe is a YAML file. Data is given as --data {word}.")
    elif path.is_dir():
        what = "a run: it is continued by --out" if (path / "recipe.yaml").is_file() else "given as --model or --data"
        found.problems.append(f"{word}: this is a folder, and a recipe is a YAML file. A folder is {what} {word}.")
    elif found.recipe is not None:
        found.problems.append(f"one recipe at most, not {found.recipe}, {word}. Settings are written key=value.")
    else:
        found.recipe = word


def _misread(word: str, left: list[str], others: bool) -> str | None:
    """What was meant by words that look like a setting and are none; takes those that belong to it. others: a word
    alone may be a name."""
    if re.match(r"-[A-Za-z]", word):
        return f"{word}: there is no such option. A setting is written --key value or key=value."
    name, colon, value = word.partition(":")
    key = _key(name)
    if key not in _KNOWN or (not colon and Path(word).exists()):
        return None
    if value:
        return f"{word}: a setting is written with an equals sign: {key}={value}."
    typed = [word]
    if left and left[0].startswith("="):
        sign = left.pop(0)
        typed.append(sign)
        value = sign[1:]
    if not value and left and _is_value(left[0]):
        value = left.pop(0)
        typed.append(value)
    if not value:
        return None if others else f"{word}: a setting needs a value: {key}={_example(key)}."
    return f"{' '.join(typed)}: a setting is written in one word: {key}={value}, or --{name} {value}."


def _is_value(word: str) -> bool:
    """Whether a word may be the value of the one before: no option, no equation, no recipe, no setting's name."""
    if word.startswith("--") or re.match(r"[A-Za-z_][\w-]*=", word) or word.endswith(_RECIPE):
        return False
    return _key(word) not in _KNOWN


def _values_of(key: str, left: list[str]) -> list[str]:
    """The words that belong to ``--key``, taken from what is left: one, or all that follow where it takes a list."""
    if _switch(key):
        words = [str(m) for m in _KINDS[key].replace(",", " ").split() if m == "auto"]
        return [left.pop(0)] if left and (_BOOLEAN.fullmatch(left[0]) or left[0] in words) else []
    if not left or left[0].startswith("--"):
        return []
    if key not in _KINDS:
        return [left.pop(0)] if _is_value(left[0]) else []
    values = [left.pop(0)]
    while "a list" in _KINDS.get(key, "") and left and _is_value(left[0]):
        values.append(left.pop(0))
    return values


def _switch(key: str) -> bool:
    """Whether a setting may be true or false, so that it can stand without a value."""
    return "true" in _KINDS.get(key, "")


def _may_stand_alone(key: str) -> bool:
    """Whether ``--key`` alone says something: of ours where it is true or false, of other tools where it may be."""
    return _switch(key) or key not in _KINDS


def _example(key: str) -> str:
    """A value to show: what ours takes of another tool's name, too."""
    ours = next(iter(taken(key, 0) or {key: 0}))
    default = next((row.settings.model_fields[ours].default for row in METHODS.values()
                    if ours in row.settings.model_fields), None)  # fmt: skip
    return str(default) if isinstance(default, int | float) and not isinstance(default, bool) else "VALUE"
