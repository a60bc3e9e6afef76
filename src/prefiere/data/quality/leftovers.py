"""What stands in an answer that nobody wants to teach: left there by its writer, an export or a program."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_LOOKED_AT = 4000
"""Characters of a text that are looked at."""
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|https?://\S+", re.DOTALL)
_SENTENCE = re.compile(r"(?<=[.!?。])\s*")
_PROGRAM = re.compile(
    r"\bdef \w+\(|\bfunction\b|\breturn\b|=>|;\s*(?:\n|\Z)|print\(|\bclass \w+[:({]|#include|\\[a-z]+\{|\$[^$\n]+\$"
)
"""What a text that is a program, or a formula, holds: braces and backslashes are at home there."""
_FENCE_ESCAPED = re.compile(r"\\n```|```\w*\\n")
_FENCE = re.compile(r"^[ \t]*(?:```|~~~)\w*[ \t]*$", re.MULTILINE)
"""Line breaks that are written as signs around code, where no line begins or ends it as one does."""
_OF_NO_PROGRAM = ("placeholder", "escaped", "written_out", "lost_letters")


@dataclass(frozen=True, slots=True)
class Leftover:
    """What is looked for in an answer. hints: what stands in its small letters wherever the pattern is found; looking
    for these first is ten times as fast. asked: how a prompt speaks that may want it."""

    pattern: re.Pattern[str]
    hints: tuple[str, ...]
    asked: re.Pattern[str]


def _left(asked: str, hints: tuple[str, ...], *patterns: str) -> Leftover:
    found = re.compile("|".join(patterns), re.IGNORECASE | re.DOTALL)
    return Leftover(found, hints, re.compile(asked, re.IGNORECASE))


LEFTOVERS: dict[str, Leftover] = {
    "machine": _left(
        r"\bai\b|gpt|openai|language model|\bare you\b|who (?:are|made)|assistant|artificial|\bia\b|\bki\b|eres",
        (
            *("language model", "artificial", "an ai", "chatgpt", "openai", "knowledge cut", "my last", "my latest"),
            *(
                "my most recent",
                "sprach",
                "ki-",
                "ki ",
                "modelo de",
                "asistente de",
                "actualización",
                "tant que",
                "by ai",
            ),
        ),
        r"\bas an? (?:ai|artificial intelligence|(?:large )?language model)\b",
        r"\bi(?:'m| am) (?:an ai|chatgpt)\b|\b(?:as|by) (?:chatgpt|openai)\b|\bknowledge cut-?off\b",
        r"\bmy (?:last|latest|most recent) (?:knowledge )?(?:update|training)",
        r"\bals (?:ein )?(?:ki|sprach)[- ]?(?:sprach)?modell",
        r"\bcomo (?:un )?(?:modelo de (?:lenguaje|ia)|asistente de ia)",
        r"\bmi última actualización\b",
        r"\ben tant que (?:modèle|ia)\b",
        r"\b(?:written|generated) by (?:an )?ai\b",
    ),
    "placeholder": _left(
        r"template|placeholder|jinja|handlebars|mustache|variable|fill in|draft|letter|e-?mail|plantilla|carta|correo"
        r"|vorlage|brief|lettre|[{\[<]",
        ("{", "[", "<", "todo", "lorem"),
        r"\{\{ ?[a-z_ ]{2,30} ?\}\}",
        r"(?<![\\$/_^\w}])\{[a-z]+(?:_[a-z]+)+\}",
        r"\blorem ipsum\b|(?-i:\bTODO\b)",
        r"<(?:your |insert )[^<>\n]{1,30}>",
        r"\[(?:your|insert|full name|company|phone|email|date|link|address)\b[^\]\n]{0,30}\](?!\()",
        r"\[(?:name|nombre|tu|fecha|hier|ihr|votre)\b[^\]\n]{0,30}\](?!\()",
    ),
    "next_turn": _left(
        r"dialog|diálogo|conversation|conversación|interview|entrevista|gespräch|quiz|question|pregunt|frage|script|faq"
        r"|\n(?:Human|User)",
        ("\n",),
        r"(?-i:(?<=[.!?。])[ \t]*\n\n?(?:#+ )?(?:Human|User|Usuario|Question|Pregunta|Frage|Instruction) ?:)",
        r"(?-i:\n### (?:Instruction|Question|Frage|Pregunta)\b)",
    ),
    "written_out": _left(
        r"json|\blist|array|python|dict|format|object|tuple",
        ("[", "b'", 'b"', "{"),
        r"\A\s*\[(['\"]).*\1,?\s*\]\s*\Z",
        r"\A\s*b(['\"]).*\2\s*\Z",
        r"\A\s*\{\s*['\"](?:role|content|text|response|answer|output|completion)['\"]\s*:.*\}\s*\Z",
    ),
    "escaped": _left(
        r"json|regex|regular exp|string|\bcode|python|escape|latex|csv",
        ("\\", '""'),
        r"(?-i:(?<=[.!?,:;\w])\\n(?=[A-ZÀ-Þ\s\d*-]|\\n|\Z))|\\u[0-9a-f]{4}|\\x[0-9a-f]{2}",
        r"\w\"\"\w",
    ),
    "lost_letters": _left(r"[a-z]\?[a-z]", ("?",), r"(?-i:[a-zà-ÿ]\?[a-zà-ÿ]+)(?![\w-]*[=:])"),
    "thought": _left(
        r"think|reason|step",
        ("okay", "alright", "hmm", "the user"),
        r"\A\s*(?:okay|alright|hmm)[,.] (?:so )?(?:the user |i need to |the question )",
        r"\A\s*the user (?:wants|asks|is asking|has asked)\b",
    ),
    "subwords": _left(
        r"token|分词|pinyin|拼音",
        ("▁", "##", "ġ", " 。", " ，", " 、"),
        r"▁\w|\w ##\w|Ġ\w|(?:[\u3040-\u30ff\u4e00-\u9fff] ){8}",
    ),
    "stamped": _left(
        r"\bwhen\b|\btime|schedul|transcri|subtitle|chapter|cuándo|hora\b|wann|uhr|heure",
        ("[", "(", ":", "sent from", "enviado", "gesendet", "wrote"),
        r"\A\s*[\[(]\d{1,2}:\d{2}(?::\d{2})?[\])]\s|\A\s*\d{1,2}:\d{2}:\d{2}\s",
        r"\bsent from my (?:iphone|ipad|android|mobile)|\benviado desde mi\b|\bvon meinem (?:iphone|handy) gesendet",
        r"\bon [^\n]{5,60} wrote:\n",
    ),
    "graded": _left(
        r"\[\d|\brat(?:e|ing)|scor|grad(?:e|ing)|review|evaluat|judge|puntu|puntú|nota|bewert|note\b",
        ("rating", "score", "grade", "puntuación", "nota", "bewertung", "[["),
        r"(?:\A|\n)\W{0,3}(?:rating|score|grade|puntuación|nota|bewertung)\s*[:=]\s*\d[\d.,]*(?:\s*/\s*\d+)?\W*(?:\n|\Z)",
        r"\[\[\d{1,2}(?:\.\d)?\]\]\s*\Z",
    ),
    "address": _left(
        r"\burl|link|home ?page|web|site|address|enlace|página|where can i|source", ("http",), r"\A\s*https?://\S+\s*\Z"
    ),
    "unseen": _left(r"\ufeff", ("\ufeff", "\xa0"), r"\ufeff", r"[^\W\d_]\xa0[^\W\d_]+\xa0[^\W\d_]+\xa0[^\W\d_]"),
    "loop": _left(
        r"song|lyric|poem|refrain|chorus|canción|poema|lied\b|gedicht|repeat|repit",
        (),
        r"([^.!?。\n]{15,200}[.!?。])\s{0,3}(?:\1\s{0,3}){2,}",
    ),
}
"""By name: a machine that speaks of itself, a place to be filled in, the next question, a list or an object as a
program writes it, signs of escape, a letter that became a question mark, thoughts aloud, pieces of a tokenizer (or
spaces between Chinese signs), times and the head of a mail, a grade, nothing but an address, signs that nobody sees, a
sentence again and again."""


def left_in(answer: str, prompt: str) -> Iterator[str]:
    """Names of `LEFTOVERS` that an answer shows outside of code, and that its prompt does not seem to ask for."""
    text, asked = answer[:_LOOKED_AT], prompt[-_LOOKED_AT:]
    escaped = _FENCE_ESCAPED.search(text) is not None and _FENCE.search(text) is None
    bare, small = text if escaped else _CODE.sub(" ", text), text.lower()
    program, sentences = not escaped and _PROGRAM.search(text) is not None, _SENTENCE.split(text)
    again = len(sentences) > len(set(sentences)) + 1
    for name, left in LEFTOVERS.items():
        if not (again if name == "loop" else any(hint in small for hint in left.hints)):
            continue
        if (program and name in _OF_NO_PROGRAM) or not left.pattern.search(text if name == "address" else bare):
            continue
        if not left.asked.search(asked) and not left.pattern.search(asked):
            yield name
