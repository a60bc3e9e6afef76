"""Every setting explained: as rows, as the page docs/settings.md, as a schema for editors. No torch here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Union

import yaml
from pydantic import TypeAdapter

from prefiere.asked.language import tongue
from prefiere.asked.spoken_help import help_said
from prefiere.methods import METHODS
from prefiere.recipe import accepts
from prefiere.settings import PolicyGradient, Settings


def schema() -> dict[str, Any]:
    """JSON Schema of a recipe, for editors."""
    every = [row.settings for row in METHODS.values()]
    either: Any = Union[tuple(every)]  # noqa: UP007
    inner = TypeAdapter(either).json_schema()
    for model in every:  # flags may supply what a recipe leaves out
        inner["$defs"][model.__name__]["required"] = ["method"]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "prefiere recipe", **inner}


def settings_table(method: str) -> list[tuple[str, str, str, str]]:
    """(key, what it may be, default, meaning) of every setting of a method, in the order of the file."""
    return _rows(METHODS[method].settings, METHODS[method].settings.model_fields)


def first_settings(method: str) -> list[tuple[str, str, str]]:
    """(key, default, meaning) of the settings of a method to look at first."""
    row = METHODS[method]
    told = _rows(row.settings, row.matters)
    return [(key, default, help_said(meaning, tongue())) for key, _, default, meaning in told]


def _rows(model: type[Settings], keys: Iterable[str]) -> list[tuple[str, str, str, str]]:
    def default(key: str) -> str:
        field = model.model_fields[key]
        if field.is_required():
            return "required"
        return (
            "none" if field.default is None else yaml.safe_dump(field.default, default_flow_style=True).split("\n")[0]
        )

    return [(k, accepts(model, k), default(k), model.model_fields[k].description or "") for k in keys]


def settings_page() -> str:
    """The text of docs/settings.md: the settings of every method, shared ones first."""
    sampling = [name for name, row in METHODS.items() if issubclass(row.settings, PolicyGradient)]
    shared = f"Commands that sample answers ({', '.join(sampling)})"
    tables: list[tuple[str, type[Settings], list[str]]] = [
        ("Every command", Settings, [k for k in Settings.model_fields if k != "method"]),
        (shared, PolicyGradient, _own(PolicyGradient, Settings)),
    ]
    for name, method in METHODS.items():
        above = PolicyGradient if name in sampling else Settings
        tables.append((f"`prefiere {name}`", method.settings, _own(method.settings, above)))
    lines = [
        "# Settings",
        "",
        "Every key of a recipe, and of `--key value`, `--key=value` or `key=value` on the command line; what a command",
        "has or sets otherwise stands in its own table. Written by `prefiere recipe show --markdown` from the code.",
    ]
    for title, model, keys in tables:
        lines += ["", f"## {title}", "", "| key | may be | default | meaning |", "| --- | --- | --- | --- |"]
        lines += [
            "| `{}` | {} | {} | {} |".format(*(cell.replace("|", r"\|") for cell in row)) for row in _rows(model, keys)
        ]
    return "\n".join(lines) + "\n"


def _own(model: type[Settings], above: type[Settings]) -> list[str]:
    """The settings, or the defaults, that a class has and the one above it has not."""
    fields = above.model_fields
    return [k for k, f in model.model_fields.items() if k not in fields or fields[k].default != f.default]
