"""What columns are called: the same name in other spelling, two columns that stand side by side, and likeness.

"Prompt", "user prompt" and "user_prompt" are one name, and a Spanish word is its English one ("respuesta A" is
"answer A"). A suggestion is made by likeness only, and quoted for a shell.
"""

from __future__ import annotations

import difflib
import json
import re
import shlex
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+|[^\W\d_a-zA-Z]+")
_JOINTS = re.compile(r"[\s_\-.]+")

_SPANISH = {
    "pregunta": "question", "preguntas": "question", "consulta": "query", "instruccion": "instruction",
    "peticion": "prompt", "entrada": "input", "contexto": "context", "conversacion": "conversation",
    "sistema": "system", "respuesta": "answer", "respuestas": "answers", "salida": "output", "opcion": "option",
    "texto": "text", "modelo": "model", "mejor": "better", "peor": "worse", "preferida": "preferred",
    "preferido": "preferred", "preferencia": "preference", "elegida": "chosen", "elegido": "chosen",
    "rechazada": "rejected", "rechazado": "rejected", "ganadora": "winner", "ganador": "winner", "gana": "wins",
    "veredicto": "verdict", "eleccion": "choice", "voto": "vote", "votante": "voter",
    "anotador": "annotator", "fuerza": "strength", "peso": "weight", "puntuacion": "score",
    "nota": "score", "etiqueta": "label", "fecha": "date", "buena": "good", "bueno": "good", "buenas": "good",
    "mala": "bad", "malo": "bad", "malas": "bad", "malos": "bad", "primera": "first", "primero": "first",
    "segunda": "second", "segundo": "second", "izquierda": "left", "derecha": "right", "empate": "tie",
    "cual": "which", "igual": "equal", "iguales": "equal", "ambas": "both", "ambos": "both", "ninguna": "neither",
    "ninguno": "neither", "mucho": "much", "es": "is", "son": "are", "la": "the", "el": "the",
    "las": "the", "los": "the", "que": "than",
}  # fmt: skip
"""Words in the names of columns and in verdicts, without their accents."""

ASKED = (
    "prompt",
    "instruction",
    "question",
    "query",
    "problem",
    "user_prompt",
    "user_input",
    "input_text",
)
"""Columns under which a prompt stands, the likeliest first."""
SYSTEM = ("system", "system_prompt", "system_message")
"""Columns under which a system message stands."""
SEEN_OR_HEARD = ("images", "image", "videos", "video", "audios", "audio")
"""Columns of what is to be seen or heard."""
ANSWERS = (
    "answer",
    "response",
    "completion",
    "output",
    "solution",
    "target",
    "reference",
    "truth",
    "label",
    "chosen",
    "rejected",
    "answers",
    "responses",
)
"""Words in the names of columns that hold answers, which prompts can be read without."""

# Each side's word, and the one of the other side.
_OPPOSITE = (("a", "b"), ("0", "1"), ("1", "2"), ("left", "right"), ("first", "second"), ("one", "two"))

# Words for a field, by which a column that is called otherwise is recognised.
_LIKE: dict[str, tuple[str, ...]] = {
    "prompt": ("prompt", "question", "query", "instruction", "problem", "ask", "asked", "user", "request", "context",
               "post", "input", "source", "conversation", "task", "title", "text", "history", "q"),
    "chosen": ("chosen", "better", "good", "best", "win", "winner", "winning", "preferred", "positive", "pos",
               "accepted", "correct", "desired"),
    "rejected": ("rejected", "worse", "bad", "worst", "lose", "loser", "losing", "dispreferred", "negative", "neg",
                 "refused", "incorrect", "wrong", "undesired"),
    "completion": ("completion", "answer", "response", "output", "reply", "target", "solution", "a"),
}  # fmt: skip
_LIKE["label"] = ("label", "feedback", "thumbs", "desirable", "liked", "like", "good", "helpful", "verdict", "vote")
_LIKE |= dict.fromkeys(("response", "output", "answer", "rejected_response"), _LIKE["completion"])
_LIKE |= dict.fromkeys(("instruction", "question", "query", "input", "messages", "conversations"), _LIKE["prompt"])
_LIKE |= {"chosen_response": _LIKE["chosen"], "rejected_response": _LIKE["rejected"]}


