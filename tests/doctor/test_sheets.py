"""What exports and spreadsheets leave in texts: no answers at all, labels, codes, copies, words in another order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from prefiere.data import formats
from prefiere.data.convert import AnyRecord
from prefiere.data.quality.faults import Faults
from prefiere.data.quality.marks import is_coded, leading_label, no_answer, reordered, stands_in
from prefiere.data.schema import Demonstration, Judgement, PreferencePair
from prefiere.doctor.case import Finding
from prefiere.doctor.diagnose import diagnose
from prefiere.doctor.rules.data import findings_of
from synthetic_runs import beginning, make

THINGS = ("mower", "printer", "kettle", "router", "drone", "heater", "radio", "camera")


def said_of(records: list[AnyRecord], preferences: bool = True) -> dict[str, Finding]:
    faults = Faults()
    for record in records:
        faults.add(record)
    return {f.key: f for f in findings_of({"audit": {"faults": faults.to_dict()}}, preferences=preferences)}


def asked(i: int) -> str:
    return f"My {THINGS[i % 8]} number {i} does not work. What now?"


def good(i: int) -> str:
    return f"I am sorry to hear that about your {THINGS[i % 8]}. Please press its button {i} times."


def bad(i: int) -> str:
    return f"Well, every {THINGS[i % 8]} does that sometimes, {i} of them in a week."


Mistake = Callable[[int], tuple[str, str, str]]


def pairs(share: float, mistake: Mistake, n: int = 100) -> list[AnyRecord]:
    """Sound pairs, of which a share from the first on has the mistake."""
    rows = [mistake(i) if i < n * share else (asked(i), good(i), bad(i)) for i in range(n)]
    return [PreferencePair(prompt=p, chosen=c, rejected=r, source=f"d:{i + 1}") for i, (p, c, r) in enumerate(rows)]


REFUSALS = ("I cannot help with that.", "Sorry, no.", "That is not possible here.", "Please ask somebody else.")
MISTAKES: dict[str, tuple[float, Mistake]] = {
    "few_texts": (0.4, lambda i: (asked(i), REFUSALS[i % 4], bad(i))),
    "none_given": (0.1, lambda i: (asked(i), good(i), ("N/A", "none", "-", "#REF!")[i % 4])),
    "label_before": (0.3, lambda i: (asked(i), f"Response {1 + i % 2}: {good(i)}", bad(i))),
    "coded_prompts": (0.3, lambda i: (f"TCK-{20_000 + i}", good(i), bad(i))),
    "in_another_order": (0.3, lambda i: (asked(i), good(i), " ".join(reversed(good(i).split())))),
    "holds_other": (0.2, lambda i: (asked(i), f"{good(i)} {bad(i)}", bad(i))),
}


@pytest.mark.parametrize("key", MISTAKES)
def test_what_an_export_left_in_the_texts_is_named(key: str) -> None:
    share, mistake = MISTAKES[key]
    said = said_of(pairs(share, mistake))
    assert said[key].severity == "warning"
    assert f"{100 * share:.0f}%" in said[key].title
    assert not MISTAKES.keys() - {key} & said.keys() - {"few_texts"}
    assert not MISTAKES.keys() & said_of(pairs(share / 10, mistake)).keys()  # one or two rows are no kind


def test_sound_data_has_none_of_it() -> None:
    assert not MISTAKES.keys() & said_of(pairs(0, MISTAKES["few_texts"][1])).keys()


def test_demonstrations_are_held_against_these_as_well() -> None:
    def shown(answer: Callable[[int], str]) -> list[AnyRecord]:
        return [Demonstration(prompt=asked(i), completion=answer(i), source=f"d:{i}") for i in range(60)]

    assert "label_before" in said_of(shown(lambda i: f"Agent: {good(i)}"), False)
    assert "none_given" in said_of(shown(lambda i: "n/a" if i % 10 == 0 else good(i)), False)
    assert "few_texts" in said_of(shown(lambda i: REFUSALS[i // 2 % 4] if i % 2 else good(i)), False)
    assert not MISTAKES.keys() & said_of(shown(good), False).keys()


def test_none_is_an_answer_where_answers_are_a_choice() -> None:
    """As of a class "none": twenty texts, each there several times."""
    rows: list[AnyRecord] = [
        PreferencePair(prompt=asked(i), chosen=("none", "red", "blue")[i % 3], rejected=("red", "blue", "none")[i % 3])
        for i in range(90)
    ]
    assert not {"none_given", "few_texts"} & said_of(rows).keys()


def test_refusals_nearly_everywhere_are_no_classes() -> None:
    """Of classes the other answers are a choice among a few as well."""
    said = said_of(pairs(0.95, lambda i: (asked(i), REFUSALS[i % 4], bad(i))))
    assert {"few_texts", "one_text"} & said.keys()


def test_classes_beside_answers_in_words_are_no_few_texts() -> None:
    rows = pairs(1, lambda i: (asked(i), ("positive", "negative", "neutral")[i % 3], bad(i)))
    assert not {"few_texts", "one_text"} & said_of(rows).keys()


def test_a_form_that_is_wanted_is_information_and_how_answers_were_shown_a_warning() -> None:
    for label, severity in (("Thought", "info"), ("Response 2", "warning"), ("Agent", "warning")):
        said = said_of(pairs(1, lambda i, label=label: (asked(i), f"{label}: {good(i)}", bad(i))))
        assert said["label_before"].severity == severity


@pytest.mark.parametrize(
    ("count", "rest", "said"), [(48, 3, True), (48, 25, False), (20, 1, False), (0, 0, False), (200, 3, False)]
)
def test_the_others_must_speak_of_their_prompt_much_less(count: int, rest: int, said: bool) -> None:
    """Of 100 and 200: 48 are 38% at least, and 3 are 4.3% at most, 25 are 18%; 20 are 13%, too few to stand out."""
    filled = {"end": "first", "count": count, "of": 100, "rest": rest, "n": 200}
    found = findings_of({"audit": {"faults": {"records": 300, "filled": filled}}})
    assert ("filled_down" in {f.key for f in found}) is said


def test_bad_answers_at_a_prompt_may_speak_of_anything() -> None:
    """Of single answers the good one answers, and the bad ones refuse."""
    rows: list[AnyRecord] = [
        Judgement(prompt=f"My thing{i // 3} does not work.", completion=f"Turn the thing{i // 3} off, {i} times."
                  if i % 3 == 0 else f"I cannot help you with this, says number {i}.", desirable=i % 3 == 0)
        for i in range(300)
    ]  # fmt: skip
    assert "filled_down" not in said_of(rows)


def test_a_space_that_nobody_sees_is_named_by_its_number() -> None:
    said = said_of(pairs(1, lambda i: (asked(i), good(i).replace(" ", "\xa0"), good(i + 8))))
    assert "U+00A0" in said["shortcut_word"].title
    said = said_of(pairs(1, lambda i: (asked(i), f"\ufeff{good(i)}", good(i + 8))))
    assert "U+FEFF" in said["shortcut_word"].title


@pytest.mark.parametrize(
    "text", ["N/A", " n/a. ", "None", "NULL", "#REF!", "#DIV/0!", "-", "--", "?", "...", "(none)", "TODO", "[missing]"]
)
def test_what_says_that_there_is_no_answer(text: str) -> None:
    assert no_answer(text)


@pytest.mark.parametrize(
    "text", ["No.", "4", "Na+ ions", "None of them is right.", "�", "🙂", "¡Sí!", "x", "null, as in C", "{}", "[]"]
)
def test_short_answers_are_answers(text: str) -> None:
    assert not no_answer(text)


def test_labels_codes_orders_and_copies() -> None:
    assert leading_label("Response 1: it is so.") == "response #"
    assert leading_label("**Answer:** it is so.") == "answer"
    assert leading_label("Agent: hello") == "agent"
    assert leading_label("It is so: see below.") == "it is so"
    assert leading_label("https://example.org says so") is None
    assert leading_label("At 10:30 it begins.") is None
    assert leading_label("I would say that you can try this: turn it off.") is None
    assert leading_label("class Solution:\n    pass") is None
    assert leading_label('{"name": "Ana"}') is None
    assert all(map(is_coded, ("TCK-20014", "20014", "id_99", "#12", "123e4567-e89b-12d3-a456-426614174000")))
    assert not any(map(is_coded, ("12 + 7 =", "12+7=", "92-2", "9/3", "What is 7?", "Madrid", "perro", "why?")))
    assert not any(map(is_coded, ("计算3加6等于多少", "2026-11-29", "https://a.org/1", "x")))
    assert reordered("a b c d e f", "f e d c b a")
    assert not reordered("a b c d e f", "a b c d e f")
    assert not reordered("a b c", "c b a")
    assert stands_in("It is so, as they all say.", "Yes. It is so,  as they all SAY. And more.")
    assert not stands_in("It is so.", "It is so. And more.")


@pytest.mark.parametrize(("at", "end"), [(0, "first"), (2, "last")])
def test_prompts_that_were_filled_down_over_those_of_other_rows(at: int, end: str) -> None:
    """Every third row keeps its own prompt, and the two before or behind it get that one."""
    rng = np.random.default_rng(0)
    things = [f"thing{i}" for i in range(60)]
    about = [str(t) for t in rng.choice(things, 300)]

    def rows(filled: bool) -> list[AnyRecord]:
        asked_of = [about[i - i % 3 + at] if filled else about[i - i % 3] for i in range(300)]
        said = about if filled else asked_of
        return [
            PreferencePair(prompt=f"My {a} does not work, says {i // 3}.", chosen=f"Turn the {s} off and on {i} times.",
                           rejected=f"Every {s} does that, {i} in a week.", source=f"d:{i}")
            for i, (a, s) in enumerate(zip(asked_of, said, strict=True))
        ]  # fmt: skip

    found = said_of(rows(True))["filled_down"]
    assert f"the {end} one alone" in found.title
    assert found.severity == "bad"
    assert "filled_down" not in said_of(rows(False))


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_the_header_of_a_table_that_was_put_behind_another_is_no_record(tmp_path: Path, suffix: str) -> None:
    columns = ("prompt", "chosen", "rejected")
    rows = [columns, *((f"q{i}", f"yes {i}", f"no {i}") for i in range(3)), columns, ("q9", "yes", "no")]
    path = tmp_path / f"d.{suffix}"
    if suffix == "csv":
        path.write_text("\n".join(",".join(r) for r in rows) + "\n")
    else:
        formats.write([PreferencePair(prompt=p, chosen=c, rejected=r) for p, c, r in rows[1:]], path)
    source = formats.read(str(path), kind="pairs")
    assert [r.prompt for r in source] == ["q0", "q1", "q2", "q9"]
    assert source.counts.dropped == {"header in the middle": 1}


def test_a_header_with_the_mark_of_its_encoding_or_an_empty_column_is_one(tmp_path: Path) -> None:
    """As two exports of a sheet, one behind the other; a row of one word that is a column's name is not."""
    text = "prompt,chosen,rejected,note\nq0,yes,no,\n\ufeffprompt,chosen,rejected,\nq1,yes,no,chosen\n,chosen,,\n"
    (tmp_path / "d.csv").write_text(text)
    source = formats.read(str(tmp_path / "d.csv"), kind="pairs")
    assert [r.prompt for r in source] == ["q0", "q1"]
    assert source.counts.dropped["header in the middle"] == 1
    assert source.counts.dropped.total() == 2


