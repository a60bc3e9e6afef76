"""In which language a text is, as far as its letters and the commonest words of it say: enough to see that an answer is
not in that of its question."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from unicodedata import name, normalize

from prefiere.data.quality.marks import tokens_of
from prefiere.data.schema import Text

LOOKED_AT, LEAST, TIMES, SHARE = 120, 2, 2, 0.2
"""Words of a text that are looked at; how many of them must be a language's own commonest ones: so many, so many times
those of any other language, and this share of all. A language that is not here shares some
words with one that is, and fewer than that."""
_SHOWN = 20
"""Sources that are listed."""
_COMMONEST = {
    language: frozenset(words.split())
    for language, words in {
        "English": "the are i of to that it you this what how does can your have was my which would should they why "
        "who there their he she we will a an me so but about could into than then these those has had been his her "
        "its",
        "Spanish": "el la los las un una de del que es en y por con para se su al lo como más qué cómo cuál son está "
        "no mi te tu hay pero sus este esta puede si muy también",
        "French": "le la les un une des de du que est en et pour avec pas ne je vous tu il elle dans sur ce cette "
        "qui quel quelle sont plus comment pourquoi au aux mon votre peut être ou si",
        "Italian": "il lo la gli le un una di che è con si del della dei delle sono cosa più nel nella mi ti qual "
        "perché questo questa anche ma alla",
        "Portuguese": "os um uma de da dos das que é em para com não se como mais por seu sua você são na qual meu "
        "este isso pode ou muito também",
        "German": "der die das und ist nicht ein eine einen einer dem den des zu mit auf für von sich wie was ich du "
        "sie es wir kann im auch oder warum sind mein wenn",
        "Dutch": "de het een van dat niet op te zijn met voor die hoe wat ik je kan ook maar om er aan waarom mijn "
        "en wordt naar",
        "Swedish": "och att det är en ett som på för inte jag du av med hur vad den till kan om varför eller detta",
        "Polish": "w na nie się jest z że jak czy dla po od są tak może przez który jego tym oraz gdzie kiedy "
        "dlaczego co",
        "Turkish": "ve bir bu için ne nasıl ile de da mi çok olarak olan var daha gibi nedir bana",
        "Indonesian": "yang dan di itu untuk dengan ini tidak apa bagaimana dari adalah saya anda pada bisa atau ke "
        "akan",
    }.items()
}
"""The commonest words of each, without those that programs are written in (for, in, is, and, from, where)."""
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
_AKIN = (
    {"Spanish", "French", "Italian", "Portuguese"},
    {"German", "Dutch", "Swedish"},
    {"Japanese", "Chinese"},
)
"""Languages of which one may be taken for another, and for neighbours that are not here (Catalan, Danish): texts in two
of these are not said to differ."""
_NAMED = (
    *("translat", "traduc", "traduz", "tradui", "tradurr", "übersetz", "vertaal", "vertal", "översätt", "tłumacz"),
    *("przetłum", "çevir", "terjemah", "engl", "ingl", "angl", "angiel", "inggris", "engels", "ingiliz", "spani"),
    *("españ", "espag", "espanh", "spagn", "spans", "spaan", "hiszp", "ispanyol", "castell", "french", "frenk"),
    *("franz", "franc", "frans", "français", "german", "deutsch", "duits", "alem", "allem", "almanca", "tedesc"),
    *("niemieck", "tysk", "ital", "włosk", "portug", "dutch", "nederl", "holand", "swed", "svensk", "szwed"),
    *("polish", "polsk", "polaco", "polnisch", "pools", "turk", "türk", "indones", "russ", "ruso", "rusa", "rosyj"),
    *("arab", "chin", "mandarin", "kines", "japan", "japon", "korea", "corean", "coréen", "hindi", "bengal"),
    *("tamil", "telugu", "thai", "urdu", "persian", "farsi", "ukrain", "danish", "dansk", "norweg", "norsk"),
    *("vietnam", "finn", "suomi", "catal", "galleg", "galician", "roman", "czech", "hungar", "greek", "griego"),
    *("hebr", "latin", "language", "lengua", "idioma", "langue", "sprache", "lingua", "język", "bahasa", "taal"),
    *("dil",),
)
_NAMED_ELSEWHERE = (
    *(
        "翻译",
        "翻譯",
        "译成",
        "译为",
        "英文",
        "英语",
        "英語",
        "中文",
        "汉语",
        "日语",
        "日文",
        "法语",
        "西班牙语",
        "德语",
        "俄语",
        "韩语",
        "日本語",
    ),
    *(
        "翻訳",
        "訳し",
        "번역",
        "영어",
        "한국어",
        "일본어",
        "перев",
        "англий",
        "русск",
        "испан",
        "немец",
        "франц",
        "китай",
    ),
    *("украин", "ترجم", "الإنجليزي", "العربي", "الفرنسي", "الإسباني", "अनुवाद", "अंग्रेज", "हिंदी", "हिन्दी"),
    *("μεταφρ", "μετάφρασ", "αγγλικ", "ελληνικ", "תרגם", "אנגלית", "עברית", "แปล", "อังกฤษ", "ไทย"),
)
"""How words begin that name a language, or a translation, and what says so in other scripts: then another language may
be what is asked for."""
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`", re.DOTALL)
_ACCENTED = frozenset({"Spanish", "French", "Portuguese", "German", "Swedish", "Polish", "Turkish"})
_ACCENT = re.compile("[À-ÖØ-öø-ſ]")
_WORDS = 5000
"""Languages of which a tenth or more of all different words have letters with accents, such letters, and of how many
words that is looked at: a sentence that is always the same may well have none."""


def language_of(text: str) -> str | None:
    """Its language, or its letters' where they are not Latin; None where that is not clear."""
    begins = text[: 8 * LOOKED_AT]
    if 25 * sum(map(begins.count, "{}();=<>")) > len(begins):  # as programs are written
        return None
    if "`" in begins:
        begins = _CODE.sub(" ", begins)
    if not begins.isascii() and (script := _script(begins)) != "LATIN":
        return _SCRIPTS.get(script)
    words = [w for w in tokens_of(begins) if w.isalpha()][:LOOKED_AT]
    found = Counter(language for w in words for language in _LANGUAGES.get(w, ()))
    if not found:
        return None
    (best, hits), (_, others) = (*found.most_common(2), ("", 0))[:2]
    return best if hits >= max(LEAST, TIMES * others, SHARE * len(words)) else None


