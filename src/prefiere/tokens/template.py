"""From records to text: what the prompt says, and which text after it is to be scored.

Prompt and completion are told apart by construction: the template renders the conversation up to a turn, asking for an
answer, and the conversation with that turn; the completion is what the second has after the first. Nobody searches for
role markers. Messages without a chat template are written in the manner of HH-RLHF (`hh_transcript`).

What people write is data, never markup. Where a message spells out a control token (``<|im_end|>`` in a question), a
private-use character stands in for it while the template renders, and it comes back cut in two, so that the tokenizer
sees ordinary text. Raw text without a template is taken as it is, control tokens included: whoever rendered it
themselves wants them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Literal

from jinja2 import TemplateError

from prefiere.data.schema import Message, Text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

STAND_INS = "\U000f0000-\U0010fffd"
"""Two planes of private-use characters; those that occur in the data are stood in for as well."""


class TemplateRefusal(ValueError):
    """The chat template cannot render a conversation."""


class Rewritten(TemplateRefusal):
    """The chat template writes a conversation differently once it goes on: the prompt is not the beginning of it."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of text that is tokenized up to its end, and whether its tokens are scored."""

    text: str
    scored: bool = False


@dataclass(frozen=True, slots=True)
class Script:
    """A prompt and its completions as text. ``raw``: no template wrote it, so the tokenizer's BOS goes before it.

    ``control``: control tokens were spelt out in the data. ``open_turns``: a turn before the last has no end token.
    """

    prompt: tuple[Piece, ...]
    completions: tuple[tuple[Piece, ...], ...]
    raw: bool
    control: bool
    open_turns: bool = False


def hh_transcript(conversation: Sequence[Mapping[str, Any]], tools: Any, *, ask: bool) -> str:
    """A conversation in the manner of HH-RLHF: ``"\\n\\nHuman: ...\\n\\nAssistant: ..."``. Raises `TemplateRefusal`."""
    for what in ["tools"] * bool(tools) + ["tool calls" for m in conversation if m.get("tool_calls")]:
        raise TemplateRefusal(f"{what} need a chat template")
    roles = ("Human" if m["role"] == "user" else m["role"].capitalize() for m in conversation)
    said = [f"\n\n{role}: {m['content']}" for role, m in zip(roles, conversation, strict=True)]
    return "".join(said) + "\n\nAssistant:" * ask


