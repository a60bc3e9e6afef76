"""The help of commands, options and settings in the language that is spoken (words/help_es.yaml)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from prefiere.asked.language import TONGUES, Tongue, other_words


def asked_for(words: Sequence[str]) -> str | None:
    """The language that the words of a command line ask for, before anything reads them: help is shown before options
    are. None where they ask for none, or for one that there is not, which the command refuses."""
    pairs = pairwise([*words, ""])
    found = [after if word == "--lang" else word.removeprefix("--lang=") for word, after in pairs if "--lang" in word]
    return next((said for said in reversed(found) if said in TONGUES), None)


def help_said(text: str, spoken: Tongue) -> str:
    """A text of help in a language; one that no table has stays in English."""
    return other_words("prefiere.asked.words", "help", spoken).get(text, text)


def speak(command: Any, spoken: Tongue) -> None:
    """Put the help of a command of click, of its options and of all that are under it into a language."""
    if spoken == "en":
        return
    for shown in (command, *command.params):
        if getattr(shown, "help", None):
            shown.help = help_said(shown.help, spoken)
    for under in getattr(command, "commands", {}).values():
        speak(under, spoken)
