"""Records in, token ids out: the one way from data to a `PromptGroup`, and a full account of what happened on it."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, replace
from datetime import date
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from prefiere.data.schema import Demonstration, Judgement, Message, PreferencePair, Record, Text
from prefiere.tokens.dialect import LeftOut, Rewritten, TemplateRefusal, tells_the_date
from prefiere.tokens.groups import PromptGroup
from prefiere.tokens.rendered import format_of
from prefiere.tokens.template import Renderer, Script, messages
from prefiere.tokens.tokenizer import Tokens, contents, decode
from prefiere.tokens.truncation import EncodeReport, Truncation

NO_TEMPLATE = 'no chat template: messages are written as "\\n\\nHuman: ...\\n\\nAssistant: ..."'
"""What is noted once where a tokenizer has no template."""

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Encoder:
    """Turns records into token ids with one tokenizer.

    eos_ids: what ends an answer (`eos_ids_of`); an answer whose template or text closes with one of them is cut right
    after it, any other gets the first of them. completion_only: score the answers alone; otherwise the prompt is the
    first token and all others are scored.

    template: ``auto`` uses the tokenizer's chat template where it has one, for plain strings too (prompt and answer
    become a user's and an assistant's message; text without a prompt stays raw). ``always`` demands one. ``never``
    takes plain strings as they are. Messages without a template are written as
    ``"\\n\\nHuman: ...\\n\\nAssistant: ..."``. template_kwargs: further variables of the template, such as
    ``enable_thinking``. day: what a template that prints today's date prints (default: today).

    on_bad: what happens to an example that cannot be used. ``content`` leaves out and counts one without content (an
    answer that says nothing, a prompt without tokens), and raises ValueError, which names the source, for one that the
    template cannot write. ``error`` raises for both kinds, ``drop`` leaves both out. Pairs that truncation made
    identical, or left nothing to score, are always left out and counted.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        truncation: Truncation | None = None,
        *,
        eos_ids: Sequence[int],
        completion_only: bool = True,
        template: Literal["auto", "always", "never"] = "auto",
        template_kwargs: Mapping[str, Any] | None = None,
        day: date | None = None,
        on_bad: Literal["content", "error", "drop"] = "content",
    ):
        if not eos_ids:
            raise ValueError("eos_ids is empty: nothing would end an answer")
        self.tokenizer, self.truncation = tokenizer, truncation or Truncation()
        self._eos, self._completion_only, self._on_bad = tuple(eos_ids), completion_only, on_bad
        self._unused = template == "never" and bool(tokenizer.chat_template)
        self._template: list[Any] = [template, dict(template_kwargs or {})]
        if tells_the_date(tokenizer):
            day = day or date.today()
            self._template.append(day.isoformat())
        self._renderer = Renderer(tokenizer, eos_ids, template, template_kwargs, day)
        self._tokens, self._bos = Tokens(tokenizer), tokenizer.bos_token_id
        header = self._renderer.header
        self._header = len(self._tokens.known([header])[header]) if header else 0

    # ---- public

    def key(self) -> dict[str, Any]:
        """Everything that the ids of a record depend on besides the record itself, as plain values."""
        return {
            "tokenizer": contents(self.tokenizer),
            "truncation": asdict(self.truncation),
            "eos": list(self._eos),
            "completion_only": self._completion_only,
            "template": self._template,
            "on_bad": self._on_bad,
        }

    def encode(self, records: Iterable[Record], report: EncodeReport, batch: int = 256) -> Iterator[PromptGroup]:
        """The records' groups, in order: k=2 for pairs (chosen first), k=1 for judgements and demonstrations.

        ``batch`` records are tokenized at a time, while the next ones are written out by the template: two batches at
        once, as one's ids are handed over while the other keeps the cores busy. Raises ValueError as ``on_bad`` says.
        """
        stream = iter(records)
        waiting: deque[tuple[list[tuple[Record, Script]], Future[dict[str, array[int]]]]] = deque()
        with ThreadPoolExecutor(2) as beside:
            while chunk := list(islice(stream, batch)):
                scripts = [pair for record in chunk for pair in self._counted_scripts(record, report)]
                texts = list(self._texts(script for _, script in scripts))
                waiting.append((scripts, beside.submit(self._tokens.known, texts)))
                if len(waiting) > 2:
                    yield from self._groups(*waiting.popleft(), report)
            for scripts, known in waiting:
                yield from self._groups(scripts, known, report)

    def encode_prompts(self, prompts: Sequence[Text], tools: Sequence[Mapping[str, Any]] = ()) -> list[np.ndarray]:
        """int32 [P_i] each: prompts as training sees them, cut to ``max_prompt_length`` (or ``max_length`` - 1).

        Raises ValueError at a prompt without tokens, or one that the template refuses.
        """
        scripts = []
        for i, prompt in enumerate(prompts):
            try:
                scripts.append(self._renderer.prompt(prompt, tools))
            except TemplateRefusal as error:
                raise ValueError(f"prompt {i + 1}: the chat template refuses it: {error}") from error
        known, out = self._tokens.known(self._texts(scripts)), []
        for i, script in enumerate(scripts):
            ids, kept = self._dressed(self._bare(script, known), script.raw)
            if not ids:
                raise ValueError(f"prompt {i + 1} has no tokens, and the tokenizer has no BOS to begin with")
            out.append(np.asarray(self.truncation.prompt(ids, kept, 1), np.int32))
        return out

    def encode_answers(
        self, prompts: Sequence[Text], answers: Sequence[Text], report: EncodeReport
    ) -> list[PromptGroup]:
        """One group (k=1) for each answer, in order, also for one that says nothing: what scores answers may lose none.

        Raises ValueError at a prompt without tokens, or a conversation that the template refuses.
        """
        scripts: list[tuple[Demonstration, Script]] = []
        for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True), 1):
            said = answer if answer or self._renderer.is_raw(prompt, answer) else (Message("assistant", ""),)
            record = Demonstration(prompt=prompt, completion=said, source=f"answer {i}")
            report.examples += 1
            try:
                scripts.append((record, self._renderer.script(prompt, (said,))))
            except TemplateRefusal as error:
                raise ValueError(f"{record.source}: the chat template refuses it: {error}") from error
        known, groups = self._tokens.known(self._texts(script for _, script in scripts)), []
        for record, script in scripts:
            group = self._group(record, script, known, report)
            if group is None:
                raise ValueError(f"{record.source}: nothing to score: prompt and answer have no tokens")
            report.add(group)
            groups.append(group)
        return groups

    def decode(self, ids: Sequence[int] | np.ndarray, skip_special: bool = True) -> str:
        """The text of these ids."""
        return decode(self.tokenizer, ids, skip_special)

    # ---- record -> scripts

    def _counted_scripts(self, record: Record, report: EncodeReport) -> Iterator[tuple[Record, Script]]:
        report.examples += 1
        if not record.source:
            record = replace(record, source=f"example {report.examples}")
        found = list(self._scripts(record, report))
        if found and self._unused and not any(s.control or s.already or _rendered(r) for r, s in found):
            report.count("template_unused", record.source)
        yield from found

    def _scripts(self, record: Record, report: EncodeReport) -> Iterator[tuple[Record, Script]]:
        answers = _answers(record)
        if any(self._renderer.is_blank(a) for a in answers):
            self._bad("empty_completions", record, "an answer says nothing", report)
            return
        script, why = None, ""
        try:
            script = self._renderer.script(record.prompt, answers, record.tools)
        except Rewritten as error:
            why = str(error)
        except LeftOut as error:
            self._bad("left_out", record, str(error), report)
            return
        except TemplateRefusal as error:
            self._bad("refused", record, f"the chat template refuses the conversation: {error}", report)
            return
        if script is None or script.open_turns:
            turns = _turns(record)
            if len(turns) > 1:
                report.count("split_by_turn", record.source)
                for turn in turns:
                    yield from self._scripts(turn, report)
                return
        if script is None:
            self._bad("rewritten", record, why, report)
            return
        if script.control:
            report.count("control_tokens", record.source)
        if script.already:
            report.count("already_rendered", record.source)
        for what in sorted(script.left_out):
            report.count(what, record.source)
        written = script.raw and not script.already and not self._renderer.is_raw(record.prompt, *answers)
        if written and NO_TEMPLATE not in report.notes:
            report.notes.append(NO_TEMPLATE)
        yield record, script

    def _bad(self, what: str, record: Record, why: str, report: EncodeReport) -> None:
        if self._on_bad == "error" or (
            self._on_bad == "content" and what not in ("empty_prompts", "empty_completions")
        ):
            raise ValueError(f"{record.source}: {why} (on_bad=drop leaves such examples out and counts them)")
        report.count(what, record.source)

    # ---- script -> ids

    def _texts(self, scripts: Iterable[Script]) -> Iterator[str]:
        for script in scripts:
            yield from self._tokens.wanted("", script.prompt)
            prompt = "".join(p.text for p in script.prompt)
            for pieces in script.completions:
                yield from self._tokens.wanted(prompt, pieces)

    def _bare(self, script: Script, known: dict[str, array[int]]) -> array[int]:
        return self._tokens.follow(array("i"), "", script.prompt, known)[0]

    def _dressed(self, ids: array[int], raw: bool) -> tuple[array[int], int]:
        """The prompt's ids with what the tokenizer puts first, and how many at its front stay when it is cut."""
        prefix, bos = self._tokens.prefix, self._bos
        if raw and ids[: len(prefix)] != prefix:
            ids = prefix + ids
        if not ids and bos is not None:
            ids = array("i", [bos])
        if prefix and ids[: len(prefix)] == prefix:
            return ids, len(prefix)
        return ids, int(bool(ids) and ids[0] == bos)

    def _groups(
        self, scripts: list[tuple[Record, Script]], known: Future[dict[str, array[int]]], report: EncodeReport
    ) -> Iterator[PromptGroup]:
        ids = known.result()
        for record, script in scripts:
            group = self._group(record, script, ids, report)
            if group is not None:
                report.add(group)
                yield group

    def _group(
        self, record: Record, script: Script, known: dict[str, array[int]], report: EncodeReport
    ) -> PromptGroup | None:
        text, bare = "".join(p.text for p in script.prompt), self._bare(script, known)
        try:
            pairs = [self._tokens.follow(bare, text, pieces, known) for pieces in script.completions]
        except ValueError as error:
            raise ValueError(f"{record.source}: {error}") from error
        if script.raw and not bare and all(ids[: len(self._tokens.prefix)] == self._tokens.prefix for ids, _ in pairs):
            cut = len(self._tokens.prefix)  # rendered text has its BOS: the prompt gets the one
            pairs = [(ids[cut:], mask[cut:]) for ids, mask in pairs]
        open_ended = [(ids, mask) for ids, mask in pairs if not ids or ids[-1] not in self._eos]
        for ids, mask in open_ended:
            ids.append(self._eos[0])
            mask.append(1)
        if open_ended and not script.raw:
            report.count("end_added", record.source)
        completions, masks = [ids for ids, _ in pairs], [mask for _, mask in pairs]
        prompt, kept = self._dressed(bare, script.raw)
        if not prompt and isinstance(record, Demonstration) and len(completions[0]) > 1:
            # Nothing comes before the first token of a plain text, so nothing can predict it.
            prompt, completions, masks = completions[0][:1], [completions[0][1:]], [masks[0][1:]]
        if not prompt:
            self._bad("empty_prompts", record, "the prompt has no tokens, and the tokenizer no BOS", report)
            return None
        return self._truncated(record, prompt, kept, completions, masks, report)

    def _truncated(
        self,
        record: Record,
        prompt: array[int],
        kept: int,
        completions: list[array[int]],
        masks: list[bytearray],
        report: EncodeReport,
    ) -> PromptGroup | None:
        header = 0 if self._renderer.is_raw(record.prompt, *_answers(record)) else self._header
        least = self.truncation.least(len(prompt), kept, header)
        room = self.truncation.completion_room(least)
        if (room is not None and room < 1) or (self.truncation.max_prompt_length or least) < min(least, kept + header):
            report.count("no_room", record.source)
            return None
        if room is not None and max(map(len, completions)) > room:
            report.count("truncated_completions", record.source)
            completions, masks = [c[:room] for c in completions], [m[:room] for m in masks]
        whole, prompt = prompt, self.truncation.prompt(prompt, kept, max(map(len, completions)))
        if len(prompt) < len(whole):
            report.count("truncated_prompts", record.source)
        if not self._completion_only:
            completions = [prompt[1:] + c for c in completions]
            prompt, masks = prompt[:1], [bytearray(b"\1") * (len(prompt) - 1 + len(m)) for m in masks]
        lost = "identical" if len(completions) == 2 and completions[0] == completions[1] else ""
        lost = lost or ("" if all(map(any, masks)) else "unscored")
        if lost:
            report.count(lost, record.source)
            return None
        return PromptGroup(
            prompt=np.array(prompt, np.int32),
            completions=tuple(np.array(c, np.int32) for c in completions),
            masks=tuple(np.array(m, bool) for m in masks),
            weight=record.weight,
            label=float(record.desirable) if isinstance(record, Judgement) else getattr(record, "label", 1.0),
            margin=_margin(record),
            source=record.source,
        )


def _rendered(record: Record) -> bool:
    """Whether its prompt is written as some chat format or transcript writes it."""
    return isinstance(record.prompt, str) and (
        format_of(record.prompt) is not None or record.prompt.rstrip().endswith("Assistant:")
    )


def _answers(record: Record) -> tuple[Text, ...]:
    return (record.chosen, record.rejected) if isinstance(record, PreferencePair) else (record.completion,)


def _margin(record: Record) -> float:
    stated = record.margin if isinstance(record, PreferencePair) else None
    return float("nan") if stated is None else stated


def _turns(record: Record) -> list[Demonstration]:
    """A conversation as one demonstration for each assistant turn, with all that was said before as its prompt."""
    if not isinstance(record, Demonstration) or isinstance(record.completion, str):
        return []
    talk = [*messages(record.prompt, "user"), *record.completion]
    first = len(talk) - len(record.completion)
    return [
        replace(record, prompt=tuple(talk[:i]), completion=(m,))
        for i, m in enumerate(talk)
        if i >= first and m.role == "assistant" and m.learnt and m.speaks
    ]
