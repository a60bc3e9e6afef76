"""From text that nobody vouches for to HTML that runs and loads nothing: Markdown, then an allow-list, cached."""

from __future__ import annotations

import html
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
import nh3
from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup

from prefiere.data.schema import Text
from prefiere.files import visible

LONGEST_SHOWN = 50_000
"""Characters above which a text is shown as it is, without Markdown."""

_TAGS = {"p", "br", "strong", "em", "s", "del", "code", "pre", "ul", "ol", "li", "blockquote", "h4", "hr", "a", "table",
         "thead", "tbody", "tr", "th", "td"}  # fmt: skip
_HERE = Path(__file__).parent


def _markdown() -> MarkdownIt:
    """CommonMark with tables, without raw HTML and images: an image would tell a stranger who reads, and when."""
    return (
        MarkdownIt("commonmark", {"html": False, "linkify": False}).enable(["table", "strikethrough"]).disable("image")
    )


def text_html(text: str) -> Markup:
    """Markdown as HTML of a few harmless tags; hidden characters are spelt out; headings fit under an answer's own."""
    return _rendered(visible(text))


@lru_cache(maxsize=512)
def _rendered(text: str) -> Markup:
    if len(text) > LONGEST_SHOWN:
        return Markup(f"<pre>{html.escape(text)}</pre>")
    parser = _markdown()
    parsed: list[Token] = parser.parse(text)
    for token in parsed:
        if token.type in ("heading_open", "heading_close"):
            token.tag = "h4"
    made = parser.renderer.render(parsed, parser.options, {})
    clean = nh3.clean(
        made,
        tags=_TAGS,
        attributes={"a": {"href"}, "ol": {"start"}},
        url_schemes={"http", "https", "mailto"},
        link_rel="noopener noreferrer nofollow",
        set_tag_attribute_values={"a": {"target": "_blank"}},
    )
    return Markup(clean)


def said_html(text: Text) -> Markup:
    """A prompt or an answer: text, or the turns of a conversation, each under its role."""
    if isinstance(text, str):
        return text_html(text)
    if len(text) == 1 and text[0].role in ("user", "assistant"):
        return text_html(text[0].content)
    turns = [
        Markup('<div class="turn"><span class="role">{}</span>{}</div>').format(visible(m.role), text_html(m.content))
        for m in text
    ]
    return Markup("").join(turns)


def _shown(value: Any) -> Any:
    """What templates print passes here: whatever is not HTML of ours has its hidden characters spelt out."""
    return value if isinstance(value, Markup) or not isinstance(value, str) else visible(value)


def jinja_environment() -> jinja2.Environment:
    """The templates, with everything escaped."""
    loader = jinja2.FileSystemLoader(_HERE / "templates")
    made = jinja2.Environment(loader=loader, autoescape=True, finalize=_shown, trim_blocks=True, lstrip_blocks=True)
    made.undefined = jinja2.StrictUndefined
    return made


def static() -> dict[str, tuple[str, bytes]]:
    """name -> (media type, contents) of the files that a page loads: these, and nothing else, can be asked for."""
    kinds = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}
    return {p.name: (kinds[p.suffix], p.read_bytes()) for p in (_HERE / "static").iterdir() if p.suffix in kinds}
