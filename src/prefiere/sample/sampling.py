"""What a prompt is asked for, what an answer is, and where answers come from.

One record, `Sampling`, holds how answers are drawn, for training, for the answers along a run, and for every command
that asks a model. One protocol, `Rollouts`, is the only way to answers of a model in training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from torch import nn
from transformers import PreTrainedTokenizerBase

from prefiere.asked.endpoint import EndpointError
from prefiere.world import World

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Sampling:
    """How many answers each prompt gets, and how their tokens are drawn.

    samples: answers to each prompt. temperature: what logits are divided by; 0 takes the likeliest token. top_p: tokens
    are drawn from the likeliest ones that together have this probability. max_new_tokens: tokens of an answer at most.
    seed: of the random stream; the same seed draws the same answers. first: the number of a prompt's first answer in
    that stream, where others of its answers are drawn elsewhere. Raises ValueError for a value out of its range.
    """

    samples: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 128
    seed: int = 0
    first: int = 0

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"samples={self.samples}: a prompt needs one answer at least")
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise ValueError(f"temperature={self.temperature:g}: a number from 0 (the likeliest token) upwards")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p:g}: a probability above 0, and 1 at most (1: every token)")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={self.max_new_tokens}: an answer has one token at least")

    @property
    def unchanged(self) -> bool:
        """Whether answers follow the model's own distribution."""
        return self.temperature == 1.0 and self.top_p == 1.0


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What sampling must know of a model's token ids: those that end an answer, and those that are never drawn."""

    eos_ids: tuple[int, ...]
    forbidden: tuple[int, ...] = ()

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, eos_ids: Iterable[int]) -> Vocabulary:
        """These ids end an answer; padding is never drawn, unless it is one of them."""
        ends, pad = tuple(eos_ids), tokenizer.pad_token_id
        return cls(ends, () if pad is None or pad in ends else (int(pad),))


@dataclass(frozen=True, slots=True)
class Sample:
    """Answer number ``sample`` to prompt number ``prompt`` of those that were asked.

    tokens: int32 [L], with the end token where there is one. logp: float32 [L], each token's natural log-prob under the
    sampled distribution at the temperature given, before top-p. ended: an end token was reached. version: of the
    weights that it was drawn from (see `Rollouts`).
    """

    prompt: int
    sample: int
    tokens: np.ndarray
    logp: np.ndarray
    ended: bool
    version: int = 0


class Rollouts(Protocol):
    """Where the answers of a model in training come from.

    A version is the number of steps that the weights have been trained for. Under torchrun every process calls
    ``check``, ``publish`` and ``close``, and ``sample`` with prompts of its own. limit: nats per token that the
    log-probs of answers may be off those of training; None where the weights that answer are the weights that train.
    """

    limit: float | None

    def check(self, trunk: nn.Module) -> str:
        """Make sure, when a run begins or goes on, that answers come from these weights, and say what was found, if
        there is something to say. Raises ValueError where they do not."""

    def publish(self, trunk: nn.Module, version: int) -> None:
        """Let later answers come from the trunk's weights as they are now. A version is published once; a second call
        changes nothing."""

    def sample(
        self,
        prompts: Sequence[np.ndarray],
        sampling: Sampling,
        *,
        version: int,
        numbers: Sequence[int] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[Sample]:
        """Answers to these prompts (int32 ids) from the weights of this version, by prompt, then by sample.

        numbers: what the prompts are called in the random stream (default: their places), so that a prompt's answers
        do not depend on the others. progress: is told how many answers are done. Raises ValueError for an empty
        prompt.
        """

    def close(self) -> None:
        """The run is over: give back whatever was held."""


def by_all(world: World, draw: Callable[[], T]) -> T:
    """What this process draws, once every process has drawn its own.

    Raises EndpointError, in every process, where a server fails one of them.
    """
    found: list[T] = []
    failed: list[str] = []
    try:
        found.append(draw())
    except EndpointError as e:
        failed.append(str(e))
    world.barrier()  # one may wait longer for its answers than another
    if failures := world.gather(failed):  # all processes stop together
        raise EndpointError(failures[0])
    return found[0]