def _script(text: str) -> str:
    """The letters that more than half of a text is written in, as Unicode names them; "" where none are."""
    scripts = Counter(_letters(c) for c in text[: 2 * LOOKED_AT] if c.isalpha())
    if not scripts:
        return "LATIN"
    script, n = scripts.most_common(1)[0]
    if script == "CJK" and 10 * (scripts["HIRAGANA"] + scripts["KATAKANA"]) > n:
        return "HIRAGANA"
    return script if 2 * n > scripts.total() else ""


@cache
def _letters(c: str) -> str:
    return "LATIN" if c < "ɐ" else name(c, "?").split()[0].split("-")[0]


def differ(one: str, other: str) -> bool:
    """Whether two languages are different ones beyond doubt."""
    return one != other and not any({one, other} <= akin for akin in _AKIN)


def asked_in(prompt: Text) -> str | None:
    """The language that an answer to a prompt is to be in, which is that of what was asked last, or before it; None
    where that is not clear, or where a language or a translation is spoken of."""
    turns = [prompt] if isinstance(prompt, str) else [m.content for m in prompt if m.role in ("user", "system")]
    told = [tokens_of(t[: 4 * LOOKED_AT]) + tokens_of(t[-4 * LOOKED_AT :]) for t in turns[:2] + turns[-1:]]
    if any(w.startswith(_NAMED) for words in told for w in words):
        return None
    asked = turns if isinstance(prompt, str) else [m.content for m in prompt if m.role == "user"]
    if any(not t.isascii() and any(w in t for w in _NAMED_ELSEWHERE) for t in turns):
        return None
    for turn in reversed(asked):
        first, last = (language_of(part) for part in (turn[: 2 * LOOKED_AT], turn[-2 * LOOKED_AT :]))
        if first is not None and last is not None and differ(first, last):
            return None  # it quotes a text in another one
        if (found := language_of(turn) or last) is not None:
            return found
    return None


@dataclass
class Languages:
    """How many answers are in another language than their prompt. ``add`` each answer: sides are those of `faults`.

    n: answers of each side; clear: those of which both languages are; written: the words of each side in a language
    that has accents.
    """

    n: Counter[str] = field(default_factory=Counter)
    clear: Counter[str] = field(default_factory=Counter)
    other: dict[str, Counter[tuple[str, str]]] = field(default_factory=dict)
    sources: dict[str, list[str]] = field(default_factory=dict)
    written: dict[str, dict[str, set[str]]] = field(default_factory=dict)

    def add(self, asked: str | None, answer: str, side: str, source: str) -> None:
        """An answer to a prompt in the language ``asked``."""
        self.n[side] += 1
        spoken = language_of(answer) if asked is not None else None
        if asked is None or spoken is None:
            return
        self.clear[side] += 1
        if spoken in _ACCENTED:
            words = self.written.setdefault(side, {}).setdefault(spoken, set())
            if len(words) < _WORDS:
                begins = normalize("NFC", _CODE.sub(" ", answer[: 8 * LOOKED_AT]))
                words.update(w for w in tokens_of(begins) if w.isalpha())
        if differ(asked, spoken):
            self.other.setdefault(side, Counter())[asked, spoken] += 1
            named = self.sources.setdefault(side, [])
            if len(named) < _SHOWN:
                named.append(source)

    def to_dict(self) -> dict[str, Any]:
        """For data.json: of each side how many there are, are clear, and differ, and which languages these mostly
        are; and of the language with most words that has accents, how many have some."""
        out = {}
        for side, n in self.n.items():
            other = self.other.get(side, Counter())
            asked, spoken = other.most_common(1)[0][0] if other else ("", "")
            counts = {"of": n, "clear": self.clear[side], "count": other.total()}
            out[side] = {**counts, "asked": asked, "spoken": spoken, "sources": self.sources.get(side, [])}
            if written := self.written.get(side):
                language, words = max(written.items(), key=lambda item: len(item[1]))
                accents = sum(_ACCENT.search(w) is not None for w in words)
                out[side]["written"] = {"language": language, "words": len(words), "accents": accents}
        return out
