"""docs/theory.md and the objectives name each other."""

import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

from prefiere import objectives
from prefiere.objectives.preference import LOSSES

TEXT = (Path(__file__).parents[2] / "docs" / "theory.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`(prefiere\.[\w.]+)`", TEXT)))


@pytest.mark.parametrize("name", NAMED)
def test_everything_named_exists(name: str) -> None:
    module, _, attribute = name.rpartition(".")
    assert hasattr(importlib.import_module(module), attribute)


def test_every_public_function_is_named() -> None:
    for found in pkgutil.iter_modules(objectives.__path__):
        if found.name == "shapes":  # no formula
            continue
        module = importlib.import_module(f"prefiere.objectives.{found.name}")
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if function.__module__ == module.__name__ and not name.startswith("_"):
                assert f"{module.__name__}.{name}" in NAMED
    for loss_type in LOSSES:
        assert f"| `{loss_type}` |" in TEXT


def test_math_survives_markdown() -> None:
    """GitHub's markdown eats a backslash before punctuation, a cell ends at a bar, and $ must come in pairs."""
    for number, line in enumerate(TEXT.splitlines(), 1):
        inline = re.sub(r"`[^`]*`", "", line)
        assert inline.count("$") % 2 == 0, f"line {number}: a formula must not be broken"
        for formula in re.findall(r"\$+([^$]+)\$+", inline):
            assert not re.search(r"\\[^a-zA-Z ]", formula), f"line {number}: {formula}"
            assert "|" not in formula, f"line {number}: {formula}"
            assert formula.count("{") == formula.count("}"), f"line {number}: {formula}"
