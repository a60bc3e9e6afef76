"""From text to ids and back: one-pass tokenization that keeps to the boundaries of `shield.Piece`.

A prompt must become the ids that generation will see, whatever the answer begins with. So each piece ends where the
text up to there ends when it is tokenized on its own. Where a merge crosses that boundary, what follows is tokenized as
a continuation: decoding the ids still gives the text, without the space that sentencepiece puts at a text's beginning.
"""

from __future__ import annotations

import re
import tempfile
from array import array
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.text import Text as Styled

from prefiere.cache import digest_of
from prefiere.files import hash_of, visible
from prefiere.tokens.groups import PromptGroup
from prefiere.tokens.shield import Piece

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Text is tokenized behind one of these, which tokens seldom span, where it continues another.
ANCHORS = ("\n", ".", "a", "0", "=", "ж", "中")
# A line that begins with a letter is tried behind each of these: its tokens must be its own.
_HEADS = ("", " ", "a", "a ", "1", ".", "?!", "\n", "\n\n", "\r", "\t", "é", "中", "🙂")
_LINES = ("A", "a b", "Assistant: x", "x1", "I'm")


class Tokens:
    """One tokenizer, seen as a map from pieces of text to ids. ``prefix``: what it puts before raw text (BOS)."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._tokenizer = tokenizer
        bare, dressed = self._encode(["a"])[0], array("i", tokenizer("a")["input_ids"])
        at = next((i for i in range(len(dressed)) if dressed[i : i + len(bare)] == bare), 0)
        self.prefix = dressed[:at]
        self._lines = self._lines_are_apart()
        added = getattr(tokenizer, "added_tokens_decoder", {}).values()
        apart = [t.content for t in added if t.special and not (t.normalized or t.lstrip or t.single_word)]
        self._special = re.compile("|".join(map(re.escape, sorted(apart, key=len, reverse=True))) or "(?!)")

    def _encode(self, texts: list[str]) -> list[array[int]]:
        if not texts:
            return []
        if self._tokenizer.is_fast:
            backend = self._tokenizer.backend_tokenizer  # without offsets, and in as many threads as there are cores
            # Only where there is any: setting it waits for another thread's call to end.
            if backend.truncation is not None:
                backend.no_truncation()
            if backend.padding is not None:
                backend.no_padding()
            return [array("i", e.ids) for e in backend.encode_batch_fast(texts, add_special_tokens=False)]
        flags: dict[str, Any] = {"return_attention_mask": False, "return_token_type_ids": False, "verbose": False}
        return [array("i", ids) for ids in self._tokenizer(texts, add_special_tokens=False, **flags)["input_ids"]]

    def known(self, texts: Iterable[str]) -> dict[str, array[int]]:
        """The ids of each of these texts on its own, tokenized in one call."""
        unique = list(dict.fromkeys(texts))
        return dict(zip(unique, self._encode(unique), strict=True))

    def wanted(self, text: str, pieces: Iterable[Piece]) -> Iterable[str]:
        """The texts whose ids `follow` takes to tell what ``pieces`` are behind ``text``."""
        for piece in pieces:
            seam = self._seam(text)
            if seam:
                yield text[seam:]
            yield text[seam:] + piece.text
            text += piece.text

    def follow(
        self, ids: array[int], text: str, pieces: Iterable[Piece], known: dict[str, array[int]]
    ) -> tuple[array[int], bytearray]:
        """Ids and scored flags (a byte each) of ``pieces``, which follow ``text``, whose ids are ``ids``.

        known: from `known`, holding what `wanted` names.
        """
        found, scored = array("i"), bytearray()
        for piece in pieces:
            so_far = ids + found if found else ids
            seam = self._seam(text)
            end, whole = known[text[seam:]] if seam else so_far, known[text[seam:] + piece.text]
            if seam and (so_far[len(so_far) - len(end) :] != end or whole[: len(end)] != end):
                end, whole = so_far, self._encode([text + piece.text])[0]
            found += whole[len(end) :] if whole[: len(end)] == end else self._continuation(piece.text)
            scored += bytes([piece.scored]) * (len(found) - len(scored))
            text += piece.text
        return found, scored

    def _continuation(self, text: str) -> array[int]:
        for anchor in ANCHORS:
            head, whole = self._encode([anchor, anchor + text])
            if head and whole[: len(head)] == head:
                return whole[len(head) :]
        raise ValueError(
            f"the tokenizer cannot continue a text with {text[:40]!r}: it merges it with whatever precedes"
        )

    # ---- seams: a long prompt is tokenized once, and only its end again with each of its answers

    def _seam(self, text: str) -> int:
        """Where the last stretch of ``text`` begins whose tokens are the same whatever stands before it: a special
        token, or a line that begins with a letter; 0 where there is none."""
        seam, at = 0, len(text)
        while self._lines and not seam and (at := text.rfind("\n", 0, at)) >= 0:
            if text[at + 1 : at + 2].isascii() and text[at + 1 : at + 2].isalpha():
                seam = at + 1
        # No token spans the beginning of such a line, so that special tokens can be looked for from there.
        for special in self._special.finditer(text, seam):
            seam = special.start()
        return seam

    def _lines_are_apart(self) -> bool:
        """Whether a line that begins with a letter is tokenized the same whatever stands before it.

        A sequence of merges, or a best path, splits where no token of the vocabulary spans; and the expressions that
        cut text into words beforehand read from the left and look ahead by one character, which the examples show.
        """
        if re.search("[\n\u010a][A-Za-z]", "\0".join(self._tokenizer.get_vocab())):  # U+010A: byte-level newline
            return False
        joined, spaced = self._encode(["a\nb", "a b"])
        behind = self._encode([f"{head}\n{line}" for head in _HEADS for line in _LINES])
        alone = self._encode(list(_LINES)) * len(_HEADS)
        return joined != spaced and all(b[len(b) - len(a) :] == a for b, a in zip(behind, alone, strict=True))


def contents(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of everything that ids depend on: vocabulary, merges, special tokens, chat template."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        files = {str(f.relative_to(folder)): hash_of(f) for f in Path(folder).rglob("*") if f.is_file()}
    return digest_of({"class": type(tokenizer).__name__, "files": files})


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


def ends_as_taught(model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Before a model is written: its generation configuration names the token that it was taught to end an answer with,
    the tokenizer's EOS, beside its own. With another one alone, `generate` would not stop elsewhere."""
    generation, taught = getattr(model, "generation_config", None), tokenizer.eos_token_id
    if generation is None or taught is None:
        return
    own = generation.eos_token_id
    ids = [] if own is None else list(own) if isinstance(own, list | tuple) else [own]
    if taught not in ids:
        generation.eos_token_id = [taught, *ids]


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
