"""In which language a text is, as far as its letters and the commonest words of it say: enough to see that an answer is
not in that of its question."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any
from unicodedata import name

from prefiere.data.quality.marks import said_last, spoken_by, tokens_of
from prefiere.data.schema import Text

LOOKED_AT, LEAST, TIMES, SHARE = 120, 2, 2, 0.1
"""Words of a text that are looked at; how many of them must be a language's own commonest ones: so many, so many times
those of any other language, and this share of all."""
_COMMONEST = {
    language: frozenset(words.split())
    for language, words in {
        "English": "the and is are of to in that it you for with this what how do does can i your not have be on was "
        "my which would should they from or why who when where there their he she we if as at by an will a no me "
        "any some so but about get",
        "Spanish": "el la los las un una de del que es en y por con para se su al lo como más qué cómo cuál son está "
        "no mi te tu hay pero sus este esta puede o si muy también",
        "French": "le la les un une des de du que est en et pour avec pas ne je vous tu il elle dans sur ce cette "
        "qui quel quelle sont plus comment pourquoi au aux mon votre peut être ou si",
        "German": "der die das und ist nicht ein eine einen einer dem den des zu mit auf für von sich wie was ich du "
        "sie es wir kann im auch oder warum sind mein wenn in",
        "Italian": "il lo la gli le un una di che è e in per con non si del della dei sono come cosa più nel i mi ti "
        "qual perché questo questa anche o",
        "Portuguese": "o a os as um uma de do da dos das que é em e para com não se como mais por seu sua você são "
        "no na qual meu este isso pode ou",
        "Dutch": "de het een en van is dat niet in op te zijn met voor die hoe wat ik je kan ook maar om er aan "
        "waarom mijn of",
        "Swedish": "och att det är en ett som på för inte jag du av med hur vad den till kan om i varför min eller",
        "Polish": "i w na nie się jest z do to że jak co czy dla po od są o tak może jest przez który",
        "Turkish": "ve bir bu için ne nasıl ile de da mi çok olarak olan var daha gibi nedir bana",
        "Indonesian": "yang dan di itu untuk dengan ini tidak apa bagaimana dari adalah saya anda pada bisa atau ke "
        "akan",
    }.items()
}
_LANGUAGES: dict[str, tuple[str, ...]] = {
    word: tuple(language for language, common in _COMMONEST.items() if word in common)
    for word in frozenset().union(*_COMMONEST.values())
}
_SCRIPTS = {
    "CYRILLIC": "Cyrillic",
    "ARABIC": "Arabic",
    "HEBREW": "Hebrew",
    "GREEK": "Greek",
    "DEVANAGARI": "Devanagari",
    "BENGALI": "Bengali",
    "TAMIL": "Tamil",
    "THAI": "Thai",
    "HANGUL": "Korean",
    "HIRAGANA": "Japanese",
    "KATAKANA": "Japanese",
    "CJK": "Chinese",
}
_NAMED = (
    *("translat", "traduc", "traduz", "tradui", "tradurr", "übersetz", "vertaal", "vertal", "översätt", "tłumacz"),
    *("çevir", "terjemah", "engl", "ingl", "angl", "angiel", "inggris", "spani", "españ", "espag", "espanh", "spagn"),
    *("castell", "french", "frenk", "franz", "franc", "français", "german", "deutsch", "alem", "allem", "tedesc"),
    *("niemieck", "ital", "portug", "dutch", "nederl", "swed", "svensk", "polish", "polaco", "polnisch", "turk"),
    *(
        "türk",
        "indones",
        "russ",
        "ruso",
        "rusa",
        "arab",
        "chin",
        "mandarin",
        "japan",
        "japon",
        "korea",
        "corean",
        "coréen",
    ),
    *("hindi", "greek", "griego", "hebr", "latin", "language", "lengua", "idioma", "langue", "sprache", "lingua"),
    *("język", "bahasa"),
)
"""How words begin that name a language, or a translation: then another one may be what is asked for."""


def language_of(text: str) -> str | None:
    """Its language, or its letters' where they are not Latin; None where that is not clear."""
    begins = text[: 8 * LOOKED_AT]
    if not begins.isascii() and (script := _script(begins)) != "LATIN":
        return _SCRIPTS.get(script)
    words = [w for w in tokens_of(text)[: 2 * LOOKED_AT] if w.isalpha()][:LOOKED_AT]
    found = Counter(language for w in words for language in _LANGUAGES.get(w, ()))
    if not found:
        return None
    (best, hits), (_, others) = (*found.most_common(2), ("", 0))[:2]
    return best if hits >= max(LEAST, TIMES * others, SHARE * len(words)) else None


def _script(text: str) -> str:
    """The letters that more than half of a text is written in, as Unicode names them; "" where none are."""
    scripts = Counter("LATIN" if c < "ɐ" else name(c, "?").split()[0].split("-")[0] for c in text if c.isalpha())
    if not scripts:
        return "LATIN"
    script, n = scripts.most_common(1)[0]
    if script == "CJK" and 10 * (scripts["HIRAGANA"] + scripts["KATAKANA"]) > n:
        return "HIRAGANA"
    return script if 2 * n > scripts.total() else ""


@dataclass
class Languages:
    """How many answers are in another language than their prompt, of those where both are clear and the prompt names no
    language. ``add`` each answer: sides are those of `faults`."""

    clear: Counter[str] = field(default_factory=Counter)
    other: dict[str, Counter[tuple[str, str]]] = field(default_factory=dict)
    sources: dict[str, list[str]] = field(default_factory=dict)

    def asked_in(self, prompt: Text, words: Iterable[str]) -> str | None:
        """The language that an answer to this prompt, which has these words, is to be in; None where that is not
        clear."""
        if any(w.startswith(_NAMED) for w in words):
            return None
        return language_of(said_last(prompt)) or language_of(spoken_by(prompt))

    def add(self, asked: str, answer: str, side: str, source: str) -> None:
        """An answer to a prompt in the language ``asked``."""
        spoken = language_of(answer)
        if spoken is None:
            return
        self.clear[side] += 1
        if spoken != asked:
            self.other.setdefault(side, Counter())[asked, spoken] += 1
            self.sources.setdefault(side, []).append(source)

    def to_dict(self) -> dict[str, Any]:
        """For data.json: of each side how many are clear, how many differ, and which languages these mostly are."""
        out = {}
        for side, n in self.clear.items():
            other = self.other.get(side, Counter())
            asked, spoken = other.most_common(1)[0][0] if other else ("", "")
            out[side] = {
                "of": n,
                "count": other.total(),
                "asked": asked,
                "spoken": spoken,
                "sources": self.sources.get(side, [])[:5],
            }
        return out
