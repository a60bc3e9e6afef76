"""What the demo's model learns from: nouns, questions, and two ways of answering, in Spanish and English.

Every noun has one encyclopedic answer (its class, then what sets it apart) and one casual remark per language, written
by hand in ``assets/nouns.csv``. The demonstrations teach both styles equally; the pairs prefer one of them, and leave
out some nouns and some questions altogether, so that what the preference teaches is measured where it was never shown.
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from prefiere.data.schema import Demonstration, Message, PreferencePair

Language: TypeAlias = Literal["es", "en"]
Style: TypeAlias = Literal["encyclopedic", "casual"]
LANGUAGES: tuple[Language, ...] = get_args(Language)
STYLES: tuple[Style, ...] = get_args(Style)

QUESTIONS: dict[Language, tuple[str, ...]] = {
    "es": ("¿Qué es {a}?", "Explícame qué es {a}.", "¿Me puedes decir qué es {a}?", "Háblame {of_the}."),
    "en": ("What is {a}?", "Explain what {a} is.", "Can you tell me what {a} is?", "Tell me about {plural}."),
}
HELD_OUT_QUESTIONS: dict[Language, tuple[str, ...]] = {
    "es": ("Dime algo sobre {the}.", "No conozco la palabra, ¿cómo definirías {a}?"),
    "en": ("What do you know about {plural}?", "I don't know the word, how would you define {a}?"),
}


@dataclass(frozen=True, slots=True, eq=False)
class Noun:
    """One thing to ask about.

    ``es`` carries the definite article ("el águila"), ``en`` the indefinite one or, for a mass noun, none ("bread");
    ``genus`` is the class that the fact puts it in; ``held_out`` keeps the noun out of every preference pair.
    """

    es: str
    en: str
    en_plural: str
    genus: dict[Language, str]
    answers: dict[Language, dict[Style, str]]
    held_out: bool

    def names(self, language: Language) -> tuple[str, str]:
        """The bare noun in the singular and the plural: ("león", "leones"), ("bread", "bread")."""
        if language == "en":
            return self.en.removeprefix("a ").removeprefix("an "), self.en_plural
        bare = self.es.split(" ", 1)[1]
        return bare, _plural_es(bare)

    def ask(self, language: Language, question: str) -> str:
        """The question about this noun, with the articles that its place asks for."""
        if language == "en":
            return question.format(a=self.en, plural=self.en_plural)
        article, bare = self.es.split(" ", 1)
        is_mass = self.en == self.names("en")[0]  # "¿Qué es el pan?", not "un pan"
        indefinite = self.es if is_mass else f"{'un' if article == 'el' else 'una'} {bare}"
        of_the = f"del {bare}" if article == "el" else f"de {self.es}"
        return question.format(a=indefinite, the=self.es, of_the=of_the)


def _plural_es(word: str) -> str:
    if word[-1] in "aeiouáéó":
        return word + "s"
    if word[-1] == "z":
        return word[:-1] + "ces"
    if word[-1] == "s":  # paraguas, cactus
        return word
    return word[:-2] + word[-2].translate(str.maketrans("áéíóú", "aeiou")) + word[-1] + "es"


@cache
def nouns() -> tuple[Noun, ...]:
    """Every noun of ``assets/nouns.csv``, in its order."""
    text = files("prefiere.demo").joinpath("assets/nouns.csv").read_text(encoding="utf-8")
    return tuple(
        Noun(
            es=row["es"],
            en=row["en"],
            en_plural=row["en_plural"],
            genus={language: row[f"genus_{language}"] for language in LANGUAGES},
            answers={
                language: {"encyclopedic": row[f"fact_{language}"], "casual": row[f"remark_{language}"]}
                for language in LANGUAGES
            },
            held_out=row["held_out"] == "yes",
        )
        for row in csv.DictReader(text.splitlines())
    )


def _message(role: str, text: str) -> tuple[Message, ...]:
    return (Message(role, text),)


def demonstrations() -> list[Demonstration]:
    """Every noun in every phrasing and language, answered once in each style: what the base model is trained on."""
    return [
        Demonstration(
            prompt=_message("user", noun.ask(language, question)),
            completion=_message("assistant", noun.answers[language][style]),
            source=f"demo:{noun.en}",
        )
        for noun in nouns()
        for language in LANGUAGES
        for question in QUESTIONS[language] + HELD_OUT_QUESTIONS[language]
        for style in STYLES
    ]


def preferences(prefer: Style = "encyclopedic") -> list[PreferencePair]:
    """Pairs that prefer one style over the other, without the held-out nouns and the held-out questions.

    Raises ValueError for a style that is not one of `STYLES`.
    """
    if prefer not in STYLES:
        raise ValueError(f"prefer={prefer!r}: the demo's answers are {' or '.join(STYLES)}")
    over: Style = "casual" if prefer == "encyclopedic" else "encyclopedic"
    return [
        PreferencePair(
            prompt=_message("user", noun.ask(language, question)),
            chosen=_message("assistant", noun.answers[language][prefer]),
            rejected=_message("assistant", noun.answers[language][over]),
            source=f"demo:{noun.en}",
        )
        for noun in nouns()
        if not noun.held_out
        for language in LANGUAGES
        for question in QUESTIONS[language]
    ]


def held_out_prompts(level: Literal["both", "either"] = "both") -> list[tuple[Message, ...]]:
    """Questions that no pair contained.

    ``both``: held-out nouns in held-out phrasings. ``either``: every question whose noun or phrasing is held out.
    """
    return [
        _message("user", noun.ask(language, question))
        for noun in nouns()
        for language in LANGUAGES
        for question in QUESTIONS[language] + HELD_OUT_QUESTIONS[language]
        if (noun.held_out and question in HELD_OUT_QUESTIONS[language])
        or (level == "either" and (noun.held_out or question in HELD_OUT_QUESTIONS[language]))
    ]


def write_corpus(folder: Path, prefer: Style = "encyclopedic") -> dict[str, Path]:
    """Write ``demonstrations.jsonl``, ``preferences.jsonl`` and ``prompts.jsonl`` (held out) in the conversational
    layout that every command reads; returns their paths by name."""
    rows: dict[str, list[dict[str, Any]]] = {
        "demonstrations": [{"prompt": d.prompt, "completion": d.completion} for d in demonstrations()],
        "preferences": [{"prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected} for p in preferences(prefer)],
        "prompts": [{"prompt": prompt} for prompt in held_out_prompts()],
    }
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / f"{name}.jsonl" for name in rows}
    for name, path in paths.items():
        lines = (json.dumps(row, ensure_ascii=False, default=Message.as_dict) for row in rows[name])
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return paths
