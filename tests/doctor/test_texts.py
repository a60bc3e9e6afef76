"""Texts of any kind of data: one answer or one prompt everywhere, and questions in the place of answers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

from prefiere.data.convert import AnyRecord
from prefiere.data.quality.faults import Faults
from prefiere.data.schema import Demonstration, Judgement, Message, PreferencePair, Prompt, Text
from prefiere.doctor.case import Finding
from prefiere.doctor.rules.data import findings_of


def found(records: Iterable[AnyRecord], preferences: bool = True) -> dict[str, Finding]:
    faults = Faults()
    for record in records:
        faults.add(record)
    return {f.key: f for f in findings_of({"audit": {"faults": faults.to_dict()}}, preferences=preferences)}


def record(kind: str, i: int, prompt: Text, answer: str) -> AnyRecord:
    """Of a pair the other answer is a sound one of its own."""
    if kind == "pairs":
        return PreferencePair(prompt=prompt, chosen=answer, rejected=f"A worse answer, number {i}.", source=f"d:{i}")
    if kind == "singles":
        return Judgement(prompt=prompt, completion=answer, desirable=True, source=f"d:{i}")
    return Demonstration(prompt=prompt, completion=answer, source=f"d:{i}")


KINDS = ["pairs", "singles", "demonstrations"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("share", "severity"), [(0.15, None), (0.3, "warning"), (0.6, "bad")])
def test_one_answer_everywhere(kind: str, share: float, severity: str | None) -> None:
    """As where a placeholder was left in: from a fifth on, and bad from half on."""
    rows = [
        record(kind, i, f"What is thing {i}?", "TODO: write it." if i < 60 * share else f"It is {i}.")
        for i in range(60)
    ]
    said = found(rows, kind != "demonstrations")
    assert (said["one_text"].severity if "one_text" in said else None) == severity
    if severity is not None:
        assert "TODO: write it." in said["one_text"].evidence[0]


def test_a_bad_answer_that_many_share_is_not_learnt() -> None:
    rows = [Judgement(prompt=f"What is {i}?", completion=f"It is {i}." if i % 2 else "No.", desirable=bool(i % 2))
            for i in range(60)]  # fmt: skip
    assert "one_text" not in found(rows)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("share", "said"), [(0.15, False), (0.3, True), (1.0, True)])
def test_one_prompt_everywhere(kind: str, share: float, said: bool) -> None:
    """A system text in the place of what was asked, or "nan"."""
    rows = [record(kind, i, "nan" if i < 60 * share else f"What is thing {i}?", f"It is {i}.") for i in range(60)]
    seen = found(rows, kind != "demonstrations")
    assert ("one_prompt" in seen) is said
    assert "one_prompt" not in found(rows[:19], kind != "demonstrations")  # few, as somebody tries it


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("prompts", "answers", "said"),
    [(0.0, 0.5, True), (0.0, 0.35, False), (0.5, 0.75, False), (0.3, 0.75, True), (0.8, 0.0, False), (0.0, 1.0, True)],
)
def test_questions_in_the_place_of_answers(kind: str, prompts: float, answers: float, said: bool) -> None:
    """Shares that end with a question mark: two in five of the answers, and 30% more than of the prompts."""
    rows = [
        record(
            kind,
            i,
            f"That is thing {i}" + ("?" if i < 60 * prompts else "."),
            f"So {i}" + ("？" if i < 60 * answers else "."),
        )
        for i in range(60)
    ]
    seen = found(rows, kind != "demonstrations")
    assert ("exchanged" in seen) is said
    if said:
        assert (seen["exchanged"].severity, seen["exchanged"].lines[0]) == ("warning", "d:0")


@pytest.mark.parametrize(
    "answer",
    [
        "That is so. Would you like more?",
        "Which one do you mean? That depends.",
        "It is. Is there anything else I can do?",
    ],
)
def test_answers_with_a_question_in_them_are_no_questions(answer: str) -> None:
    assert "exchanged" not in found(record("pairs", i, f"That is thing {i}.", f"{i}: {answer}") for i in range(60))


@pytest.mark.parametrize(("share", "said"), [(0.05, False), (0.2, True)])
def test_an_answer_that_stands_last_in_the_prompt(share: float, said: bool) -> None:
    """Roles that were exchanged."""

    def prompt(i: int) -> Any:
        turns = (Message("user", f"What is {i}?"), Message("assistant", "That?"))
        return turns if i < 60 * share else turns[:1]

    seen = found(record("pairs", i, prompt(i), f"It is {i}.") for i in range(60))
    assert ("after_answer" in seen) is said


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("classes", [("spam", "ham"), ("Yes.", "No."), ("a", "b", "c")])
def test_a_choice_among_a_few_answers_is_no_fault(kind: str, classes: tuple[str, ...]) -> None:
    """Four of five of the first class, whoever labelled them: neither one text, nor labels that look reversed."""
    rng = np.random.default_rng(0)
    rows: list[AnyRecord] = []
    for i in range(300):
        right = int(rng.random() > 0.8) * int(rng.integers(1, len(classes)))
        given = right if rng.random() < 0.7 else (right + 1) % len(classes)
        prompt = f"Which is {i}?"
        if kind == "pairs":
            rows.append(PreferencePair(prompt=prompt, chosen=classes[right], rejected=classes[right - 1]))
        elif kind == "singles":
            rows.append(Judgement(prompt=prompt, completion=classes[given], desirable=given == right))
        else:
            rows.append(Demonstration(prompt=prompt, completion=classes[right]))
    seen = found(rows, kind != "demonstrations")
    assert not {"one_text", "words_reversed"} & seen.keys()


def test_prompts_that_many_answers_share_are_no_single_one() -> None:
    """Four of them, with a hundred answers each; the first turn of dialogues; what a policy is asked."""
    several = [record("pairs", i, f"What is thing {i % 4}?", f"It is {i}.") for i in range(400)]
    turns = [
        Demonstration(
            prompt=(Message("user", "Hi"),),
            completion=(
                Message("assistant", "Hello."),
                Message("user", f"What is {i}?"),
                Message("assistant", f"{i}."),
            ),
        )
        for i in range(60)
    ]
    asked = [Prompt(prompt="What is it?") for _ in range(60)]
    for rows in (several, turns, asked):
        assert "one_prompt" not in found(rows)


@pytest.mark.parametrize("turns", [False, True])
def test_a_prompt_without_words_is_counted(turns: bool) -> None:
    """Plain text, which has none, and what a tool returned."""
    rows = [
        Demonstration(
            prompt=(Message("user", f"What is {i}?"), Message("tool", "")) if turns else "", completion=f"It is {i}."
        )
        for i in range(60)
    ]
    assert found(rows, False) == {}


@pytest.mark.parametrize(
    ("label", "margins", "said"),
    [
        (1.0, [0.0] * 60, "same score"),
        (1.0, [0.0] * 20 + [1.0] * 40, None),  # margins that are rounded
        (1.0, [1.0] * 60, None),
        (1.0, [-1.0] * 10 + [1.0] * 50, "lower score"),
        (1.0, [-1.0] * 4 + [1.0] * 56, None),
        (1.0, [None] * 60, None),
        (1.0, [0.0] * 10 + [None] * 50, None),
        (0.2, [-1.0] * 60, None),  # the other answer is the preferred one
        (0.2, [1.0] * 60, "lower score"),
    ],
)
def test_scores_that_do_not_say_what_the_label_says(
    label: float, margins: list[float | None], said: str | None
) -> None:
    seen = found(
        PreferencePair(
            prompt=f"What is {i}?", chosen=f"It is {i}.", rejected=f"No, {i}.", label=label, margin=m, source=f"d:{i}"
        )
        for i, m in enumerate(margins)
    )
    assert ("not_higher" in seen) is (said is not None)
    if said is not None:
        assert said in seen["not_higher"].title
        assert seen["not_higher"].lines[0] == "d:0"
