"""Which language a command or a page speaks: the one that was asked for, else the one that the environment names.

Words stand in tables with the same keys in every language; a table that lacks a language is read in English.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Literal, TypeAlias, cast, get_args

Tongue: TypeAlias = Literal["en", "es"]
TONGUES: tuple[Tongue, ...] = get_args(Tongue)


def tongue(asked: str | None = None, environment: Mapping[str, str] | None = None) -> Tongue:
    """The language that is asked for (``es``), else that of LC_ALL, LC_MESSAGES or LANG, whichever is set first, as
    POSIX reads them (``es_AR.UTF-8``); else English.

    Raises ValueError where a language is asked for that there is not.
    """
    if asked is not None:
        if asked not in TONGUES:
            raise ValueError(f"--lang {asked}: there are {' and '.join(TONGUES)}")
        return cast(Tongue, asked)
    said = os.environ if environment is None else environment
    named = next((v for k in ("LC_ALL", "LC_MESSAGES", "LANG") if (v := said.get(k))), "")
    short = named.split("_")[0].split(".")[0]
    return cast(Tongue, short) if short in TONGUES else "en"
