"""The help of commands, options and settings in the language that is spoken (words/help_es.yaml)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

from typer import rich_utils

from prefiere.asked.language import TONGUES, Tongue, in_words, other_words

HEADINGS = {
    "ARGUMENTS_PANEL_TITLE": "arguments",
    "OPTIONS_PANEL_TITLE": "options",
    "COMMANDS_PANEL_TITLE": "commands",
    "ERRORS_PANEL_TITLE": "error",
    "DEFAULT_STRING": "default_is",
    "REQUIRED_LONG_STRING": "required",
}
"""Typer's names of its headings, and the keys of their words."""


def asked_for(words: Sequence[str]) -> str | None:
    """The language that the words of a command line ask for, before anything reads them: help is shown before options
    are. None where they ask for none, or for one that there is not, which the command refuses."""
    pairs = pairwise([*words, ""])
    found = [after if word == "--lang" else word.removeprefix("--lang=") for word, after in pairs if "--lang" in word]
    return next((said for said in reversed(found) if said in TONGUES), None)


def help_said(text: str, spoken: Tongue) -> str:
    """A text of help in a language; one that no table has stays in English."""
    return other_words("prefiere.asked.words", "help", spoken).get(text, text)


@contextmanager
def spoken_headings() -> Iterator[None]:
    """Within it, typer's own headings of help and of errors are in the language that is spoken."""
    before = {name: getattr(rich_utils, name) for name in HEADINGS}
    try:
        for name, key in HEADINGS.items():
            setattr(rich_utils, name, in_words(f"help.{key}", at="{}"))
        yield
    finally:
        for name, text in before.items():
            setattr(rich_utils, name, text)


def _with_usage(context: Any) -> Any:
    """A class of contexts of click whose line of usage is in the language that is spoken."""

    class Formatter(context.formatter_class):
        def write_usage(self, prog: str, args: str = "", prefix: str | None = None) -> None:
            super().write_usage(prog, args, prefix or f"{in_words('help.usage')}: ")

    return type("SpokenContext", (context,), {"formatter_class": Formatter})


def speak(command: Any, spoken: Tongue, parent: Any = None) -> None:
    """Put the help of a command of click, of its options and of all that are under it into a language. parent: the
    context of the command that it is under."""
    if spoken == "en":
        return
    command.context_class = _with_usage(command.context_class)
    context = command.context_class(command, parent=parent, **command.context_settings)
    own = command.get_help_option(context)  # --help, made when it is first asked for
    for shown in (command, *command.params, own):
        if getattr(shown, "help", None):
            shown.help = help_said(shown.help, spoken)
    for under in getattr(command, "commands", {}).values():
        speak(under, spoken, context)
