"""The documentation: every link leads somewhere, and the site lists every page (`make docs` builds it)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

import pages

ROOT = pages.DOCS.parent
WRITTEN = [*sorted(ROOT.glob("*.md")), *sorted(pages.DOCS.glob("*.md"))]


@pytest.mark.parametrize("page", WRITTEN, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    pages.assert_links_lead_somewhere(page)


def test_the_site_lists_every_page() -> None:
    told = yaml.safe_load((pages.DOCS / "site" / "mkdocs.yml").read_text(encoding="utf-8"))
    listed = set(_files(told["nav"]))
    assert {ROOT / name for name in listed} == set(WRITTEN) - {ROOT / "CHANGELOG.md"}
    assert told["strict"]


def _files(nav: Any) -> list[str]:
    """The pages of a list of titles and lists."""
    if isinstance(nav, str):
        return [nav]
    return [file for part in (nav.values() if isinstance(nav, dict) else nav) for file in _files(part)]
