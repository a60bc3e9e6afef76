"""From text to ids and back: one-pass tokenization that keeps to the boundaries of `render.Piece`.

A prompt must become the ids that generation will see, whatever the answer begins with. So each piece ends where the
text up to there ends when it is tokenized on its own. Where a merge crosses that boundary, what follows is tokenized as
a continuation: decoding the ids still gives the text, without the space that sentencepiece puts at a text's beginning.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.text import Text as Styled

from prefiere.data.groups import PromptGroup
from prefiere.data.render import Piece

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Text is tokenized behind one of these, which tokens seldom span, where it continues another.
ANCHORS = ("\n", ".", "a", "0", "=", "ж", "中")


class Tokens:
    """One tokenizer, seen as a map from pieces of text to ids. ``prefix``: what it puts before raw text (BOS)."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._tokenizer = tokenizer
        bare, dressed = self._encode(["a"])[0], list(tokenizer("a")["input_ids"])
        at = next((i for i in range(len(dressed)) if dressed[i : i + len(bare)] == bare), 0)
        self.prefix: list[int] = dressed[:at]

    def _encode(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        flags: dict[str, Any] = {"return_attention_mask": False, "return_token_type_ids": False, "verbose": False}
        return list(self._tokenizer(texts, add_special_tokens=False, **flags)["input_ids"])

    def known(self, texts: Iterable[str]) -> dict[str, list[int]]:
        """The ids of each of these texts on its own, tokenized in one call."""
        unique = list(dict.fromkeys(texts))
        return dict(zip(unique, self._encode(unique), strict=True))

    def follow(
        self, ids: Sequence[int], text: str, pieces: Iterable[Piece], known: dict[str, list[int]]
    ) -> tuple[list[int], list[bool]]:
        """Ids and scored flags of ``pieces``, which follow ``text``, whose ids are ``ids``.

        known: from `known`, holding ``text`` with 1, 2, ... of the pieces behind it.
        """
        so_far, scored = list(ids), list[bool]()
        for piece in pieces:
            text += piece.text
            whole, n = known[text], len(so_far)
            so_far += whole[n:] if whole[:n] == so_far else self._continuation(piece.text)
            scored += [piece.scored] * (len(so_far) - n)
        return so_far[len(ids) :], scored

    def _continuation(self, text: str) -> list[int]:
        for anchor in ANCHORS:
            head, whole = self._encode([anchor, anchor + text])
            if head and whole[: len(head)] == head:
                return whole[len(head) :]
        raise ValueError(
            f"the tokenizer cannot continue a text with {text[:40]!r}: it merges it with whatever precedes"
        )


def cumulative(text: str, pieces: Iterable[Piece]) -> Iterable[str]:
    """``text`` with 1, 2, ... of the pieces behind it."""
    for piece in pieces:
        text += piece.text
        yield text


def eos_ids_of(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids that end an answer: the tokenizer's EOS first, then those of the generation configuration.

    model: a model, its configuration or generation configuration, or None. Raises ValueError where there are none.
    """
    found = [tokenizer.eos_token_id]
    for holder in (getattr(model, "generation_config", None), model, getattr(model, "config", None)):
        ids = getattr(holder, "eos_token_id", None)
        found += list(ids) if isinstance(ids, list | tuple) else [ids]
    ids = list(dict.fromkeys(int(i) for i in found if i is not None))
    if not ids:
        raise ValueError(
            "nothing says which token ends an answer: set eos_token in the tokenizer's configuration, "
            "or eos_token_id in generation_config.json"
        )
    return ids


_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """Untrusted text for a terminal: control and direction characters are spelt out (``\\x1b``), the rest is kept."""
    return _UNSAFE.sub(lambda m: m[0].encode("unicode_escape").decode(), text)


def describe(group: PromptGroup, tokenizer: PreTrainedTokenizerBase) -> Styled:
    """A group as a person can check it: prompt dim, scored tokens green, the others plain, special tokens reversed."""
    out = Styled()
    names = ("chosen", "rejected") if len(group.completions) == 2 else ("completion",) * len(group.completions)
    out.append(visible(group.source) + "\n" if group.source else "", "bold")
    prompt = group.prompt.tolist()
    _append(out, f"prompt ({len(prompt)} tokens)", "dim", _runs(tokenizer, [], prompt, [False] * len(prompt)))
    for name, ids, mask in zip(names, group.completions, group.masks, strict=True):
        title = f"{name} ({len(ids)} tokens, {int(mask.sum())} scored)"
        _append(out, title, "", _runs(tokenizer, prompt, ids.tolist(), mask.tolist()))
    return out


def _append(out: Styled, title: str, unscored: str, runs: Iterable[tuple[str, bool, bool]]) -> None:
    out.append(title + "\n", "bold")
    for text, scored, special in runs:
        out.append(visible(text), " ".join(["green" if scored else unscored, "reverse" * special]).strip())
    out.append("\n")


def _runs(
    tokenizer: PreTrainedTokenizerBase, before: list[int], ids: list[int], mask: list[bool]
) -> Iterable[tuple[str, bool, bool]]:
    """Stretches of one kind as (text, scored, special). Decoded from the start: a token alone may lose its space."""
    special = set(tokenizer.all_special_ids)
    kinds = [(m, i in special) for i, m in zip(ids, mask, strict=True)]
    cuts = [0, *(j for j in range(1, len(ids)) if kinds[j] != kinds[j - 1] or kinds[j][1]), len(ids)]
    shown = len(decode(tokenizer, before))
    for start, end in pairwise(cuts):
        text = decode(tokenizer, [*before, *ids[:end]])
        yield text[shown:], *kinds[start]
        shown = len(text)


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int] | np.ndarray, skip_special: bool = False) -> str:
    """The text of these ids, untouched by any clean-up of spaces."""
    plain = [int(i) for i in ids]
    return str(tokenizer.decode(plain, skip_special_tokens=skip_special, clean_up_tokenization_spaces=False))
