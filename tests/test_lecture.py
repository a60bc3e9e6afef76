"""docs/de-la-clase-al-programa.md: every line runs and gives what stands there; its formulas are those of theory.md."""

from __future__ import annotations

import re

import pages
from pages import DOCS

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


def test_the_commands_of_the_spanish_readme_exist() -> None:
    import typer.main

    from prefiere.cli.main import app

    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    lines = re.findall(r"^ *prefiere (.+?)(?: +#.*)?$", (DOCS.parent / "README.es.md").read_text("utf-8"), re.M)
    assert len(lines) > 12
    for line in lines:
        name, *words = line.split()
        known = {option for p in commands[name].params for option in p.opts}
        assert {w for w in words if w.startswith("--")} <= known, line
