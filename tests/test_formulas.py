"""Which parts of a page are formulas (docs/site/formulas.py); the converter is one that marks them."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

PAGES = Path(__file__).resolve().parents[1] / "docs"


@pytest.fixture
def formulas(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    converter = ModuleType("latex2mathml.converter")
    converter.convert = lambda text, display="inline": f"<{display}:{text}>"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "latex2mathml", ModuleType("latex2mathml"))
    monkeypatch.setitem(sys.modules, "latex2mathml.converter", converter)
    spec = importlib.util.spec_from_file_location("formulas", PAGES / "site" / "formulas.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("the state $s_t$, then $a_t$.", "the state <inline:s_t>, then <inline:a_t>."),
        ("($G_0$ is $R(\\tau)$)", "(<inline:G_0> is <inline:R(\\tau)>)"),
        ("$x$", "<inline:x>"),
        ("an hour is $5 and $6 on two clouds", "an hour is $5 and $6 on two clouds"),
        ("from $5 to $6, with $x$ of them", "from $5 to $6, with <inline:x> of them"),
        ("$5-$6, US$5 and A$6", "$5-$6, US$5 and A$6"),
        ("a price \\$5 or 6$ more", "a price \\$5 or 6$ more"),
        ("`$HOME` and $HOME or `$a$`", "`$HOME` and $HOME or `$a$`"),
        ("one $a\nline$ each", "one $a\nline$ each"),
        ("```\n$x$\n```\n$y$", "```\n$x$\n```\n<inline:y>"),
        ("so that\n$$\na + b\n$$\n", "so that\n<block:a + b>\n\n"),
        ("a $$b$$ within", "a <block:b> within"),
    ],
)
def test_what_is_a_formula(formulas: ModuleType, text: str, shown: str) -> None:
    assert formulas.on_page_markdown(text) == shown


def test_no_dollar_of_the_pages_is_left_over(formulas: ModuleType) -> None:
    """Outside code each dollar of theory.md and of the lecture's page belongs to a formula."""
    for name in ("theory.md", "de-la-clase-al-programa.md"):
        shown = formulas.on_page_markdown((PAGES / name).read_text(encoding="utf-8"))
        prose = [line for i, part in enumerate(shown.split("```")) if i % 2 == 0 for line in part.splitlines()]
        assert not [line for line in prose if "$" in line]
