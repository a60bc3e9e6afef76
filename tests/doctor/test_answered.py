"""Answers of the data that repeat their prompt, stop in the middle, or come from a web page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prefiere.data.quality.faults import Faults
from prefiere.data.quality.marks import answer_faults, unended
from prefiere.data.schema import Demonstration, Judgement, Message, PreferencePair
from prefiere.doctor.case import Case, Finding
from prefiere.doctor.diagnose import diagnose
from prefiere.doctor.rules.answered import own_unended
from prefiere.doctor.rules.data import findings_of
from synthetic_runs import make


def account(answers: list[str], prompt: str = "What do you know of it?") -> dict[str, Any]:
    """Of records whose prompts differ in a number that comes first."""
    faults = Faults()
    for i, answer in enumerate(answers):
        faults.add(Demonstration(prompt=f"{i}: {prompt}", completion=answer, source=f"d:{i}"))
    return {"audit": {"faults": faults.to_dict()}}


def found(key: str, answers: list[str]) -> Finding | None:
    return next((f for f in findings_of(account(answers), preferences=False) if f.key == key), None)


SOUND = [f"It is the number {i} that I know of." for i in range(60)]


@pytest.mark.parametrize(
    ("text", "stops"),
    [
        ("It is a house.", False),
        ("It is a house", True),
        ("It is a house, ", True),
        ("It is one of these:", True),
        ("He said: “It is a house.”", False),
        ("It is as large as 14", False),  # a number may be the end of it
        ("a house", False),  # an answer of few words needs no full stop
        ("¿Es una casa grande?", False),
        ("これ は 家 です。", False),
        ("", False),
        ("   ", False),
    ],
)
def test_a_text_that_stops_in_the_middle(text: str, stops: bool) -> None:
    assert unended(text) is stops


@pytest.mark.parametrize(
    ("prompt", "answer", "faults"),
    [
        ("What is a house?", "What is a house? It is home.", ["echoed"]),
        ("What is a house?", "  what IS a\nhouse? It is home.", ["echoed"]),
        ("What is a house?", "It is home. What is a house?", []),
        ("What is a house?", "Question: What is a house?\nAnswer: It is home.", ["echoed"]),
        ("What is a house?", "### Instruction:\n\nWhat  is a house?", ["echoed"]),
        ("world war ii", "World War II was a war.", []),  # a term, and its article
        ("The great house of time", "# The great house of time\nIt was home.", []),  # a title
        ("What is a house?", "That is a hard one. You ask me: what is a house?", []),
        ("Go on?", "Go on? It is home.", []),  # so short a prompt is said again by chance
        ((Message("system", "Be kind."), Message("user", "What is a house?")), "What is a house? Home.", ["echoed"]),
        ("What is a house?", "<p>It is home.</p>", ["of_a_page"]),
        ("What is a house?", "Home &amp; garden.", ["of_a_page"]),
        ("What is a house?", "It is what one lives in.  It is what one lives in.", ["twice"]),
        ("What is a house?", "It is what one lives in. It is what one lives in. And so on.", []),
        ("What is a house?", "A home. A home.", []),
        ("What is a house?", "If a < b and b > c it is home; if i <a && b> i, List<P> or Vec<Li>.", []),
        ("What is a house?", "Write `<p>home</p>`:\n```html\n<div>home</div>\n```", []),
        ("What is a house?", "```html\n<div>home</div>", []),
        ("What is a house?", "It is home and", ["unended"]),
    ],
)
def test_what_an_answer_shows(prompt: Any, answer: str, faults: list[str]) -> None:
    assert list(answer_faults(Demonstration(prompt=prompt, completion=answer), answer)) == faults


def test_only_what_is_to_be_learnt_counts() -> None:
    """Of a pair the preferred answer, of single ones those that are not called bad; nothing of a tie."""
    faults = Faults()
    for label in (1.0, 0.2, 0.5):
        texts = ("It is a house and", "It is a house.")
        chosen, rejected = texts[::-1] if label == 0.2 else texts
        faults.add(PreferencePair(prompt="p", chosen=chosen, rejected=rejected, label=label, source="d:1"))
    for good in (True, False):
        faults.add(Judgement(prompt="p", completion="It is a house", desirable=good, source="d:2"))
    assert (faults.counts["unended"], faults.counts["to_learn"]) == (3, 3)


@pytest.mark.parametrize("share", [0.1, 0.25, 1.0])
@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("prompt_in_answer", lambda i, a: f"{i}: What do you know of it? {a}"),
        ("web_marks", lambda i, a: f"<p>{a}</p>"),
    ],
)
def test_a_part_of_the_answers_is_named_with_its_lines(key: str, change: Any, share: float) -> None:
    """A tenth, the low end of the interval, is where it begins: of 60, 15 are 16% at least and 6 are 5%."""
    answers = [change(i, a) if i < share * 60 else a for i, a in enumerate(SOUND)]
    finding = found(key, answers)
    assert (finding is not None) is (share > 0.2)
    if finding is not None:
        assert (finding.severity, finding.cause) == ("warning", True)
        assert finding.lines[:2] == ("d:0", "d:1")
        assert f"{100 * share:.0f}%" in finding.title
    assert found(key, SOUND) is None
    assert found(key, [change(i, a) for i, a in enumerate(SOUND[:19])]) is None  # too few


def long(i: int) -> str:
    """A text of some 90 to 150 characters."""
    return (
        f"It is the number {i} that I know of, and there are others as well: " + "so many more " * (2 + i % 5) + "too."
    )


def test_a_column_that_was_cut_at_a_length() -> None:
    """At 100 characters, as a database does; where all answers are whole, one has the greatest length."""
    whole = [long(i) for i in range(60)]
    cut = found("cut_off", [a[:100] for a in whole])
    assert cut is not None
    assert (cut.severity, cut.sure) == ("warning", "likely")
    assert "100 characters" in cut.title
    few = ["The correct answer to the question above is option " + "ABCD"[i % 4] for i in range(60)]
    same = found("cut_off", few)  # four texts
    assert same is not None
    assert same.severity == "info"
    refusal = "I am sorry, but that is nothing that I could ever answer for you, whatever you may say to me."
    mixed = [refusal if i % 5 == 0 else f"- one\n- two {i}" if i % 5 == 1 else a for i, a in enumerate(SOUND)]
    assert found("cut_off", mixed) is None
    assert found("cut_off", whole) is None
    alike = [f"It is the house that I know of, the one with the number {i}." for i in range(10, 70)]
    assert found("cut_off", alike) is None  # all of one length, and each of them ends


def test_no_more_are_cut_at_a_length_than_end_without_a_full_stop() -> None:
    """An account that a stranger wrote."""
    odd = account([a.rstrip(".") for a in SOUND])
    for count, severity in ((60, "warning"), (61, "info")):
        odd["audit"]["faults"]["at_the_limit"] = {"length": 100, "count": count}
        said = next(f for f in findings_of(odd, preferences=False) if f.key == "cut_off")
        assert (said.severity, "at the same length" in said.title) == (severity, severity == "warning")


def test_most_stop_in_the_middle_and_nothing_is_known_of_the_model() -> None:
    """People who write without full stops are heard of, and not warned of."""
    loose = found("cut_off", [a.rstrip(".") for a in SOUND])
    assert loose is not None
    assert loose.severity == "info"
    assert found("cut_off", [a.rstrip(".") if i < 30 else a for i, a in enumerate(SOUND)]) is None


@pytest.mark.parametrize(
    ("own", "severity"), [(0.0, "warning"), (0.6, "warning"), (1.0, None), (None, "info")], ids=str
)
def test_the_models_own_answers_are_what_the_data_is_held_against(
    tmp_path: Path, own: float | None, severity: str | None
) -> None:
    """Where the model itself writes without full stops, that is how it was taught."""
    run = make(tmp_path)
    run.data = {"train": account([a.rstrip(".") for a in SOUND])}
    if own is not None:
        rows = [{"step": 0, "completion": "It", "ended": True, "unended": i < own * 40} for i in range(40)]
        run.log_samples([*rows, {"step": 0, "ended": False, "unended": True}, {"step": 50, "unended": True}])
    finding = next((f for f in diagnose(run).findings if f.key == "cut_off"), None)
    assert (None if finding is None else finding.severity) == severity
    level = own_unended(Case(run))
    assert (None if level is None else (level.mean, level.n)) == (None if own is None else (own, 40))
