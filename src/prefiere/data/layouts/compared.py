"""Layouts that keep what somebody said: two answers side by side, who judged, when, and ties.

Arena, HelpSteer3, OpenAI's summaries, Argilla and Label Studio exports, Gemini's scored completions, Nectar's rankings.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from prefiere.data.dialogues import settle
from prefiere.data.layouts.columns import Layout, Native, Ranking, RowMap
from prefiere.data.layouts.names import Sides
from prefiere.data.layouts.two_answers import answers_of, asked_of, comparison, with_verdict
from prefiere.data.layouts.verdicts import preferred_side, verdict
from prefiere.data.messages import message, message_list, text
from prefiere.data.schema import Message, Preference, Text
from prefiere.data.values import BadRow, finite_number, moment, need, required_text, tools, wrong_type

# Of several Argilla questions, the one that asks for a preference.
_PREFERENCE_QUESTION = re.compile("prefer|better|best|chosen|choice|winner|rank|compar", re.IGNORECASE)


def _arena(row: RowMap) -> Iterator[Native]:
    """Chatbot Arena and MT-bench: two whole conversations; only the first ``turn`` rounds were judged."""
    a, b = (message_list(need(row, f"conversation_{s}"), f"conversation_{s}") for s in "ab")
    rounds = finite_number(row.get("turn"), "turn")
    if rounds:
        a, b = _first_rounds(a, int(rounds)), _first_rounds(b, int(rounds))
    judge = row.get("judge") or row.get("judge_hash")
    when = moment(row.get("tstamp", row.get("timestamp")))
    preference = verdict(need(row, "winner"), "winner")
    yield comparison(row, None, a, b, preference, annotator=judge, created_at=when)


def _first_rounds(conversation: tuple[Message, ...], rounds: int) -> tuple[Message, ...]:
    asked = [i for i, m in enumerate(conversation) if m.role == "user"]
    return conversation[: asked[rounds]] if len(asked) > rounds else conversation


def _arena_csv(row: RowMap) -> Iterator[Native]:
    """Arena as CSV: prompts and answers are JSON lists of rounds (or plain text), the winner is one of three flags."""
    asked, a, b = (_rounds(need(row, f), f) for f in ("prompt", "response_a", "response_b"))
    sides = []
    for answers in (a, b):
        turns = [t for q, s in zip(asked, answers, strict=False) for t in (Message("user", q), Message("assistant", s))]
        sides.append(tuple(turns))
    flags: dict[str, Preference] = {"winner_model_a": "a", "winner_model_b": "b", "winner_tie": "tie"}
    won = [preference for field, preference in flags.items() if finite_number(row.get(field), field)]
    if len(won) != 1:
        raise BadRow(
            "winner_model_a", "unknown verdict", "not exactly one of winner_model_a, winner_model_b, winner_tie is 1"
        )
    yield comparison(row, None, sides[0], sides[1], won[0])


def _rounds(value: Any, field: str) -> list[str]:
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            decoded = json.loads(value)
        except ValueError:
            decoded = None
        if isinstance(decoded, list) and all(isinstance(x, str | None) for x in decoded):
            value = decoded
    return [required_text(value, field)] if not isinstance(value, list) else [x or "" for x in value]


def _helpsteer(row: RowMap) -> Iterator[Native]:
    """HelpSteer3: -3 (the first is much better) to 3 (the second is), 0 a tie. The verdict of all, not of each."""
    score = finite_number(need(row, "overall_preference"), "overall_preference")
    if score is None:
        raise BadRow("overall_preference", "unanswered", "nobody gave a preference", content=True)
    preference: Preference = "tie" if score == 0 else "a" if score < 0 else "b"
    answers = text(need(row, "response1"), "response1"), text(need(row, "response2"), "response2")
    yield comparison(row, text(need(row, "context"), "context"), *answers, preference, strength=abs(score) / 3 or None)


def _summaries(row: RowMap) -> Iterator[Native]:
    """OpenAI's summaries; the prompt is the paper's TL;DR query (Stiennon et al. 2020, arXiv 2009.01325, appendix B).

    ``confidence`` is a point on a scale of 9 between the two summaries, with 5 in the middle.
    """
    about, two, choice = need(row, "info"), need(row, "summaries"), finite_number(need(row, "choice"), "choice")
    if not isinstance(two, Sequence) or len(two) != 2 or choice not in (0, 1):
        raise BadRow("summaries", "wrong type in summaries", "expected two summaries and a choice of 0 or 1")
    if about.get("post") is not None:
        prompt = (
            f"SUBREDDIT: r/{about.get('subreddit')}\n\nTITLE: {about.get('title')}\n\nPOST: {about['post']}\n\nTL;DR:"
        )
    else:
        prompt = f"{required_text(about.get('article'), 'info.article')}\n\nTL;DR:"
    confidence = finite_number((row.get("extra") or {}).get("confidence"), "extra.confidence")
    lean = 0.0 if confidence is None else (confidence - 5) / 4 * (1 if choice else -1)
    a, b = (required_text(s.get("text"), "summaries.text") for s in two)
    strength = lean if lean > 0 else None
    yield comparison(row, prompt, a, b, "b" if choice else "a", strength=strength, annotator=row.get("worker"))


def _gemini(row: RowMap) -> Iterator[Native]:
    """Gemini: two completions with a score each; the higher one is preferred."""
    context = message_list(need(row, "contents"), "contents")
    rules = row.get("system_instruction") or row.get("systemInstruction")
    if rules:
        system = message({"role": "system", **rules}, "system_instruction")
        context = (Message("system", system.content), *context)
    two = need(row, "completions")
    if not isinstance(two, Sequence) or len(two) != 2:
        raise wrong_type("completions", "two completions", two)
    a, b = (message_list(need(c, "completion"), "completions.completion") for c in two)
    high, low = (finite_number(need(c, "score"), "completions.score") or 0.0 for c in two)
    yield comparison(row, context, a, b, "a" if high > low else "b" if low > high else "tie")


def _sides(data: RowMap, where: str) -> tuple[Text, Text, Text, Sides]:
    """Prompt and two answers under any of their usual names, and which columns the answers are."""
    columns = [str(k) for k in data]
    pair = answers_of(columns, [data])
    asked = None if pair is None else asked_of(columns, [data], (pair.a, pair.b))
    if asked is None or pair is None:
        missing = "the two answers" if pair is None else "the prompt"
        detail = f"no column for {missing} (expected names such as prompt, answer1, answer2); found {', '.join(data)}"
        raise BadRow(where, f"missing column in {where}", detail)
    return text(data[asked], asked), text(data[pair.a], pair.a), text(data[pair.b], pair.b), pair


def _argilla(row: RowMap) -> Iterator[Native]:
    """Argilla 2 export: each submitted response is a comparison. Suggestions are nobody's verdict and are not used."""
    asked = [f.removesuffix(".responses") for f in row if f.endswith(".responses")]
    question = next((q for q in asked if _PREFERENCE_QUESTION.search(q)), asked[0] if asked else "preference")
    said = row.get(f"{question}.responses") or []
    people = row.get(f"{question}.responses.users") or [None] * len(said)
    states = row.get(f"{question}.responses.status") or ["submitted"] * len(said)
    submitted = [(v, p) for v, p, s in zip(said, people, states, strict=False) if s == "submitted" and v is not None]
    if not submitted:
        raise BadRow(f"{question}.responses", "unanswered", "no submitted response", content=True)
    prompt, a, b, sides = _sides(row, "fields")
    for value, person in submitted:
        yield comparison(row, prompt, a, b, _argilla_verdict(value, question, row, sides), annotator=person)


