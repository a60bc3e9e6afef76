"""docs/de-la-clase-al-programa.md: every line runs and gives what stands there; its formulas are those of theory.md."""

from __future__ import annotations

import re

import pytest

import pages
from pages import DOCS
from prefiere import recipe
from prefiere.methods import METHODS

PAGE = "de-la-clase-al-programa.md"
TEXT = (DOCS / PAGE).read_text(encoding="utf-8")


def test_every_line_gives_what_stands_there() -> None:
    found = pages.run_page(PAGE)
    assert found.attempted > 25
    assert found.failed == 0


def test_its_formulas_survive_markdown() -> None:
    for number, line in enumerate(TEXT.splitlines(), 1):
        inline = re.sub(r"`[^`]*`", "", line)
        assert inline.count("$") % 2 == 0, f"line {number}: a formula must not be broken"
        for formula in re.findall(r"\$+([^$]+)\$+", inline):
            assert "|" not in formula, f"line {number}: {formula}"
            assert formula.count("{") == formula.count("}"), f"line {number}: {formula}"


@pytest.mark.parametrize(("page", "least"), [("README.es.md", 12), ("README.md", 22)])
def test_the_commands_of_a_readme_exist(page: str, least: int) -> None:
    """Their names, their options, and the settings that they give a method."""
    import typer.main

    from prefiere.cli.main import app

    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    lines = re.findall(r"^ *prefiere (.+?)(?: +#.*)?$", (DOCS.parent / page).read_text("utf-8"), re.M)
    assert len(lines) > least
    for line in lines:
        name, *words = line.split()
        if under := getattr(commands[name], "commands", None):  # one of them, or several: agree|import
            assert set(words[0].split("|")) <= under.keys(), line
            continue
        known = {option for p in commands[name].params for option in p.opts}
        assert {w for w in words if w.startswith("--")} <= known, line
        if name in METHODS:
            needed = ("model", "data", "out", *(["reward"] if "reward" in METHODS[name].settings.model_fields else []))
            settings = recipe.load(name, None, dict.fromkeys(needed, "x"), [w for w in words if "=" in w])
            assert settings.method == name
