"""Formulas of the pages as MathML, which browsers show without a script. MkDocs calls `on_page_markdown`."""

from __future__ import annotations

import re
from typing import Any

from latex2mathml.converter import convert

_CODE = r"^(?P<fence>`{3,}|~{3,}).*?^(?P=fence)|(?P<ticks>`+).+?(?P=ticks)"
_INLINE = r"(?<![\\\w])\$(?=\S)(?P<inline>[^$\n]+)(?<=[^\s\\])\$(?!\w)"
_FORMULA = re.compile(rf"{_CODE}|\$\$(?P<block>[^$]+)\$\$|{_INLINE}", re.MULTILINE | re.DOTALL)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page with its formulas converted; code is left as it is.

    A formula within a line has no space behind its first dollar nor before its last one, and no letter or digit around
    both: ``$5 and $6`` are prices.
    """

    def converted(match: re.Match[str]) -> str:
        if (block := match["block"]) is not None:
            alone = match.start() == 0 or markdown[match.start() - 1] == "\n"
            return convert(block.strip(), display="block") + "\n" * alone
        return match[0] if match["inline"] is None else convert(match["inline"])

    return _FORMULA.sub(converted, markdown)
