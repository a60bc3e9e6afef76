"""Pages of docs/ whose lines are run: Python in pycon blocks, commands in console blocks, with what they print."""

from __future__ import annotations

import doctest
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
from typer.testing import CliRunner

DOCS = Path(__file__).parents[1] / "docs"


class _Page(doctest.DocTestParser):
    """Commands of a console block (``$ prefiere ...``) as Python, and what they print up to the next, or the end.

    Each is printed itself first: doctest takes an ellipsis that follows a line of Python for more Python.
    """

    def parse(self, string: str, name: str = "<page>") -> list[str | doctest.Example]:
        def examples(block: re.Match[str]) -> str:
            return re.sub(r"^\$ (.*)$", lambda m: f">>> shell({m[1]!r})\n{m[0]}", block[1], flags=re.M) + "\n"

        return super().parse(re.sub(r"^```console\n(.*?)^```$", examples, string, flags=re.M | re.S), name)


def run_page(name: str, stands_for: Mapping[str, str] | None = None) -> doctest.TestResults:
    """Run every line of a page and hold what it prints against what stands there; ``...`` stands for anything.

    stands_for: what is run instead of a name on the page (a small model).
    """
    from prefiere.cli.main import app

    names = dict(stands_for or {})

    def shell(line: str) -> None:
        program, *words = re.sub(r" +#.*", "", line).split()
        assert program == "prefiere", line
        done = CliRunner().invoke(app, [names.get(word, word) for word in words])
        said = done.output
        for long, short in names.items():
            said = re.sub(rf"\b{re.escape(short)}\b", long, said)
        print("\n".join([f"$ {line}", *(text.rstrip() for text in said.splitlines() if text.strip())]))
        assert done.exit_code == 0, said

    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("COLUMNS", "110")
        return doctest.testfile(
            str(DOCS / name), module_relative=False, encoding="utf-8", parser=_Page(), extraglobs={"shell": shell},
            optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE,
        )  # fmt: skip


def assert_links_lead_somewhere(page: Path) -> None:
    """Files that a page links to are there, and so are headings of pages."""
    text = re.sub(r"^(`{3,}).*?^\1|`[^`]*`", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" not in target:
            file, _, anchor = target.partition("#")
            to = page.parent / file if file else page
            assert to.is_file(), target
            assert not anchor or anchor in _anchors(to), target


def _anchors(page: Path) -> set[str]:
    headings = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    return {re.sub(r"[^\w -]", "", line.lstrip("# ").lower()).replace(" ", "-") for line in headings}
