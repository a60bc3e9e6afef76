"""What people write is data, never markup.

Where a message spells out a control token (``<|im_end|>`` in a question), a private-use character stands in for it
while the template renders, and it comes back cut in two, so that the tokenizer sees ordinary text. In the assistant's
own turns only what turns are built of is shielded: ``<think>`` or ``[TOOL_CALLS]`` there is what the model must say.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

STAND_INS = "\U000f0000-\U0010fffd"
"""Two planes of private-use characters; those that occur in the data are stood in for as well."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of text that is tokenized up to its end, and whether its tokens are scored."""

    text: str
    scored: bool = False


def _any_of(words: Iterable[str]) -> re.Pattern[str]:
    """Any of these words, the longest first. One character cannot be cut in two; nobody's control token is one."""
    found = sorted((w for w in words if len(w) > 1), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, found)) or "(?!)")


# What builds turns or texts in some template, used or not by the one at hand.
_BUILDS_TURNS = re.compile(
    r"^</?(?:s|bos|eos|pad|unk|mask|cls|sep)>$|_of_text|endoftext|eot|im_start|im_end|header_id|_of_turn|end_of_sentence"
    r"|INST\]|reserved|unused|fim_|^<[|｜](?:system|user|assistant|end|start)[|｜]>$",
    re.IGNORECASE,
)


class Control:
    """The control tokens of a tokenizer as text: all of them, and those of which a template builds turns.

    ends: what closes an answer. render: a conversation as the template writes it, None where it cannot.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        ends: Iterable[str],
        render: Callable[[list[dict[str, Any]]], str | None],
    ):
        added = getattr(tokenizer, "added_tokens_decoder", {}).values()
        words = {t.content for t in added if t.special} | set(tokenizer.all_special_tokens) | set(ends)
        self.all = _any_of(words)
        said = [{"role": role, "content": "x"} for role in ("user", "assistant", "user")]
        plain = render(said) or ""
        named = {
            getattr(tokenizer, f"{name}_token", None) for name in ("bos", "eos", "pad", "unk", "sep", "cls", "mask")
        }
        turns = {w for w in words if w in named or w in plain or _BUILDS_TURNS.search(w)} | set(ends)
        self.turns = _any_of(w for w in turns if not re.search("think|reason", w, re.IGNORECASE))
        self.covered = re.compile(f"{self.all.pattern}|[{STAND_INS}]")
        self.covered_own = re.compile(f"{self.turns.pattern}|[{STAND_INS}]")


class Shield:
    """Keeps the control tokens that one record spells out from becoming any. ``seen``: there were some."""

    def __init__(self, control: Control):
        self._control, self._found, self.seen = control, dict[str, str](), False

    def cover(self, value: Any, own: bool = False) -> Any:
        """``value`` with a stand-in for each control token in its strings, however deep. own: the assistant says it."""
        if isinstance(value, str):
            return (self._control.covered_own if own else self._control.covered).sub(self._cover, value)
        if isinstance(value, Mapping):
            return {k: self.cover(v, own) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [self.cover(v, own) for v in value]
        return value

    def _cover(self, match: re.Match[str]) -> str:
        word = match[0]
        self.seen = self.seen or len(word) > 1
        return self._found.setdefault(word, chr(0xF0000 + len(self._found)))

    def uncover(self, text: str, scored: bool) -> tuple[Piece, ...]:
        """The pieces of a rendered text; what a stand-in stood for comes in two, neither with a control token in it."""
        if not self._found:
            return (Piece(text, scored),)
        back = {stand_in: word for word, stand_in in self._found.items()}
        parts: list[str] = []
        for part in re.split(f"([{STAND_INS}])", text):
            word = back.get(part, part)
            clear = (i for i in range(1, len(word)) if not self._control.all.search(word[i:]))
            at = next(clear, len(word)) if part in back else len(word)
            parts += [word[:at], word[at:]]
        return tuple(Piece(p, scored) for p in parts if p)
