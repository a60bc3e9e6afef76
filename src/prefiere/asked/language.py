"""Which language a command or a page speaks: the one that was asked for, else the one that the environment names.

Words stand in tables, a file for each language beside the code that says them (`report/words/es.yaml`), with the same
keys and the same braces in every language, which a test holds. What is found first and said later is a `Worded`. A
sentence about ``{n}`` things that has two forms stands there twice, as ``one`` and as ``many``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal, TypeAlias, cast, get_args

import yaml

Tongue: TypeAlias = Literal["en", "es"]
TONGUES: tuple[Tongue, ...] = get_args(Tongue)
_chosen: ContextVar[Tongue | None] = ContextVar("chosen", default=None)


def tongue(asked: str | None = None, environment: Mapping[str, str] | None = None) -> Tongue:
    """The language that is asked for (``es``), here or by `speaking`; else that of LC_ALL, LC_MESSAGES or LANG,
    whichever is set first, as POSIX reads them (``es_AR.UTF-8``); else English.

    Raises ValueError where a language is asked for that there is not.
    """
    if asked is not None:
        if asked not in TONGUES:
            raise ValueError(f"--lang {asked}: there are {' and '.join(TONGUES)}")
        return cast(Tongue, asked)
    if environment is None and (chosen := _chosen.get()) is not None:
        return chosen
    said = os.environ if environment is None else environment
    named = next((v for k in ("LC_ALL", "LC_MESSAGES", "LANG") if (v := said.get(k))), "")
    short = named.split("_")[0].split(".")[0]
    return cast(Tongue, short) if short in TONGUES else "en"


@contextmanager
def speaking(asked: str | None) -> Iterator[None]:
    """Within it, all that is said is in this language; None changes nothing. Raises ValueError as `tongue` does."""
    token = _chosen.set(tongue(asked) if asked is not None else _chosen.get())
    try:
        yield
    finally:
        _chosen.reset(token)


@cache
def words(room: str, spoken: Tongue) -> Mapping[str, str]:
    """The table of a package (``prefiere.report.words``) in a language, of one file or several (``es.yaml``,
    ``es.commands.yaml``); keys within a section: ``section.key``."""
    found = [f for f in files(room).iterdir() if f.name.startswith(f"{spoken}.") and f.name.endswith(".yaml")]

    def flat(part: Mapping[str, Any], before: str) -> Iterator[tuple[str, str]]:
        for key, value in part.items():
            yield from flat(value, f"{before}{key}.") if isinstance(value, Mapping) else [(before + key, value)]

    return dict(pair for file in found for pair in flat(yaml.safe_load(file.read_text(encoding="utf-8")), ""))


@cache
def other_words(room: str, table: str, spoken: Tongue) -> Mapping[str, str]:
    """The words of a language by the English ones (``metrics_es.yaml``), for texts that stand in the code; none for
    English."""
    if spoken == "en":
        return {}
    return dict(yaml.safe_load(files(room).joinpath(f"{table}_{spoken}.yaml").read_text(encoding="utf-8")))


def count_of(n: int, one: str, many: str = "") -> str:
    """So many things in an English text: ``0 votes``, ``1 vote``, ``2,000 votes``. many: the plural of ``one`` where it
    does not end in s alone."""
    return f"{n:,} {_form(n, one, many or f'{one}s')}"


def _form(n: object, one: str, many: str) -> str:
    """Which of two forms goes with a number, as it is or as it is written: the same in every language of `TONGUES`."""
    return one if str(n) == "1" else many


def sentence_of(room: str, key: str, spoken: Tongue, values: Mapping[str, object]) -> str:
    """A sentence of a table in a language, its braces filled in; of two forms the one that goes with ``n``."""
    table = words(room, spoken)
    said = table[key] if key in table else _form(values["n"], table[f"{key}.one"], table[f"{key}.many"])
    return said.format(**values)


def in_words(key: str, /, **values: object) -> str:
    """A sentence of the console or of an error (words/), in the language that is spoken, its braces filled in."""
    return sentence_of("prefiere.asked.words", key, tongue(), values)


@dataclass(frozen=True, slots=True)
class Worded:
    """A text in every language, in the order of `TONGUES`."""

    texts: tuple[str, ...]

    def within(self, spoken: Tongue) -> str:
        """The text in one language."""
        return self.texts[TONGUES.index(spoken)]

    def __str__(self) -> str:
        return self.texts[0]


def saying(room: str, key: str, /, **values: str | Worded) -> Worded:
    """A sentence of a table in every language, its braces filled in."""

    return Worded(
        tuple(sentence_of(room, key, spoken, {k: within(v, spoken) for k, v in values.items()}) for spoken in TONGUES)
    )


def within(text: str | Worded, spoken: Tongue) -> str:
    """A text in one language; what stands in one alone is said as it is."""
    return text if isinstance(text, str) else text.within(spoken)
