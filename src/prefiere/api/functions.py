"""Functions that a call gives: the names that a recipe has for them, and marks by which another one is noticed."""

from __future__ import annotations

import ast
import dis
import functools
import hashlib
import importlib
import inspect
import textwrap
from collections.abc import Callable
from types import CodeType
from typing import Any

from prefiere.in_memory import Mark


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


def mark_of(function: Callable[..., Any]) -> Mark:
    """Hashes of what a function does and of what it holds, as far as they can be told.

    Its code is read without comments and layout. What it may change itself (lists, dicts, sets, attributes of objects,
    names that it binds again) is state, and stands apart: a reward that counts its calls stays the same function.
    """
    state: list[Any] = []
    does = _told(function, 0, state)
    return {"code": _hash(does), "state": _hash(state)}


def _hash(told: Any) -> str:
    return hashlib.blake2b(repr(told).encode(), digest_size=16).hexdigest()


def _told(value: Any, depth: int, state: list[Any]) -> Any:
    """What a value is, with code and values that stay; those that may change are added to ``state``."""
    if value is None or isinstance(value, str | bytes | int | float | complex):
        return value
    if depth > 4:
        return type(value).__qualname__
    if isinstance(value, tuple):
        return ["tuple", *(_told(v, depth + 1, state) for v in value)]
    if isinstance(value, frozenset):
        return ["frozenset", *sorted(repr(_told(v, depth + 1, state)) for v in value)]
    if isinstance(value, list | set | dict):
        state.append([type(value).__name__, _changing(value, depth + 1)])
        return type(value).__name__
    if isinstance(value, functools.partial):
        return ["partial", *(_told(v, depth + 1, state) for v in (value.func, value.args, *value.keywords.items()))]
    if inspect.isfunction(value):
        return _function(value, depth, state)
    if inspect.ismethod(value):
        return [_told(value.__func__, depth + 1, state), _told(value.__self__, depth + 1, state)]
    if inspect.isclass(value) or inspect.ismodule(value) or inspect.isbuiltin(value):
        return getattr(value, "__qualname__", getattr(value, "__name__", ""))
    call, held = inspect.getattr_static(type(value), "__call__", None), dict(getattr(value, "__dict__", {}))
    within = held.pop("__wrapped__", None)  # what functools.cache and its like call
    state.append(_changing(held, depth + 1))
    of_call = _told(call, depth + 1, state) if inspect.isfunction(call) else None
    return [type(value).__qualname__, of_call, _told(within, depth + 1, state)]


def _changing(value: Any, depth: int) -> Any:
    """All that a list, set or dict holds."""
    parts: list[Any] = []
    if isinstance(value, dict):
        told: list[Any] = [(str(k), _told(v, depth, parts)) for k, v in value.items()]
    else:
        told = [_told(v, depth, parts) for v in value]
    return [sorted(map(repr, told)) if isinstance(value, set) else told, parts]


def _function(function: Any, depth: int, state: list[Any]) -> Any:
    """Its code, its defaults, and what it closes over."""
    bound_again = _bound_again(function.__code__)
    held = []
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        if _is_filled(cell):
            value = cell.cell_contents
            held.append(_told([value] if name in bound_again else value, depth + 1, state))
    defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).items()]
    return [_code(function), [_told(v, depth + 1, state) for v in defaults], held]


def _bound_again(code: CodeType) -> set[str]:
    """The names that code closes over and binds again (``nonlocal``)."""
    names = {i.argval for i in dis.get_instructions(code) if i.opname == "STORE_DEREF"}
    return names.union(*(_bound_again(c) for c in code.co_consts if isinstance(c, CodeType)))


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
    return [code.co_code.hex(), code.co_names, code.co_varnames, [_constant(c) for c in code.co_consts]]


def _constant(value: Any) -> Any:
    """A set's order is another one in every process, and so not told."""
    if isinstance(value, CodeType):
        return _compiled(value)
    if isinstance(value, tuple):
        return ["tuple", *map(_constant, value)]
    if isinstance(value, frozenset):
        return ["frozenset", *sorted(repr(_constant(v)) for v in value)]
    return repr(value)
