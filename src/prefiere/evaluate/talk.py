"""A model that answers a conversation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prefiere.data.schema import Message, Text
from prefiere.evaluate.manner import manner_of
from prefiere.kernels.memory import within_memory
from prefiere.models.check.weights import ids_fit
from prefiere.models.load import load_model, load_tokenizer
from prefiere.models.source import find_model
from prefiere.sample.local import generate
from prefiere.sample.sampling import Sampling, Vocabulary
from prefiere.tokens.encoder import Encoder
from prefiere.tokens.tokenizer import eos_ids_of


class Aloud:
    """An answer that is heard while it is drawn, piece by piece: what is said at any time begins the whole text.

    decode: token ids to text. A letter whose bytes are not all there yet, and space that may be the end, wait.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], eos_ids: Sequence[int], hear: Callable[[str], None]):
        self._decode, self._eos_ids, self._hear = decode, eos_ids, hear
        self._ids: list[int] = []
        self._said, self._ended = "", False

    def __call__(self, token_R: Tensor) -> None:
        """Take up the next token, int64 [1]."""
        self._ids.append(int(token_R[0]))
        self._ended = self._ended or self._ids[-1] in self._eos_ids
        if not self._ended:
            self.say(self._decode(self._ids).lstrip().rstrip("\ufffd").rstrip())

    def say(self, text: str) -> None:
        """Say what of a text was not said yet."""
        if text.startswith(self._said) and text != self._said:
            self._hear(text.removeprefix(self._said))
            self._said = text


class Talker:
    """A model that answers a conversation. Without a chat template it continues each text on its own."""

    @within_memory("loading", "take a smaller model")
    def __init__(
        self,
        model: str | Path,
        sampling: Sampling,
        *,
        trust: bool = False,
        template_kwargs: Mapping[str, Any] | None = None,
    ):
        source = find_model(model, trust=trust)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.tokenizer = load_tokenizer(source)
        self.model = load_model(source, dtype=torch.bfloat16 if device == "cuda" else torch.float32, device=device)
        ids_fit(self.model, self.tokenizer, source.base)
        eos_ids = eos_ids_of(self.model, self.tokenizer)
        self.vocabulary = Vocabulary.of(self.tokenizer, eos_ids)
        self.encoder = Encoder(self.tokenizer, eos_ids=eos_ids, **manner_of(model, template_kwargs))
        self.sampling, self.turns = sampling, list[Message]()

    @property
    def remembers(self) -> bool:
        return bool(self.tokenizer.chat_template)

    @within_memory("answering", "set a smaller --max-new-tokens, or take a smaller model")
    def __call__(self, said: str, hear: Callable[[str], None] = lambda piece: None) -> str:
        """The answer to what was said, in the light of the conversation so far. What has no answer was not said.

        hear: is given the answer piece by piece while it is drawn.
        """
        turns = [*self.turns, Message("user", said)]
        prompt: Text = tuple(turns) if self.remembers else said
        sampling = replace(self.sampling, samples=1, seed=self.sampling.seed + len(turns))
        aloud = Aloud(self.encoder.decode, self.vocabulary.eos_ids, hear)
        asked = self.encoder.encode_prompts([prompt])
        (answer,) = generate(self.model, asked, sampling, self.vocabulary, drawn=aloud)
        text = self.encoder.decode(answer.tokens).strip()
        aloud.say(text)
        self.turns += [turns[-1], Message("assistant", text)]
        return text
