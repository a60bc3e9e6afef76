"""From records to text: what the prompt says, and which text after it is to be scored.

Prompt and completion are told apart by construction: the template renders the conversation up to a turn, asking for an
answer, and the conversation with that turn; the completion is what the second has after the first. Nobody searches for
role markers. Messages without a chat template are written in the manner of HH-RLHF (`hh_transcript`).

What people write is data, never markup (`shield`). Raw text without a template is taken as it is, control tokens
included: whoever rendered it themselves wants them; and a prompt that the template has written already is not rendered
again (`rendered`). What the template leaves out is found by `written`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import cached_property
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Literal

from prefiere.data.schema import Message, Text
from prefiere.tokens.dialect import CALLED, LeftOut, Rewritten, TemplateRefusal, all_templates, dated, with_arguments
from prefiere.tokens.rendered import format_of, refuse_rendered
from prefiere.tokens.shield import STAND_INS, Control, Piece, Shield
from prefiere.tokens.written import LEFT_OUT, Marks, left_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MARK = "Mk0kM"


@dataclass(frozen=True, slots=True)
class Script:
    """A prompt and its completions as text. ``raw``: no template wrote it, so the tokenizer's BOS goes before it.

    ``control``: control tokens were spelt out in the data. ``open_turns``: a turn before the last has no end token.
    ``already``: the prompt was rendered before. ``left_out``: what the template does not write, as `LEFT_OUT` names it.
    """

    prompt: tuple[Piece, ...]
    completions: tuple[tuple[Piece, ...], ...]
    raw: bool
    control: bool
    open_turns: bool = False
    already: bool = False
    left_out: frozenset[str] = frozenset()


def hh_transcript(conversation: Sequence[Mapping[str, Any]], tools: Any, *, ask: bool) -> str:
    """A conversation in the manner of HH-RLHF: ``"\\n\\nHuman: ...\\n\\nAssistant: ..."``. Raises `TemplateRefusal`."""
    for what in ["tools"] * bool(tools) + ["tool calls" for m in conversation if m.get("tool_calls")]:
        raise TemplateRefusal(f"{what} need a chat template")
    roles = ("Human" if m["role"] == "user" else m["role"].capitalize() for m in conversation)
    said = [f"\n\n{role}: {m['content']}" for role, m in zip(roles, conversation, strict=True)]
    return "".join(said) + "\n\nAssistant:" * ask


class Renderer:
    """Renders prompts and answers with one tokenizer's template. `Encoder` documents the arguments."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        eos_ids: Sequence[int],
        template: Literal["auto", "always", "never"] = "auto",
        template_kwargs: Mapping[str, Any] | None = None,
        day: date | None = None,
    ):
        if template == "always" and not tokenizer.chat_template:
            raise ValueError(
                f"template=always, but the tokenizer of {tokenizer.name_or_path or 'this model'} has no chat template: "
                "use template=auto, or give the tokenizer one"
            )
        self._tokenizer, self._kwargs = tokenizer, dict(template_kwargs or {})
        self.has_template = bool(tokenizer.chat_template) and template != "never"
        ends = [str(tokenizer.decode([i])) for i in eos_ids]
        self._ends = tuple(e for e in ends if e.strip())
        self._day = day or date.today()
        self._source = all_templates(tokenizer) if self.has_template else ""
        self._control = Control(tokenizer, self._ends, lambda talk: self._tried(talk, ()))
        self._marks = Marks(self._tried)
        self._arguments: Literal["mapping", "text"] | None = None

    @cached_property
    def header(self) -> str:
        """What stands between the last word of a prompt and its answer: the turn's end, and who speaks next."""
        try:
            asking = self._render([{"role": "user", "content": _MARK}], (), ask=True)
        except TemplateRefusal:
            return ""
        return asking.rpartition(_MARK)[2]

    @cached_property
    def _asks(self) -> bool:
        """Whether the template writes something to ask for an answer; where the end of a turn does, it need not."""
        return self.header != (self._tried([{"role": "user", "content": _MARK}], ()) or "").rpartition(_MARK)[2]

    # ---- what the encoder asks

    def is_blank(self, answer: Text) -> bool:
        """Whether an answer says nothing (an end token alone is nothing; a tool call is something)."""
        if isinstance(answer, str):
            return not self._split_end(answer)[0].strip()
        turns = [m for m in answer if m.role == "assistant"]
        return all(self.is_blank(m.content) and not replace(m, content="").speaks for m in turns)

    def is_raw(self, *texts: Text) -> bool:
        """Whether these go without a template: plain strings, and no template (or, for the first, no prompt)."""
        return all(isinstance(t, str) for t in texts) and not (self.has_template and texts[0])

    def prompt(self, prompt: Text, tools: Sequence[Mapping[str, Any]] = ()) -> Script:
        """A prompt alone, asking for an answer. Raises `TemplateRefusal`."""
        if self.is_raw(prompt):
            return Script((Piece(str(prompt)),), (), True, bool(self._control.all.search(str(prompt))))
        already = self._already(prompt)
        if already is not None:
            return Script((Piece(already),), (), True, False, already=True)
        shield = Shield(self._control)
        talk, covered_tools = self._talk(prompt, "user", shield), shield.cover(tools)
        text = self._render(talk, covered_tools, ask=True)
        left_out = self._context_left_out(talk, covered_tools, text)
        return Script(shield.uncover(text, False), (), not self.has_template, shield.seen, left_out=left_out)

    def script(self, prompt: Text, answers: Sequence[Text], tools: Sequence[Mapping[str, Any]] = ()) -> Script:
        """A prompt and its answers. Raises `TemplateRefusal`, or `Rewritten` where no prompt begins the whole."""
        if self.is_raw(prompt, *answers):
            return self._raw(str(prompt), [str(a) for a in answers])
        already = self._already(prompt)
        if already is not None:
            if any(not isinstance(a, str) and (len(a) > 1 or a[0].extra) for a in answers):
                raise TemplateRefusal("its prompt is rendered text, and its answer is more than a text")
            texts = [a if isinstance(a, str) else a[0].content for a in answers]
            return replace(self._raw(already, texts), control=False, already=True)
        shield = Shield(self._control)
        history, covered_tools = self._talk(prompt, "user", shield), shield.cover(tools)
        heads, completions, asked, left_out = set(), [], dict[int, str](), set[str]()
        for answer in answers:
            turns = messages(answer, "assistant")
            at, talk = self._learnt(turns), self._talk(answer, "assistant", shield)
            # Where only one of two begins with a turn that is not learnt, that turn is no part of their prompt.
            shared = all(messages(a, "assistant")[: min(at, default=0)] == turns[: min(at, default=0)] for a in answers)
            whole = at if shared else sorted({*at, *(i for i, m in enumerate(turns[: at[0]]) if m.role == "assistant")})
            head, spans = self._dialogue(history, talk, whole, at, covered_tools, asked, left_out)
            heads.add(head)
            completions.append(spans)
        if len(heads) > 1:
            raise TemplateRefusal("its answers begin with turns that differ and are not the assistant's")
        return Script(
            shield.uncover(heads.pop(), False),
            tuple(tuple(p for text, scored in spans for p in shield.uncover(text, scored)) for spans in completions),
            not self.has_template,
            shield.seen,
            any(self._split_end(text)[0] == text for spans in completions for text, scored in spans[:-1] if scored),
            left_out=frozenset(left_out),
        )

    def _learnt(self, turns: Sequence[Message]) -> list[int]:
        """Which turns are learnt: the assistant's, but for those that say nothing or are marked not to be learnt."""
        own = [i for i, m in enumerate(turns) if m.role == "assistant"]
        return [i for i in own if turns[i].learnt and not self.is_blank((turns[i],))] or own

    def _raw(self, prompt: str, answers: Sequence[str]) -> Script:
        texts = [self._cut(a) for a in answers]
        control = any(self._control.all.search(t) for t in (prompt, *(self._split_end(t)[0] for t in texts)))
        return Script((Piece(prompt),), tuple((Piece(t, True),) for t in texts), True, control)

    def _already(self, prompt: Text) -> str | None:
        """A prompt that is one text, written in the format of this tokenizer's template; None for any other.

        Raises `TemplateRefusal` for one in the format of another template, which must not be rendered as what a user
        says.
        """
        text = prompt if isinstance(prompt, str) else prompt[0].content if len(prompt) == 1 else ""
        found = format_of(text) if text else None
        if found is None:
            return None
        name, marker = found
        if self._source and marker not in self._source:
            raise TemplateRefusal(
                f"its prompt is written in the format {name} already, which is not this model's: give the bare text or "
                "messages, or take it as it is with template=never"
            )
        return text

    # ---- the template

    def _render(self, conversation: list[dict[str, Any]], tools: Any, *, ask: bool) -> str:
        if not self.has_template:
            return hh_transcript(conversation, tools, ask=ask)
        try:
            text = self._tokenizer.apply_chat_template(
                self._with_arguments(conversation),
                tools=tools or None,
                add_generation_prompt=ask,
                tokenize=False,
                chat_template=self._dated(tools),
                **self._kwargs,
            )
        except Exception as error:  # a template is a program from elsewhere
            raise TemplateRefusal(re.sub(f"[{STAND_INS}]+", "...", str(error))) from error
        return str(text)

    def _tried(self, conversation: list[dict[str, Any]], tools: Any) -> str | None:
        """The rendered text; None where the template refuses."""
        try:
            return self._render(conversation, tools, ask=False)
        except TemplateRefusal:
            return None

    def _dated(self, tools: Any) -> str | None:
        """The template with the run's day in the place of the clock; None for the tokenizer's own, which has none."""
        if "strftime_now(" not in self._source:
            return None
        return dated(self._tokenizer.get_chat_template(None, tools or None), self._day)

    def _with_arguments(self, conversation: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The conversation with the arguments of calls in the form that the template takes: objects, or their JSON."""
        if not any(m.get("tool_calls") for m in conversation):
            return conversation
        if self._arguments is None:
            self._arguments = "mapping"  # for the question itself
            said = self._tried(CALLED, ())
            self._arguments = "text" if said is None or "'k'" in said else "mapping"
        return [with_arguments(m, self._arguments) for m in conversation]

    def _dialogue(
        self,
        history: list[dict[str, Any]],
        answer: list[dict[str, Any]],
        turns: list[int],
        said: list[int],
        tools: Any,
        asked: dict[int, str],
        left_out: set[str],
    ) -> tuple[str, list[tuple[str, bool]]]:
        """The prompt's text, and the (text, scored) spans after it: assistant turns with their end tokens are scored.

        Turns of others before the first answer belong to the prompt; those after the last one teach nothing and go.
        turns: the assistant's in ``answer`` after the prompt. said: those of them that are learnt. asked:
        ``history`` asking for an answer, under 0, once it is rendered: answers that begin at once share it; under 1 the
        prompt that was looked through. left_out: takes what the template does not write.
        """
        if not said:
            raise TemplateRefusal("its answer holds no assistant turn")
        talk = [*history, *answer[: said[-1] + 1]]
        whole = self._cut(self._render(talk, tools, ask=False))
        prompt, spans, at = "", [], 0
        for i in turns:
            before, turn = talk[: len(history) + i], answer[i]
            head = asked[0] if i == 0 and 0 in asked else self._render(before, tools, ask=True)
            if i == 0:
                asked[0] = head
            closed = whole if i == said[-1] else self._cut(self._render([*before, turn], tools, ask=False))
            start = self._start(before, turn, tools, head, closed)
            if start < at or not whole.startswith(closed):
                raise Rewritten("the chat template writes earlier turns differently once later ones follow")
            if i == turns[0]:
                prompt = head
            else:
                spans.append((whole[at:start], False))
            spans.append((whole[start : len(closed)], i in said))
            at = len(closed)
            opening, there, _ = spans[-1][0].partition((turn["content"] or "").strip() or "\0")
            left_out |= {"unasked"} if i == turns[0] and there and opening.strip() and not self._asks else set()
            if i in said:
                left_out |= self._answer_left_out([*before, turn], tools, spans[-1][0])
        if asked.get(1) != prompt or said != [0]:  # what both answers follow is looked for once
            left_out |= self._context_left_out(talk[:-1], tools, whole, skip=[len(history) + i for i in said])
            asked[1] = prompt
        return prompt, spans

    # ---- what came back

    def _answer_left_out(self, talk: list[dict[str, Any]], tools: Any, span: str) -> set[str]:
        """What a scored turn lacks of its message. Raises `LeftOut` where that is more than its reasoning."""
        turn, missing = talk[-1], self._marks.missing(talk, tools or ())
        lost = left_of(span, turn["content"] or "")
        if lost == "content" or "content" in missing.last:
            raise LeftOut("the chat template leaves out what the answer says")
        if "calls" in missing.last:
            raise LeftOut("the chat template leaves out the answer's call of a tool")
        if turn["content"] == "" and "reasoning" in missing.last and not turn.get("tool_calls"):
            raise LeftOut("the chat template leaves out the answer's reasoning, and there is nothing else in it")
        gone = {"reasoning"} if lost or "reasoning" in missing.last else set[str]()
        return {LEFT_OUT[what] for what in gone | (missing.before & {"tools"})}

    def _context_left_out(
        self, talk: list[dict[str, Any]], tools: Any, text: str, skip: Sequence[int] = ()
    ) -> frozenset[str]:
        """What the text lacks of the messages. Raises `LeftOut` where it is what a user or the assistant says."""
        gone, at = set(self._marks.missing(talk, tools or ()).before) if talk else set[str](), 0
        for i, m in enumerate(talk):
            content = (m["content"] or "").strip()
            if (found := text.find(content, at)) >= 0:
                at = found
            elif i not in skip:
                lost = left_of(text, content)
                gone |= {m["role"] if lost == "content" else lost} if lost else set()
        said = gone - LEFT_OUT.keys()
        if said:
            raise LeftOut(f"the chat template leaves out what the {min(said)} says")
        return frozenset(LEFT_OUT[what] for what in gone)

    def _start(self, before: list[dict[str, Any]], turn: dict[str, Any], tools: Any, head: str, closed: str) -> int:
        """Where the turn's text begins in ``closed``, the conversation up to its end."""
        if closed.startswith(head):
            return len(head)
        # Some templates ask for an answer with other white space than they write one.
        mark = "\U0010fffd"
        opening = self._render([*before, {**turn, "content": mark}], tools, ask=False).partition(mark)[0]
        if opening.rstrip() == head.rstrip() and closed.startswith(opening):
            return len(opening)
        same = sum(1 for _ in takewhile(lambda ab: ab[0] == ab[1], zip(head, opening, strict=False)))
        raise Rewritten(
            f"the chat template asks for an answer with {head[same:]!r} where it writes one with {opening[same:]!r}: "
            "set template_kwargs (such as {enable_thinking: false}), or give the tokenizer a template that agrees with "
            "itself"
        )

    # ---- ends

    def _split_end(self, text: str) -> tuple[str, int]:
        """The text before any end tokens (and white space) that it closes with, and where the first of these ends."""
        body, end = text, len(text)
        while (said := body.rstrip()).endswith(self._ends):
            end = len(said)
            body = said[: -max(len(e) for e in self._ends if said.endswith(e))]
        return body, end

    def _cut(self, text: str) -> str:
        return text[: self._split_end(text)[1]]

    def _talk(self, text: Text, role: str, shield: Shield) -> list[dict[str, Any]]:
        """Messages for the template, less the end token that an assistant's text closes with: its turn gets one."""
        talk = []
        for m in messages(text, role):
            if self.has_template and m.role != "assistant":
                refuse_rendered(m.content)
            content = self._split_end(m.content)[0] if m.role == "assistant" else m.content
            shield.seen = shield.seen or content != m.content
            talk.append(shield.cover(Message(m.role, content, m.extra).as_dict(), own=m.role == "assistant"))
        return talk


def messages(text: Text, role: str) -> tuple[Message, ...]:
    """Messages as they are; a plain string as one message of this role, or none if it is empty."""
    return ((Message(role, text),) if text else ()) if isinstance(text, str) else text
