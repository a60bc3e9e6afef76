"""Prompt and answer as an encoder's tokenizer pairs two texts: ``[CLS] prompt [SEP] answer [SEP]``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from prefiere.data.schema import Demonstration, PreferencePair, Record, Text
from prefiere.tokens.groups import PromptGroup
from prefiere.tokens.template import messages
from prefiere.tokens.tokenizer import contents
from prefiere.tokens.truncation import EncodeReport, Truncation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class PairEncoder:
    """Turns records into token ids for a model that classifies pairs of texts.

    A question is its text and an answer is its text, without roles; a conversation of several turns is written as
    ``Human: ...``, ``Assistant: ...``. The special tokens between and after them are the tokenizer's own. An example
    that is too long loses the beginning of its prompt and the end of its answer, never a special token. on_bad: as for
    `encoder.Encoder`. Raises ValueError where the tokenizer does not pair texts.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        truncation: Truncation | None = None,
        *,
        on_bad: Literal["content", "error", "drop"] = "content",
    ):
        self.tokenizer, self.truncation, self._on_bad = tokenizer, truncation or Truncation(), on_bad
        pair = tokenizer("a", "a")
        whole = list(pair["input_ids"])
        sides = pair.sequence_ids(0) if tokenizer.is_fast else []
        if 0 not in sides or 1 not in sides:
            raise ValueError(f"the tokenizer of {tokenizer.name_or_path} does not pair two texts")
        first, last = sides.index(0), len(sides) - 1 - sides[::-1].index(1)
        second, end = sides.index(1), len(sides) - sides[::-1].index(0)
        self._head, self._middle, self._tail = whole[:first], whole[end:second], whole[last + 1 :]
        types = pair.get("token_type_ids")
        self.typed = types is not None and list(types) == [int(i >= second) for i in range(len(whole))]

    def key(self) -> dict[str, Any]:
        """Everything that the ids of a record depend on besides the record itself, as plain values."""
        return {
            "tokenizer": contents(self.tokenizer),
            "truncation": asdict(self.truncation),
            "on_bad": self._on_bad,
            "pairs": True,
        }

    def encode(self, records: Iterable[Record], report: EncodeReport, batch: int = 512) -> Iterator[PromptGroup]:
        """The records' groups, in order: k=2 for pairs (chosen first), k=1 otherwise. Raises as ``on_bad`` says."""
        stream = iter(records)
        while chunk := list(islice(stream, batch)):
            kept = [r for r in chunk if self._has_content(r, report)]
            for record, ids in zip(kept, self._ids(kept), strict=True):
                group = self._group(record, ids, report)
                if group is None:
                    continue
                if len(group.completions) == 2 and np.array_equal(*group.completions):
                    report.count("identical", record.source)
                    continue
                report.add(group)
                yield group

    def encode_answers(
        self, prompts: Sequence[Text], answers: Sequence[Text], report: EncodeReport
    ) -> list[PromptGroup]:
        """One group for each answer, in order, also for one that says nothing."""
        asked = [Demonstration(prompt=p, completion=a) for p, a in zip(prompts, answers, strict=True)]
        records = [
            Demonstration(prompt=r.prompt, completion=r.completion, source=f"answer {i}")
            for i, r in enumerate(asked, 1)
        ]
        report.examples += len(records)
        groups = []
        for record, ids in zip(records, self._ids(records), strict=True):
            group = self._group(record, ids, report)
            if group is None:
                raise ValueError(f"{record.source}: max_length has no room for an answer beside the end of its prompt")
            report.add(group)
            groups.append(group)
        return groups

    def _has_content(self, record: Record, report: EncodeReport) -> bool:
        report.examples += 1
        if all(unmarked(a).strip() for a in _answers(record)):
            return True
        if self._on_bad == "error":
            raise ValueError(f"{record.source}: an answer says nothing (on_bad=drop leaves such examples out)")
        report.count("empty_completions", record.source)
        return False

    def _ids(self, records: Sequence[Record]) -> Iterator[list[list[int]]]:
        """For each record the ids of its prompt and of its answers, without special tokens."""
        texts = [[unmarked(r.prompt), *(unmarked(a) for a in _answers(r))] for r in records]
        flat = [t for row in texts for t in row]
        found = iter(self.tokenizer(flat, add_special_tokens=False, verbose=False)["input_ids"] if flat else [])
        return (list(islice(found, len(row))) for row in texts)

    def _group(self, record: Record, ids: list[list[int]], report: EncodeReport) -> PromptGroup | None:
        prompt, *answers = ids
        fixed, tail = len(self._head) + len(self._middle), len(self._tail)
        room = self.truncation.completion_room(self.truncation.least(fixed + len(prompt), fixed, 0))
        if room is not None and room <= tail:
            report.count("no_room", record.source)
            return None
        if room is not None and max(map(len, answers)) + tail > room:
            report.count("truncated_completions", record.source)
            answers = [a[: max(0, room - tail)] for a in answers]
        longest = max(map(len, answers)) + tail
        limits = [
            self.truncation.max_prompt_length,
            self.truncation.max_length and self.truncation.max_length - longest,
        ]
        space = min((n for n in limits if n is not None), default=fixed + len(prompt)) - fixed
        if len(prompt) > space:
            report.count("truncated_prompts", record.source)
            prompt = prompt[len(prompt) - max(0, space) :]
        completions = tuple(np.asarray(a + self._tail, np.int32) for a in answers)
        pair = record if isinstance(record, PreferencePair) else None
        return PromptGroup(
            prompt=np.asarray(self._head + prompt + self._middle, np.int32),
            completions=completions,
            masks=tuple(np.ones(len(c), bool) for c in completions),
            weight=record.weight,
            label=pair.label if pair else 1.0,
            margin=float("nan") if pair is None or pair.margin is None else pair.margin,
            source=record.source,
        )


def unmarked(text: Text) -> str:
    """A text without markup: a single message is what it says, a conversation says who speaks."""
    if isinstance(text, str) or len(text) == 1:
        return messages(text, "user")[0].content if text else ""
    names = {"user": "Human", "assistant": "Assistant"}
    return "\n\n".join(f"{names.get(m.role, m.role.capitalize())}: {m.content}" for m in text)


def _answers(record: Record) -> tuple[Text, ...]:
    return (record.chosen, record.rejected) if isinstance(record, PreferencePair) else (record.completion,)
