"""How much of an example is kept, and the account of what became of all of them, apart from the encoding itself."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from prefiere.tokens.groups import PromptGroup

WHAT = (
    "truncated_prompts",
    "truncated_completions",
    "empty_prompts",
    "empty_completions",
    "identical",
    "unscored",
    "no_room",
    "refused",
    "left_out",
    "rewritten",
    "already_rendered",
    "reasoning_left_out",
    "tools_left_out",
    "calls_left_out",
    "results_left_out",
    "system_left_out",
    "developer_left_out",
    "unasked",
    "template_unused",
    "split_by_turn",
    "control_tokens",
    "end_added",
)
"""What can happen to an example; what each means stands in asked/words (``account.of``)."""
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
    """What became of the examples: counts by ``WHAT``, the first sources of each, lengths."""

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