class Shield:
    """Keeps the control tokens that one record spells out from becoming any. ``seen``: there were some."""

    def __init__(self, control: re.Pattern[str], covered: re.Pattern[str]):
        self._control, self._covered, self._found, self.seen = control, covered, dict[str, str](), False

    def cover(self, value: Any) -> Any:
        """``value`` with a stand-in for each control token in its strings, however deep."""
        if isinstance(value, str):
            return self._covered.sub(self._cover, value)
        if isinstance(value, Mapping):
            return {k: self.cover(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [self.cover(v) for v in value]
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
            clear = (i for i in range(1, len(word)) if not self._control.search(word[i:]))
            at = next(clear, len(word)) if part in back else len(word)
            parts += [word[:at], word[at:]]
        return tuple(Piece(p, scored) for p in parts if p)


class Renderer:
    """Renders prompts and answers with one tokenizer's template. `Encoder` documents the arguments."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        eos_ids: Sequence[int],
        template: Literal["auto", "always", "never"] = "auto",
        template_kwargs: Mapping[str, Any] | None = None,
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
        added = getattr(tokenizer, "added_tokens_decoder", {}).values()
        control = {t.content for t in added if t.special} | set(tokenizer.all_special_tokens) | set(self._ends)
        # One character cannot be cut in two; nobody's control token is one.
        words = sorted((c for c in control if len(c) > 1), key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, words)) or "(?!)")
        self._covered = re.compile(f"{self._control.pattern}|[{STAND_INS}]")

    # ---- what the encoder asks

    def is_blank(self, answer: Text) -> bool:
        """Whether an answer says nothing (an end token alone is nothing; a tool call is something)."""
        if isinstance(answer, str):
            return not self._split_end(answer)[0].strip()
        turns = [m for m in answer if m.role == "assistant"]
        return all(not m.extra and self.is_blank(m.content) for m in turns)

    def is_raw(self, *texts: Text) -> bool:
        """Whether these go without a template: plain strings, and no template (or, for the first, no prompt)."""
        return all(isinstance(t, str) for t in texts) and not (self.has_template and texts[0])

    def prompt(self, prompt: Text, tools: Sequence[Mapping[str, Any]] = ()) -> Script:
        """A prompt alone, asking for an answer. Raises `TemplateRefusal`."""
        if self.is_raw(prompt):
            return Script((Piece(str(prompt)),), (), True, bool(self._control.search(str(prompt))))
        shield = Shield(self._control, self._covered)
        text = self._render(self._talk(prompt, "user", shield), shield.cover(tools), ask=True)
        return Script(shield.uncover(text, False), (), not self.has_template, shield.seen)

    def script(self, prompt: Text, answers: Sequence[Text], tools: Sequence[Mapping[str, Any]] = ()) -> Script:
        """A prompt and its answers. Raises `TemplateRefusal`, or `Rewritten` where no prompt begins the whole."""
        if self.is_raw(prompt, *answers):
            texts = [self._cut(str(a)) for a in answers]
            control = any(self._control.search(t) for t in (str(prompt), *(self._split_end(t)[0] for t in texts)))
            return Script((Piece(str(prompt)),), tuple((Piece(t, True),) for t in texts), True, control)
        shield = Shield(self._control, self._covered)
        history, covered_tools = self._talk(prompt, "user", shield), shield.cover(tools)
        heads, completions, asked = set(), [], dict[int, str]()
        for answer in answers:
            head, spans = self._dialogue(history, self._talk(answer, "assistant", shield), covered_tools, asked)
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
        )

    # ---- the template

    def _render(self, conversation: list[dict[str, Any]], tools: Any, *, ask: bool) -> str:
        if not self.has_template:
            return hh_transcript(conversation, tools, ask=ask)
        try:
            text = self._tokenizer.apply_chat_template(
                conversation,
                tools=tools or None,
                add_generation_prompt=ask,
                tokenize=False,
                **self._kwargs,
            )
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            raise TemplateRefusal(re.sub(f"[{STAND_INS}]+", "...", str(error))) from error
        return str(text)

    def _dialogue(
        self, history: list[dict[str, Any]], answer: list[dict[str, Any]], tools: Any, asked: dict[int, str]
    ) -> tuple[str, list[tuple[str, bool]]]:
        """The prompt's text, and the (text, scored) spans after it: assistant turns with their end tokens are scored.

        Turns of others before the first answer belong to the prompt; those after the last one teach nothing and go.
        asked: ``history`` asking for an answer, under 0, once it is rendered: answers that begin at once share it.
        """
        said = [i for i, m in enumerate(answer) if m["role"] == "assistant"]
        if not said:
            raise TemplateRefusal("its answer holds no assistant turn")
        talk = [*history, *answer[: said[-1] + 1]]
        whole = self._cut(self._render(talk, tools, ask=False))
        prompt, spans, at = "", [], 0
        for i in said:
            before, turn = talk[: len(history) + i], answer[i]
            head = asked[0] if i == 0 and asked else self._render(before, tools, ask=True)
            if i == 0:
                asked[0] = head
            closed = whole if i == said[-1] else self._cut(self._render([*before, turn], tools, ask=False))
            start = self._start(before, turn, tools, head, closed)
            if start < at or not whole.startswith(closed):
                raise Rewritten("the chat template writes earlier turns differently once later ones follow")
            if i == said[0]:
                prompt = head
            else:
                spans.append((whole[at:start], False))
            spans.append((whole[start : len(closed)], True))
            at = len(closed)
        return prompt, spans

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
            "pass template_kwargs (such as enable_thinking), or give the tokenizer a template that agrees with itself"
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
            content = self._split_end(m.content)[0] if m.role == "assistant" else m.content
            shield.seen = shield.seen or content != m.content
            talk.append(shield.cover(Message(m.role, content, m.extra).as_dict()))
        return talk


def messages(text: Text, role: str) -> tuple[Message, ...]:
    """Messages as they are; a plain string as one message of this role, or none if it is empty."""
    return ((Message(role, text),) if text else ()) if isinstance(text, str) else text
