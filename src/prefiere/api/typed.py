"""Write methods.pyi: every setting of every method as a typed argument, for editors and type checkers.

python -m prefiere.api.typed > src/prefiere/api/methods.pyi
"""

from __future__ import annotations

from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from prefiere.api.held import FUNCTIONS, ROWS
from prefiere.in_memory import EVENTS
from prefiere.methods import METHODS, Method

_HEAD = '''\
# Written by `python -m prefiere.api.typed` from the settings: not to be edited. What each one means: docs/settings.md.
from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

from prefiere.api.run import Run

class Table(Protocol):
    """A pandas DataFrame."""
    @property
    def columns(self) -> Any: ...
    def itertuples(self, index: bool = ..., name: Any = ...) -> Iterable[Any]: ...

class Dataset(Protocol):
    """A Dataset, or a DatasetDict, of the datasets library."""
    @property
    def column_names(self) -> Any: ...
    def with_format(self, type: Any = ...) -> Any: ...

class Model(Protocol):
    """A model of transformers, or an adapter of PEFT, in memory."""
    @property
    def config(self) -> Any: ...
    def save_pretrained(self, save_directory: Any) -> Any: ...

class Tokenizer(Protocol):
    """A tokenizer of transformers."""
    @property
    def special_tokens_map(self) -> Any: ...
    def save_pretrained(self, save_directory: Any) -> Any: ...

Name: TypeAlias = str | PathLike[str]
Rows: TypeAlias = Name | Sequence[Mapping[str, Any]] | Sequence[str] | Table | Dataset
Scorer: TypeAlias = Name | Callable[..., Any] | tuple[Model, Tokenizer]
'''
_ROWS = "Rows"


def stub() -> str:
    """The text of methods.pyi."""
    return _HEAD + "".join(_function(row) for row in METHODS.values())


def _function(row: Method) -> str:
    lines = [f"\ndef {row.name}(", "    recipe: Name | None = None,", "    *,", "    fresh: bool = False,"]
    hints = get_type_hints(row.settings, include_extras=True)
    for key, field in row.settings.model_fields.items():
        if key != "method":
            default = "..." if field.is_required() else _default(field.default)
            lines.append(f"    {key}: {_kind(key, hints[key])} = {default},")
    if row.family == "policy":
        lines.append("    prompts: Rows = ...,")
    lines += [f"    {name}: Tokenizer = ...," for name in ("tokenizer", "processing_class")]
    what = dict.fromkeys(EVENTS, "Callable[[int, dict[str, Any]], Any]") | {"on_save": "Callable[[int, Path], Any]"}
    lines += [f"    {event}: {what[event]} | None = ...," for event in EVENTS]
    return "\n".join([*lines, ") -> Run:", f'    """{row.help}"""', ""])


def _kind(key: str, hint: Any) -> str:
    """The type of an argument: that of the setting, and what may be held in its place."""
    if key in ROWS:
        beside = {"data": "", "sample_prompts": ' | int | Literal["auto"]'}
        return _ROWS + beside.get(key, " | None")
    if key in FUNCTIONS:
        return "Scorer | Sequence[Scorer]" if key == "reward" else "Scorer | None"
    if key in ("model", "out"):
        return "Name | Model" if key == "model" else "Name"
    return _typed(hint)


def _typed(hint: Any) -> str:
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _typed(parts[0])
    if origin in (Union, UnionType):
        return " | ".join(dict.fromkeys(_typed(p) for p in parts))
    if origin is Literal:
        return f"Literal[{', '.join(map(_quoted, parts))}]"
    if origin is list:
        return f"Sequence[{_typed(parts[0])}]"
    if origin is dict:
        return f"Mapping[{', '.join(map(_typed, parts))}]"
    return "None" if hint is NoneType else "Any" if hint is Any else str(hint.__name__)


def _default(value: Any) -> str:
    return _quoted(value) if value is None or isinstance(value, str | bool | int | float) else "..."


def _quoted(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


if __name__ == "__main__":
    print(stub(), end="")