def _argilla_verdict(value: Any, question: str, row: RowMap, sides: Sides) -> Preference:
    """A label such as "response_2", or a ranking [{value, rank}] of the two."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        ranks = {
            _argilla_verdict(v["value"], question, row, sides): finite_number(v.get("rank"), question) or 0.0
            for v in value
        }
        if set(ranks) != {"a", "b"}:
            raise wrong_type(f"{question}.responses", "a ranking of two answers", value)
        return "tie" if ranks["a"] == ranks["b"] else "a" if ranks["a"] < ranks["b"] else "b"
    if not isinstance(value, str):
        raise wrong_type(f"{question}.responses", "the label of an answer", value)
    return preferred_side(value, row, sides, f"{question}.responses")


def _label_studio(row: RowMap) -> Iterator[Native]:
    """Label Studio: each annotation that was not cancelled is a comparison."""
    data = need(row, "data")
    prompt, a, b, sides = _sides(data, "data")
    answered = False
    for annotation in need(row, "annotations") or ():
        if annotation.get("was_cancelled"):
            continue
        person = annotation.get("completed_by")
        if isinstance(person, Mapping):
            person = person.get("email") or person.get("id")
        when = moment(annotation.get("created_at"))
        for result in annotation.get("result") or ():
            selected = _selected(result.get("value") or {}) if result.get("type") in ("pairwise", "choices") else None
            if selected is not None:
                answered = True
                said = preferred_side(selected, data, sides, "annotations.result.value")
                yield comparison(row, prompt, a, b, said, annotator=person, created_at=when)
    if not answered:
        raise BadRow("annotations", "unanswered", "no annotation chose a side", content=True)


def _selected(value: Mapping[str, Any]) -> Any:
    """The side of a pairwise result, or the only choice of a question with choices."""
    choices = value.get("choices")
    if isinstance(choices, list) and len(choices) == 1:
        return choices[0]
    return value.get("selected", choices if isinstance(choices, str) else None)


def _nectar(row: RowMap) -> Iterator[Native]:
    """Nectar: several answers with a rank each, 1 the best."""
    prompt = text(need(row, "prompt"), "prompt")
    ranked: list[tuple[float, Text]] = []
    for entry in need(row, "answers"):
        rank = finite_number(need(entry, "rank"), "answers.rank")
        answer = required_text(need(entry, "answer"), "answers.answer")
        prompt_form, settled, _ = settle(prompt, answer, answer)
        ranked.append((float("inf") if rank is None else rank, settled))
    if len(ranked) < 2:
        raise BadRow("answers", "fewer than two answers", content=True)
    yield Ranking(prompt=prompt_form, answers=tuple(sorted(ranked, key=lambda r: r[0])), tools=tools(row))


def _has_pairwise(row: RowMap) -> bool:
    return isinstance(row["data"], Mapping) and isinstance(row["annotations"], Sequence)


def _layout(name: str, fields: str, parse: Callable[[RowMap], Iterator[Native]], **kwargs: Any) -> Layout:
    return Layout(name, "comparisons", tuple(fields.split()), parse, **kwargs)


COMPARED = (
    with_verdict(
        "prompt", Sides("answer_a", "answer_b", "a", "b", ("answer",)), "preference", name="prefiere comparisons"
    ),
    _layout("Arena", "conversation_a conversation_b winner", _arena),
    _layout("Arena CSV", "prompt response_a response_b winner_model_a winner_model_b", _arena_csv),
    _layout("HelpSteer3", "context response1 response2 overall_preference", _helpsteer),
    _layout("OpenAI summarize", "info summaries choice", _summaries),
    _layout("Gemini", "contents completions", _gemini),
    _layout("Label Studio", "data annotations", _label_studio, when=_has_pairwise),
    _layout("Argilla", "", _argilla, when=lambda row: any(f.endswith(".responses") for f in row)),
    _layout("Nectar", "prompt answers", _nectar, when=lambda row: isinstance(row["answers"], list)),
)