def words_of(name: str) -> tuple[str, ...]:
    """The words that a name is made of, in English: ``responseA``, ``response_a`` and ``Respuesta A`` are all
    ("response", "a") or ("answer", "a")."""
    return tuple(_SPANISH.get(w.lower(), w.lower()) for w in _WORDS.findall(_plain(name)))


def bare_name(name: str) -> str:
    """A name in English, without regard to case, accents, spaces, underscores, hyphens and dots."""
    return "".join(_SPANISH.get(part, part) for part in _JOINTS.split(_plain(name).casefold()))


def _plain(name: str) -> str:
    """The name without accents."""
    return "".join(c for c in unicodedata.normalize("NFKD", name) if not unicodedata.combining(c))


def renamed(found: Iterable[str], known: Mapping[str, str]) -> dict[str, str]:
    """``{column: field}`` for each column whose name is a field's in other spelling. known: fields by plain name.

    A column that has a field's very name keeps it, and of two that could have it the first does. Of two columns that
    stand side by side (response_0, response_1) both are renamed, or neither.
    """
    columns = list(found)
    taken, made = set(columns), dict[str, str]()
    for column in columns:
        field = known.get(bare_name(column))
        if field is not None and field != column and field not in taken and column not in known.values():
            made[column] = field
            taken.add(field)
    paired = {c for pair in side_by_side(columns) for c in (pair.a, pair.b)}
    whole = {c for pair in side_by_side([*made.values()]) for c in (pair.a, pair.b)}
    return {c: f for c, f in made.items() if c not in paired or f in whole}


@dataclass(frozen=True, slots=True)
class Sides:
    """Two columns whose names differ in a word for the side only. words: of the name without it."""

    a: str
    b: str
    one: str
    two: str
    words: tuple[str, ...]


def side_by_side(columns: Sequence[str]) -> list[Sides]:
    """Each pair of columns that stand side by side; none of three (a, b, c; 1, 2, 3)."""
    known = {words_of(c): c for c in columns}
    found = []
    for words, column in known.items():
        for at, word in enumerate(words):
            for one, two in _OPPOSITE:
                before, after = words[:at], words[at + 1 :]
                other = known.get((*before, two, *after))
                if word != one or other is None:
                    continue
                third = {"b": "c", "1": "2", "2": "3"}.get(two)
                zeroth = (*before, "0", *after) in known and one == "1"
                if not zeroth and not (third and (*before, third, *after) in known):
                    found.append(Sides(column, other, one, two, before + after))
    return found


def likely(field: str, columns: Sequence[str]) -> str | None:
    """The column whose name is most like a field's, by its words, else by its letters; None where none is."""

    def rank(column: str) -> int:
        words = _LIKE.get(field, ())
        return min((words.index(w) for w in words_of(column) if w in words), default=len(words))

    best = min(columns, key=rank, default=None)
    if best is not None and rank(best) < len(_LIKE.get(field, ())):
        return best
    near = difflib.get_close_matches(bare_name(field), [bare_name(c) for c in columns], n=1, cutoff=0.7)
    return next((c for c in columns if near and bare_name(c) == near[0]), None)


def map_to_give(columns: Mapping[str, str | None]) -> str:
    """A column map as one writes it on a command line: ``'columns={prompt: question, chosen: "Good answer"}'``."""

    def quoted(name: str | None) -> str:
        if name is None:
            return "none"
        plain = re.fullmatch(r"[A-Za-z_<][\w<>.-]*", name) and name.lower() not in _YAML
        return name if plain else json.dumps(name, ensure_ascii=False)  # double quotes: a shell's are single

    return shlex.quote("columns={" + ", ".join(f"{k}: {quoted(v)}" for k, v in columns.items()) + "}")


_YAML = {"none", "null", "true", "false", "yes", "no", "on", "off", "y", "n"}
