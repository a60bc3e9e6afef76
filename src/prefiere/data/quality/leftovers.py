"""What stands in an answer that nobody wants to teach: left there by its writer, an export or a program."""

from __future__ import annotations

import re
from collections.abc import Iterator

_LOOKED_AT = 4000
"""Characters of a text that are looked at."""
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|https?://\S+", re.DOTALL)
_SENTENCE = re.compile(r"(?<=[.!?])\s*")
_PROGRAM = re.compile(
    r"\bdef \w+\(|\bfunction\b|\breturn\b|=>|;\s*(?:\n|\Z)|print\(|\bclass \w+[:({]|#include|\\(?:frac|begin)"
)
"""What a text that is a program, or a formula, holds: braces and backslashes are at home there."""
_OF_NO_PROGRAM = ("placeholder", "escaped", "written_out", "lost_letters")


def _any_of(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(patterns), re.IGNORECASE | re.DOTALL)


LEFTOVERS: dict[str, re.Pattern[str]] = {
    "machine": _any_of(
        r"\bas an? (?:ai|artificial intelligence|(?:large )?language model)\b",
        r"\bi(?:'m| am) an ai\b",
        r"\b(?:chatgpt|openai|knowledge cut-?off)\b",
        r"\bmy (?:last|latest|most recent) (?:knowledge )?(?:update|training)",
        r"\bals (?:ein )?(?:ki|sprach)[- ]?(?:sprach)?modell",
        r"\bcomo (?:un )?(?:modelo de (?:lenguaje|ia)|asistente de ia)",
        r"\bmi última actualización\b",
        r"\ben tant que (?:modèle|ia)\b",
        r"\b(?:written|generated) by (?:an )?ai\b",
    ),
    "placeholder": _any_of(
        r"\{\{ ?[a-z_ ]{2,30} ?\}\}",
        r"\{[a-z]+(?:_[a-z]+)*\}",
        r"\blorem ipsum\b|\bTODO\b",
        r"<(?:your |insert )[^<>\n]{1,30}>",
        r"\[(?:your|insert|name|full name|company|phone|email|date|link|address)\b[^\]\n]{0,30}\](?!\()",
        r"\[(?:nombre|tu|su|fecha|hier|ihr|votre|nom)\b[^\]\n]{0,30}\](?!\()",
    ),
    "next_turn": _any_of(
        r"\n\s*(?:human|user|usuario|question|pregunta|frage|instruction|input)\s*:",
        r"\n#+ ?(?:instruction|question|frage|pregunta|input)\b",
    ),
    "written_out": _any_of(
        r"\A\s*\[(['\"]).*\1,?\s*\]\s*\Z",
        r"\A\s*b(['\"]).*\2\s*\Z",
        r"\A\s*\{\s*['\"](?:role|content|text|response|answer|output|completion)['\"]\s*:.*\}\s*\Z",
    ),
    "escaped": _any_of(r"\\n|\\u[0-9a-f]{4}|\\x[0-9a-f]{2}", r"\w\"\"\w"),
    "lost_letters": _any_of(r"[^\W\d_]\?[^\W\d_]"),
    "thought": _any_of(r"</?think(?:ing)?>", r"\A\s*(?:okay|alright|hmm)[,.] (?:so |let me |the user |let's )"),
    "subwords": _any_of(r"▁\w|\w ##\w|Ġ\w"),
    "stamped": _any_of(
        r"\A\s*[\[(]?\d{1,2}:\d{2}(?::\d{2})?[\])]?\s",
        r"\bsent from my (?:iphone|ipad|android|mobile)|\benviado desde mi\b|\bvon meinem (?:iphone|handy) gesendet",
        r"\n>[^\n]*\n>",
        r"\bon [^\n]{5,60} wrote:\n",
    ),
    "graded": _any_of(
        r"(?:\A|\n)\W{0,3}(?:rating|score|grade|puntuación|nota|bewertung)\s*[:=]\s*\d[\d.,]*(?:\s*/\s*\d+)?\W*(?:\n|\Z)"
    ),
    "address": _any_of(r"\A\s*https?://\S+\s*\Z"),
    "unseen": _any_of(r"[\ufeff\u200b]", r"\w\xa0\w+\xa0\w+\xa0\w"),
    "loop": _any_of(r"([^.!?\n]{15,}[.!?])\s*(?:\1\s*){2,}"),
}
"""By name what is looked for in an answer: a machine that speaks of itself, a place to be filled in, the next question,
a list or an object as a program writes it, signs of escape, a letter that became a question mark, thoughts aloud,
pieces of a tokenizer, times and the head of a mail, a grade, nothing but an address, signs that nobody
sees, a sentence again and again."""


_HINTS: dict[str, tuple[str, ...]] = {
    "machine": (
        *("language model", "artificial", "an ai", "chatgpt", "openai", "knowledge cut", "my last", "my latest"),
        *("my most recent", "sprach", "ki-", "ki ", "modelo de", "asistente de", "actualización", "tant que", "by ai"),
    ),
    "placeholder": ("{", "[", "<", "todo", "lorem"),
    "next_turn": ("\n",),
    "written_out": ("[", "b'", 'b"', "{"),
    "escaped": ("\\", '""'),
    "lost_letters": ("?",),
    "thought": ("think", "okay", "alright", "hmm"),
    "subwords": ("▁", "##", "ġ"),
    "stamped": (":", "sent from", "enviado", "gesendet", "\n>"),
    "graded": ("rating", "score", "grade", "puntuación", "nota", "bewertung"),
    "address": ("http",),
    "unseen": ("\ufeff", "\u200b", "\xa0"),
}
"""What stands in a text in small letters where one of them is found: looking for these first is ten times as fast."""


def left_in(answer: str, prompt: str) -> Iterator[str]:
    """Names of `LEFTOVERS` that an answer shows outside of code, and its prompt does not, where it may be asked for."""
    text = answer[:_LOOKED_AT]
    bare = _CODE.sub(" ", text)
    small, sentences = text.lower(), _SENTENCE.split(text)
    again, program = len(sentences) > len(set(sentences)) + 1, _PROGRAM.search(text) is not None
    for name, pattern in LEFTOVERS.items():
        if not (again if name == "loop" else any(hint in small for hint in _HINTS[name])):
            continue
        if program and name in _OF_NO_PROGRAM:
            continue
        seen = text if name == "address" else bare
        if pattern.search(seen) and not pattern.search(prompt[-_LOOKED_AT:]):
            yield name
