"""Functions that a call gives: the names that a recipe has for them, and marks by which another one is noticed."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import inspect
import textwrap
from collections.abc import Callable
from types import CodeType
from typing import Any


def recorded_name(function: Callable[..., Any]) -> str:
    """``module:function`` for one that can be imported so, ``<name>`` for any other (of a notebook, a closure)."""
    module, name = getattr(function, "__module__", None), getattr(function, "__name__", None)
    if module not in (None, "__main__") and name is not None:
        try:
            if getattr(importlib.import_module(str(module)), name, None) is function:
                return f"{module}:{name}"
        except ImportError:
            pass
    return f"<{_plain_name(function)}>"


def _plain_name(function: Callable[..., Any]) -> str:
    """As TRL calls it: a partial by what it wraps, an object by its class."""
    while isinstance(function, functools.partial):
        function = function.func
    return str(getattr(function, "__name__", type(function).__name__)).strip("<>")


def mark_of(function: Callable[..., Any]) -> str:
    """A hash of what a function does, as far as it can be told: its code without comments and layout, and the plain
    values that it was made with (defaults, what it closes over, the attributes of an object)."""
    return hashlib.blake2b(repr(_told(function, 0)).encode(), digest_size=16).hexdigest()


def _told(value: Any, depth: int) -> Any:
    if value is None or isinstance(value, str | bytes | int | float | complex):
        return value
    if depth > 4:
        return type(value).__qualname__
    if isinstance(value, list | tuple | set | frozenset):
        return [
            type(value).__name__,
            *(_told(v, depth + 1) for v in (value if isinstance(value, list | tuple) else sorted(value, key=repr))),
        ]
    if isinstance(value, dict):
        return ["dict", *((str(k), _told(v, depth + 1)) for k, v in value.items())]
    if isinstance(value, functools.partial):
        return ["partial", _told(value.func, depth + 1), _told(value.args, depth + 1), _told(value.keywords, depth + 1)]
    if inspect.isfunction(value):
        held = [c.cell_contents for c in value.__closure__ or () if _is_filled(c)]
        return [_code(value), _told(value.__defaults__, depth + 1), _told(value.__kwdefaults__, depth + 1),
                _told(held, depth + 1)]  # fmt: skip
    if inspect.ismethod(value):
        return [_told(value.__func__, depth + 1), _told(value.__self__, depth + 1)]
    if inspect.isclass(value) or inspect.ismodule(value) or inspect.isbuiltin(value):
        return getattr(value, "__qualname__", getattr(value, "__name__", ""))
    call = vars(type(value)).get("__call__")
    of_call = _told(call, depth + 1) if inspect.isfunction(call) else None
    return [type(value).__qualname__, of_call, _told(getattr(value, "__dict__", {}), depth + 1)]


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _code(function: Any) -> Any:
    """The source as a tree, so that comments do not count; the compiled code where there is no source to read."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
        if isinstance(tree.body[0], ast.FunctionDef | ast.AsyncFunctionDef):
            return ast.dump(tree)
    except (OSError, SyntaxError, TypeError, IndexError):
        pass
    return _compiled(function.__code__)


def _compiled(code: CodeType) -> list[Any]:
    consts = [_compiled(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts]
    return [code.co_code.hex(), code.co_names, code.co_varnames, consts]
