"""How much of an example is kept, and the account of what became of all of them.

Kept apart from the encoding itself so that the policy and the words for it can be read in one place.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from prefiere.tokens.groups import PromptGroup

WHAT = {
    "truncated_prompts": "prompts cut from the left",
    "truncated_completions": "examples with a completion cut from the right, which then has no end token",
    "empty_prompts": "dropped: the prompt has no tokens",
    "empty_completions": "dropped: an answer says nothing",
    "identical": "dropped: chosen and rejected are the same tokens, after truncation",
    "unscored": "dropped: truncation left no token to score",
    "no_room": "dropped: max_length has no room for an answer beside the end of its prompt",
    "refused": "dropped: the chat template refuses the conversation",
    "left_out": "dropped: the chat template leaves out the answer, or what it answers",
    "rewritten": "dropped: the chat template writes the prompt differently once the answer follows",
    "already_rendered": "examples that the chat template had written before: taken as they are",
    "reasoning_left_out": "examples whose reasoning the chat template does not write",
    "tools_left_out": "examples whose tools the chat template does not write",
    "calls_left_out": "examples with earlier calls of tools that the chat template does not write",
    "results_left_out": "examples with results of tools that the chat template does not write",
    "system_left_out": "examples whose system message the chat template does not write",
    "developer_left_out": "examples whose developer message the chat template does not write",
    "split_by_turn": "conversations learnt turn by turn, as the chat template rewrites earlier turns or ends none",
    "control_tokens": "examples that spell out control tokens, read as ordinary text (raw text: as control tokens)",
    "end_added": "examples to which an end token was added, as the chat template writes none of the model's",
}
_DROPS = ("empty_prompts", "empty_completions", "identical", "unscored", "no_room", "refused", "left_out", "rewritten")
_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Truncation:
    """What is kept of an example that is too long; None is no limit. Lengths are in tokens, special ones included.

    First each completion keeps its first ``max_completion_length`` tokens, and no more than ``max_length`` less what
    the prompt must keep (`least`): an answer to nothing teaches nothing. Then the prompt keeps its last
    ``max_prompt_length`` tokens, and no more than leave room for the longest completion in ``max_length``; its BOS
    stays in front and counts. All completions see the same prompt. Raises ValueError on limits nothing fits in.
    """

    max_length: int | None = None
    max_prompt_length: int | None = None
    max_completion_length: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("max_length", 2), ("max_prompt_length", 1), ("max_completion_length", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}: it must be at least {least}")

    def least(self, prompt: int, kept: int, header: int) -> int:
        """Tokens of a prompt of ``prompt`` tokens that stay beside any answer: its first ``kept``, the ``header`` that
        asks for an answer, and before that the end of what is asked: an eighth of ``max_length``, one at least."""
        return min(prompt, kept + header + max(1, (self.max_length or 0) // 8))

    def completion_room(self, least: int) -> int | None:
        """Tokens a completion may have beside a prompt that keeps ``least`` tokens; below 1 where none has room."""
        rooms = [self.max_completion_length, self.max_length and self.max_length - least]
        return min((r for r in rooms if r is not None), default=None)

    def prompt(self, ids: array[int], kept: int, longest: int) -> array[int]:
        """The prompt beside a longest completion of ``longest`` tokens; its first ``kept`` tokens stay."""
        rooms = [self.max_prompt_length, self.max_length and max(1, self.max_length - longest)]
        room = min((r for r in rooms if r is not None), default=len(ids))
        if len(ids) <= room:
            return ids
        front = ids[: min(kept, room)]
        return front + ids[len(ids) - (room - len(front)) :]


@dataclass
class EncodeReport:
    """What became of the examples: counts, the first sources of each, lengths. ``WHAT`` explains the names."""

    examples: int = 0
    tokens: int = 0
    notes: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(WHAT, 0))
    sources: dict[str, list[str]] = field(default_factory=lambda: {name: [] for name in WHAT})
    _prompts: array[int] = field(default_factory=lambda: array("q"), repr=False)
    _completions: array[int] = field(default_factory=lambda: array("q"), repr=False)

    def count(self, what: str, source: str) -> None:
        """Count one example under a name of ``WHAT``."""
        self.counts[what] += 1
        if len(self.sources[what]) < _SHOWN:
            self.sources[what].append(source)

    def add(self, group: PromptGroup) -> None:
        """Account for a group that made it."""
        self.tokens += group.length
        self._prompts.append(len(group.prompt))
        self._completions.extend(len(c) for c in group.completions)

    @property
    def groups(self) -> int:
        """Groups that made it."""
        return len(self._prompts)

    @property
    def dropped(self) -> int:
        """Examples (or turns of a conversation learnt turn by turn) that were dropped."""
        return sum(self.counts[name] for name in _DROPS)

    def lines(self) -> list[str]:
        """The account in plain language, one line for each thing that happened."""
        head = f"{self.examples:,} examples, {self.groups:,} kept, {self.tokens:,} tokens"
        told = [
            f"{n:,} {WHAT[what]} (first: {', '.join(self.sources[what][:3])})" for what, n in self.counts.items() if n
        ]
        return [head, *told, *self.notes]

    def to_dict(self) -> dict[str, Any]:
        """For data.json. Quantiles of lengths are in tokens at 0, 50, 90, 99 and 100 percent."""

        def quantiles(lengths: array[int]) -> list[int]:
            points = [0, 0.5, 0.9, 0.99, 1]
            return np.quantile(np.asarray(lengths), points, method="higher").tolist() if lengths else []

        return {
            "examples": self.examples,
            "groups": self.groups,
            "dropped": self.dropped,
            "tokens": self.tokens,
            "prompt_lengths": quantiles(self._prompts),
            "completion_lengths": quantiles(self._completions),
            **{what: {"count": n, "sources": self.sources[what]} for what, n in self.counts.items()},
            "notes": self.notes,
        }
