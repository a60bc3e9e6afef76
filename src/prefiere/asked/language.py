"""Which language a command or a page speaks: the one that was asked for, else the one that the environment names.

Words stand in tables, a file for each language beside the code that says them (`report/words/es.yaml`), with the same
keys and the same braces in every language, which a test holds. What is found first and said later is a `Worded`.
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
    """The table of a package (``prefiere.report.words``) in a language; keys within a section: ``section.key``."""
    read = yaml.safe_load(files(room).joinpath(f"{spoken}.yaml").read_text(encoding="utf-8"))

    def flat(part: Mapping[str, Any], before: str) -> Iterator[tuple[str, str]]:
        for key, value in part.items():
            yield from flat(value, f"{before}{key}.") if isinstance(value, Mapping) else [(before + key, value)]

    return dict(flat(read, ""))


@cache
def other_words(room: str, table: str, spoken: Tongue) -> Mapping[str, str]:
    """The words of a language by the English ones (``metrics_es.yaml``), for texts that stand in the code; none for
    English."""
    if spoken == "en":
        return {}
    return dict(yaml.safe_load(files(room).joinpath(f"{table}_{spoken}.yaml").read_text(encoding="utf-8")))


def in_words(key: str, /, **values: object) -> str:
    """A sentence of the console or of an error (words/), in the language that is spoken, its braces filled in."""
    return words("prefiere.asked.words", tongue())[key].format(**values)


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

    def text(spoken: Tongue) -> str:
        return words(room, spoken)[key].format(**{k: within(v, spoken) for k, v in values.items()})

    return Worded(tuple(text(spoken) for spoken in TONGUES))


def within(text: str | Worded, spoken: Tongue) -> str:
    """A text in one language; what stands in one alone is said as it is."""
    return text if isinstance(text, str) else text.within(spoken)
