"""From what a layout holds to the records that were asked for, with everything unusable named.

A tie becomes a pair with label 0.5; where a kind cannot use a verdict (a tie for KTO, two bad answers for pairs) the
example is dropped under that name. Strength becomes a soft label, never a weight nor a margin: in 20 repetitions labels
gained 0.3 to 1.4 points of accuracy and stayed calibrated, margins gained 0 to 0.7 and did not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import combinations
from typing import Literal, TypeAlias

from prefiere.data.layouts.columns import Native, Ranking
from prefiere.data.schema import (
    Comparison,
    Demonstration,
    Judgement,
    Kind,
    Preference,
    PreferencePair,
    Prompt,
    Text,
)
from prefiere.data.values import BadRow

AnyRecord: TypeAlias = PreferencePair | Comparison | Judgement | Demonstration | Prompt
PairsPerPrompt: TypeAlias = Literal["best_worst", "all"]
Note: TypeAlias = Callable[[str], None]


def records(
    native: Native, kind: Kind, *, pairs_per_prompt: PairsPerPrompt, note: Note
) -> Iterator[AnyRecord | BadRow]:
    """The records of this kind in what one row holds; a BadRow in the place of each that is unusable.

    ``note`` is called with the name of each change made to a record. Raises BadRow where the row gives none at all.
    """
    made: list[AnyRecord]
    if kind == "pairs":
        made = [*_pairs(native, pairs_per_prompt, note)]
    elif kind == "comparisons":
        made = (
            [native] if isinstance(native, Comparison) else [*map(_comparison, _pairs(native, pairs_per_prompt, note))]
        )
    elif kind == "judgements":
        made = _judgements(native)
    elif kind == "demonstrations":
        made = [_demonstration(native, note)]
    else:
        made = [_prompt(native)]
    for record in made:
        try:
            check_content(record)
        except BadRow as bad:
            yield bad
        else:
            yield record


# -- making one kind of another ---------------------------------------------------------------------------------------


def _pairs(native: Native, pairs_per_prompt: PairsPerPrompt, note: Note) -> list[PreferencePair]:
    if isinstance(native, PreferencePair):
        return [native]
    if isinstance(native, Ranking):
        made = _ranked_pairs(native, pairs_per_prompt)
        if pairs_per_prompt == "best_worst" and len(native.answers) > 2:
            note("answers between the best and the worst left out")
        return made
    assert isinstance(native, Comparison)
    if native.preference == "both_bad":
        raise BadRow("preference", "both bad", "both answers were called bad", content=True)
    chosen, rejected = native.answer_a, native.answer_b
    if native.preference == "b":
        chosen, rejected = rejected, chosen
    return [
        PreferencePair(
            prompt=native.prompt,
            chosen=chosen,
            rejected=rejected,
            label=0.5 if native.preference == "tie" else soft_label(native.strength),
            annotator=native.annotator,
            chosen_first=None if native.preference == "tie" else native.preference == "a",
            tools=native.tools,
        )
    ]


def soft_label(strength: float | None) -> float:
    """How likely the preferred answer is the better one: 0.7, 0.8, 0.9 at strength 1/3, 2/3, 1; 1 where none is stated.

    On a line between and beyond them, for scales of other lengths.
    """
    return 1.0 if strength is None else 0.6 + 0.3 * strength


def _strength(label: float) -> float | None:
    """The strength that has this soft label, None for a plain pair and for a tie. Labels below 0.6 are the weakest."""
    return None if label in (0.5, 1.0) else min(1.0, max(0.01, round((label - 0.6) / 0.3, 9)))


def _ranked_pairs(ranking: Ranking, pairs_per_prompt: PairsPerPrompt) -> list[PreferencePair]:
    """The best against the worst, or each answer against each that ranks below it; equal ranks make no pair."""
    answers = ranking.answers if pairs_per_prompt == "all" else (ranking.answers[0], ranking.answers[-1])
    made = [
        PreferencePair(prompt=ranking.prompt, chosen=good, rejected=bad, tools=ranking.tools)
        for (high, good), (low, bad) in combinations(answers, 2)
        if high < low
    ]
    if not made:
        raise BadRow("answers", "tie", "all answers have the same rank", content=True)
    return made


def _comparison(pair: PreferencePair) -> Comparison:
    preference: Preference = "tie" if pair.label == 0.5 else "a" if pair.label > 0.5 else "b"
    return Comparison(
        prompt=pair.prompt,
        answer_a=pair.chosen,
        answer_b=pair.rejected,
        preference=preference,
        strength=_strength(max(pair.label, 1 - pair.label)),
        annotator=pair.annotator,
        tools=pair.tools,
    )


def _decided(native: Native) -> PreferencePair:
    """The one pair of a row, turned so that its chosen answer is the likelier one."""
    pair = _pairs(native, "best_worst", lambda change: None)[0]
    if pair.label == 0.5:
        raise BadRow("preference", "tie", "neither answer was preferred", content=True)
    if pair.label > 0.5:
        return pair
    return PreferencePair(
        prompt=pair.prompt, chosen=pair.rejected, rejected=pair.chosen, weight=pair.weight, tools=pair.tools
    )


def _judgements(native: Native) -> list[AnyRecord]:
    """The preferred answer is desirable, the other is not; two bad ones are both not."""
    if isinstance(native, Judgement):
        return [native]
    if isinstance(native, Comparison) and native.preference == "both_bad":
        said, weight = [(native.answer_a, False), (native.answer_b, False)], 1.0
    else:
        native = _decided(native)
        said, weight = [(native.chosen, True), (native.rejected, False)], native.weight
    return [
        Judgement(prompt=native.prompt, completion=answer, desirable=good, weight=weight, tools=native.tools)
        for answer, good in said
    ]


def _demonstration(native: Native, note: Note) -> Demonstration:
    """The preferred or desirable answer. Turns after the last answer of a conversation teach nothing: they are cut."""
    if isinstance(native, Judgement):
        if not native.desirable:
            raise BadRow("label", "undesirable", "the answer was called bad", content=True)
        prompt, completion, weight = native.prompt, native.completion, native.weight
    elif isinstance(native, Demonstration):
        prompt, completion, weight = native.prompt, native.completion, native.weight
    else:
        pair = _decided(native)
        prompt, completion, weight = pair.prompt, pair.chosen, pair.weight
    if not isinstance(completion, str):
        end = max((i + 1 for i, m in enumerate(completion) if m.role == "assistant" and m.learnt), default=0)
        if 0 < end < len(completion):
            note("unanswered last turn cut")
            completion = completion[:end]
    return Demonstration(prompt=prompt, completion=completion, weight=weight, tools=native.tools)


def _prompt(native: Native) -> Prompt:
    """What to answer: of a demonstration, everything before its last answer; of plain text, the text."""
    prompt = native.prompt
    if isinstance(native, Demonstration):
        if isinstance(native.completion, str):
            prompt = prompt or native.completion
        elif not isinstance(prompt, str):
            prompt = prompt + native.completion
            while prompt and prompt[-1].role == "assistant":
                prompt = prompt[:-1]
    return Prompt(prompt=prompt, tools=native.tools)


# -- what is worth learning from --------------------------------------------------------------------------------------


def check_content(record: AnyRecord) -> None:
    """Raises BadRow (content) at an empty prompt or answer, two equal answers, or half a character."""
    if isinstance(record, PreferencePair):
        _check_prompt(record.prompt)
        _check_two(record.chosen, record.rejected, "chosen", "rejected", record.prompt)
    elif isinstance(record, Comparison):
        _check_prompt(record.prompt)
        _check_two(record.answer_a, record.answer_b, "answer_a", "answer_b", record.prompt)
    elif isinstance(record, Judgement):
        _check_prompt(record.prompt)
        _check_answer(record.completion, "completion", record.prompt)
    elif isinstance(record, Demonstration):
        if record.prompt != "" or not isinstance(record.completion, str):
            _check_prompt(record.prompt)
        _check_answer(record.completion, "completion", record.prompt)
    else:
        _check_prompt(record.prompt)
    for part in _strings(record.tools) if record.tools else ():
        _check_characters(part, "tools")


def _check_two(a: Text, b: Text, a_name: str, b_name: str, prompt: Text) -> None:
    _check_answer(a, a_name, prompt)
    _check_answer(b, b_name, prompt)
    if a == b or (isinstance(a, str) and isinstance(b, str) and a.strip() == b.strip()):
        reason = f"{a_name} equals {b_name}"
        raise BadRow(f"{a_name}, {b_name}", reason, f"{reason}: there is nothing to prefer", content=True)


def _check_prompt(text: Text) -> None:
    if not (text.strip() if isinstance(text, str) else text):
        raise BadRow("prompt", "empty prompt", content=True)
    if not isinstance(text, str) and text[-1].role == "user" and not text[-1].speaks:
        raise BadRow("prompt", "empty prompt", "the last user turn is empty", content=True)
    _check_characters(text, "prompt")


def _check_answer(text: Text, field: str, prompt: Text) -> None:
    if text == () and not isinstance(prompt, str):
        roles = ", ".join(dict.fromkeys(m.role for m in prompt))
        detail = f"no turn of the assistant answers; roles found: {roles}"
        raise BadRow(field, f"empty {field}", detail, content=True)
    empty = not text.strip() if isinstance(text, str) else not text or not text[-1].speaks
    if empty:
        raise BadRow(field, f"empty {field}", "the answer is empty", content=True)
    if not isinstance(text, str) and text[-1].role != "assistant":
        detail = f"the conversation ends with the {text[-1].role} turn, not with an answer"
        raise BadRow(field, "ends without an answer", detail, content=True)
    if not isinstance(text, str) and not any(m.role == "assistant" and m.learnt and m.speaks for m in text):
        detail = "every turn of the assistant is empty or marked not to be learnt"
        raise BadRow(field, "no turn to learn", detail, content=True)
    _check_characters(text, field)


def _check_characters(text: Text, field: str) -> None:
    parts: list[str] = [text] if isinstance(text, str) else [m.content for m in text]
    if not isinstance(text, str):
        parts += [s for m in text if m.extra for s in _strings(m.extra)]
    for part in parts:
        if part.isascii():
            continue
        try:
            part.encode()
        except UnicodeEncodeError as e:
            detail = f"half a character (a lone surrogate \\u{ord(part[e.start]):04x}) at position {e.start}"
            raise BadRow(field, "broken character", detail, content=True) from None


def _strings(value: object) -> Iterator[str]:
    """All text in a value, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for k, v in value.items():
            yield from _strings(k)
            yield from _strings(v)
    elif isinstance(value, list | tuple):
        for v in value:
            yield from _strings(v)
