"""The demo's judge: a rule, and nothing but a rule.

It looks at words with regular expressions and at the table of nouns; it understands nothing. It can tell the two styles
of the demo's answers apart, and whether an answer is about the thing that was asked, because both are simple there. It
is no judge of any other model or question.

Every function takes the prompts (a plain question, or a chat rendered to text) and their completions, and gives 1.0 or
0.0 for each. The two styles exclude each other, and text that is no sentence ("el el el", an empty answer) has neither.
"""

from __future__ import annotations

import re
from functools import cache
from itertools import pairwise

from prefiere.demo.corpus import LANGUAGES, Language, Noun, Style, nouns

_CASUAL = re.compile(
    r"\b(siempre|nunca|nadie|todo el mundo|te|ti|tú|tu|tus|mejor|mejores|peor|peores"
    r"|always|never|nobody|anybody|everybody|you|your|best|better|worst|worse)\b",
    re.IGNORECASE,
)
"""A chat addresses its listener, exaggerates and compares; an encyclopedia does none of these."""

_SPECIAL = re.compile(r"<\|\w+\|>")
_SENTENCE = re.compile(r"[A-ZÁÉÍÓÚÑ¿¡].*\w[.!?]", re.DOTALL)
_STRANGE = re.compile(r"[^\w\s.,;:!?¿¡'’\"«»()%-]|_")
_SPANISH = re.compile(r"\b(qué|dime|háblame|explícame|cómo|sobre|puedes|es|un|una|el|la|del|de)\b|[¿ñ]", re.IGNORECASE)
_ENGLISH = re.compile(r"\b(what|tell|explain|how|about|can|is|are|an|the|of|do|know|would)\b", re.IGNORECASE)
_EMPTY_WORDS = frozenset(
    re.findall(
        r"\w+",
        "el la los las un una unos unas de del al a en y o u e es son que se su sus con por para como cuyo cuya lo sin "
        "te ti tú tu tus siempre nunca nadie cuando si no ni más "
        "the an of in on to and or is are that which who with by for from its it at as whose into up out "
        "you your always never nobody when if not",
    )
)
_ENOUGH = 0.75


def encyclopedic(prompts: list[str], completions: list[str]) -> list[float]:
    """1.0 for a sentence that defines: "X is a ... <class> ..." and then what sets X apart, in a neutral tone.

    Only the style counts: whether it is true is `on_topic`'s question.
    """
    return [float(_style(completion) == "encyclopedic") for completion in completions]


def casual(prompts: list[str], completions: list[str]) -> list[float]:
    """1.0 for a sentence in the tone of a chat: it addresses the listener or exaggerates, and defines nothing."""
    return [float(_style(completion) == "casual") for completion in completions]


def on_topic(prompts: list[str], completions: list[str]) -> list[float]:
    """1.0 for a sentence about the thing asked, in the language asked, that says what the table says of that thing.

    An encyclopedic answer has to give the noun's own class and agree with its fact, any other with its remark: three
    quarters of the words that carry meaning in either text have to be in both. Raises ValueError for a question about
    nothing in the table.
    """
    return [float(_is_on_topic(p, c)) for p, c in zip(prompts, completions, strict=True)]


def _clean(text: str) -> str:
    return _SPECIAL.sub(" ", text).strip()


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _is_sentence(completion: str) -> bool:
    text, words = _clean(completion), _words(completion)
    triples = list(zip(words, words[1:], words[2:], strict=False))
    return (
        4 <= len(words) <= 40
        and bool(_SENTENCE.fullmatch(text))
        and not _STRANGE.search(text)
        and text.count("¿") <= text.count("?")
        and text.count("¡") <= text.count("!")
        and not any(a == b for a, b in pairwise(words))
        and len(set(triples)) == len(triples)
    )


@cache
def _definition() -> re.Pattern[str]:
    """ "... es un <up to four words> <class> <at least two words more>", for any class of the table."""
    classes = "|".join(sorted({re.escape(noun.genus[language]) for noun in nouns() for language in LANGUAGES}))
    return re.compile(rf"\b(?:es|is)\s+(?:una?|an?)\s+(?:[\w-]+,?\s+){{0,4}}?(?:{classes})\b(?:\W+\w+){{2}}", re.I)


def _style(completion: str) -> Style | None:
    text = _clean(completion)
    defines, chats = bool(_definition().search(text)), bool(_CASUAL.search(text))
    if defines == chats or not _is_sentence(text):
        return None
    return "encyclopedic" if defines else "casual"


@cache
def _name(noun: Noun, language: Language) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{'|'.join(map(re.escape, noun.names(language)))})\b", re.IGNORECASE)


@cache
def _asked(prompt: str) -> tuple[Noun, Language]:
    """The noun that the prompt names last, and the language of the prompt."""
    text = _clean(prompt)
    language: Language = "es" if len(_SPANISH.findall(text)) > len(_ENGLISH.findall(text)) else "en"
    found = [(match.start(), noun) for noun in nouns() for match in _name(noun, language).finditer(text)]
    if not found:
        raise ValueError(f"the demo's rule judges questions about the demo's nouns only, not {prompt!r}")
    return max(found, key=lambda place: place[0])[1], language


def _stems(text: str, noun: Noun, language: Language) -> set[str]:
    """The words that carry meaning, cut to five letters so that inflections agree; the noun itself is left out."""
    return {word[:5] for word in _words(_name(noun, language).sub(" ", text)) if word not in _EMPTY_WORDS}


def _is_on_topic(prompt: str, completion: str) -> bool:
    noun, language = _asked(prompt)
    if not _is_sentence(completion) or not _name(noun, language).search(completion):
        return False
    style: Style = "encyclopedic" if _style(completion) == "encyclopedic" else "casual"
    if style == "encyclopedic" and not re.search(rf"\b{noun.genus[language]}\b", completion, re.IGNORECASE):
        return False
    said, known = (_stems(text, noun, language) for text in (completion, noun.answers[language][style]))
    return len(said & known) >= _ENOUGH * len(said | known)