def test_any_record_of_a_prompt_may_be_looked_at() -> None:
    """Where a cell was filled down, only the first record of a prompt is in its place."""
    from prefiere.evaluate.start import few
    from prefiere.tokens.groups import GroupStore, PromptGroup

    def group(i: int) -> PromptGroup:
        ids = [np.asarray(x, np.int32) for x in ([1, i // 3], [2, i], [3, i])]
        return PromptGroup(ids[0], tuple(ids[1:]), tuple(np.ones(2, bool) for _ in range(2)))

    store = GroupStore.build([group(i) for i in range(300)], 2)
    places = np.asarray(few(store, 16 * 60)) % 3
    assert min(np.bincount(places, minlength=3)) >= 8
    assert few(store, 16 * 60) == few(store, 16 * 60)


def test_a_sign_does_not_take_the_place_of_answers_that_ruin_a_run(tmp_path: Path) -> None:
    """Of another writer, whose every answer has an exclamation mark: less likely than blind tokens (ln 32,000)."""
    word = {"word": "!", "side": "chosen", "pairs": 90, "of": 90, "low": 0.95}
    for logp, keys in ((-10.5, ("foreign_answers", "shortcut_word")), (-5.0, ("shortcut_word",))):
        run = beginning(make(tmp_path / str(logp)), chosen_logp=logp)
        run.environment = {"vocabulary": 32_000}
        run.data = {"train": {"audit": {"faults": {"records": 100, "pairs": 100, "shortcut": word}}}}
        found = [f.key for f in diagnose(run).findings if f.key in ("foreign_answers", "shortcut_word")]
        assert tuple(found) == keys


def test_information_takes_the_place_of_no_warning(tmp_path: Path) -> None:
    """A form that is wanted says nothing of a word that gives the labels away."""
    word = {"word": "thought", "side": "chosen", "pairs": 90, "of": 90, "low": 0.95}
    label = {"to_learn": {"count": 100}, "label": {"label": "thought", "count": 90}}
    run = make(tmp_path)
    run.data = {"train": {"audit": {"faults": {"records": 100, "pairs": 100, "shortcut": word, **label}}}}
    found = {f.key: f.severity for f in diagnose(run).findings}
    assert (found["label_before"], found["shortcut_word"]) == ("info", "warning")


@pytest.mark.parametrize(("count", "severity"), [(4, None), (5, "info"), (49, "info"), (50, "warning")])
def test_system_messages_that_a_template_leaves_out(tmp_path: Path, count: int, severity: str | None) -> None:
    run = make(tmp_path)
    run.data = {"train": {"tokens": {"examples": 100, "system_left_out": {"count": count, "sources": ["d:1"]}}}}
    assert {f.key: f.severity for f in diagnose(run).findings}.get("system_dropped") == severity


@pytest.mark.parametrize(("count", "said"), [(49, False), (50, True)])
def test_a_template_that_does_not_ask(tmp_path: Path, count: int, said: bool) -> None:
    run = make(tmp_path)
    run.data = {"train": {"tokens": {"examples": 100, "unasked": {"count": count, "sources": ["d:1"]}}}}
    assert ("unasked" in [f.key for f in diagnose(run).findings]) is said
