"""What nobody wants to teach, in answers; forms and words that tell good answers from bad; answers in their prompts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prefiere.data import formats
from prefiere.data.convert import AnyRecord
from prefiere.data.quality.faults import Faults
from prefiere.data.quality.leftovers import LEFTOVERS, left_in
from prefiere.data.quality.marks import forms_of
from prefiere.data.schema import Demonstration, Judgement, PreferencePair
from prefiere.doctor.case import Finding
from prefiere.doctor.diagnose import diagnose
from prefiere.doctor.plain.tell import told
from prefiere.doctor.rules.data import findings_of
from synthetic_runs import make


def said_of(records: list[AnyRecord], preferences: bool = True) -> dict[str, Finding]:
    faults = Faults()
    for record in records:
        faults.add(record)
    return {f.key: f for f in findings_of({"audit": {"faults": faults.to_dict()}}, preferences=preferences)}


LEFT = {
    "machine": "As an AI language model, I would say that it is blue.",
    "placeholder": "Dear [Your Name], it is blue.",
    "next_turn": "It is blue.\n\nHuman: And the other one?\n\nAssistant: Red.",
    "written_out": "['It is blue.']",
    "escaped": "It is blue.\\nAnd so is the sky.",
    "lost_letters": "El cami?n es azul.",
    "thought": "Okay, so the user wants a colour. It is blue.",
    "subwords": "▁It ▁is ▁blue",
    "stamped": "[00:12:03] It is blue.",
    "graded": "It is blue.\nRating: 3",
    "address": "https://example.org/blue",
    "unseen": "\ufeffIt is blue.",
    "loop": "It is as blue as it can be. It is as blue as it can be. It is as blue as it can be.",
}
ALSO_LEFT = [
    ("subwords", "先 把 材 料 洗 净 切 好 。 还 有 问 题 可 以 再 问 我 。"),
    ("escaped", "This does it:\\n\\n```python\\ndef f(x):\\n    return x\\n```\\n\\nThat is all."),
    ("graded", "It is blue, and so is the sky.\n\n[[8]]"),
]
SOUND = (
    "It is blue.",
    "AI is a field of computer science, and a model of language is one of its tools.",
    "`{name}` is filled in by f-strings, and `\\n` ends a line.",
    "```python\nprint('{user_name}\\n')\n```",
    "def f(x):\n    return f'{user_name}\\n'",
    "Is it? It is. Who? Me.",
    "See https://example.org/?a=b for more.",
    "先把材料洗净切好。还有 问题 可以再问我。",
    "```python\nre.split(r'\\n', text)\n```",
    "It is as said in [[8]], and in [[9]].",
    "生字：天 地 人 你 我 他 、 日 月。",
    "Like so:\n\n```python\nreturn f'{file_name}:\\n```python\\n{code}\\n```'\n```",
    "The train leaves at 12:03 and arrives at 14:10.",
    "1. Blue\n2. Red\n3. Green",
    "{'a': 1}",
    "[1, 2, 3]",
    "It is [a link](https://example.org), as in [1].",
    "No! No! No!",
    "He said: “It is ours.” He said nothing else.",
    "\\frac{n_x}{m_y} is what \\neq says.",
    "The score was 3 to 1.",
    "Todo está bien.",
    "Der Wert $\\mathbb{R}$ gilt.",
    "x_{max} of \\sqrt{x}",
    "GET /v1/things/{id} gives it.",
    "你想去吗?我想去。",
    "See example.org/x?id=3 for it.",
    "x $\\neq$ y, and \\nabla",
    "C:\\new\\folder",
    "12:30 from platform 4.",
    "> It is\n> as it is",
    "input: y\nuser: x",
    "OpenAI was founded in 2015.",
    "<think>It may be red.</think> It is blue.",
    "Okay, let me help you with that.",
    "Es kostet 3\xa0234\xa0567\xa0Euro.",
)


ASKED_FOR = {
    "machine": "Are you sentient?",
    "placeholder": "Draft a letter about its colour.",
    "next_turn": "Write a dialogue about its colour.",
    "written_out": "Give the colours as a Python list.",
    "escaped": "Write it as a JSON string.",
    "lost_letters": "Why is it cami?n here?",
    "thought": "Think step by step: what colour is it?",
    "subwords": "Which tokens does it have?",
    "stamped": "Give me the transcript.",
    "graded": "Rate its colour from 1 to 5.",
    "address": "What is its homepage?",
    "unseen": "\ufeffWhat colour is it?",
    "loop": "Write a song about its colour.",
}


def test_every_kind_of_leftover_is_known() -> None:
    assert LEFT.keys() == LEFTOVERS.keys() == ASKED_FOR.keys()


@pytest.mark.parametrize(("name", "answer"), ALSO_LEFT)
def test_other_forms_of_what_is_left(name: str, answer: str) -> None:
    assert list(left_in(answer, "What colour is it?")) == [name]


@pytest.mark.parametrize(
    ("text", "forms"),
    [
        ("x" + "\n" * 2000 + "y", {"=several lines"}),
        ("- a" + "\n" * 4000, set()),
        ("." * 4000, set()),
        ("[" * 4000, set()),
        ("a " * 1900 + "....", {"=small letters"}),
        ("{a_" * 1300, {"=small letters"}),
    ],
)
def test_texts_that_nearly_match_hold_nothing(text: str, forms: set[str]) -> None:
    """A pattern that goes back and forth would take hours on these."""
    assert list(left_in(text, "What colour is it?")) == []
    assert list(left_in("It is blue.", text)) == []
    assert forms_of(text) == forms


@pytest.mark.parametrize("name", LEFT)
def test_what_is_left_in_an_answer(name: str) -> None:
    assert list(left_in(LEFT[name], "What colour is it?")) == [name]
    assert list(left_in(LEFT[name], ASKED_FOR[name])) == []
    long = "It goes on. And on it goes. " * 10_000
    assert list(left_in(long + LEFT[name], "What colour is it?")) == []  # what comes late is not looked at


@pytest.mark.parametrize("text", SOUND)
def test_what_belongs_to_an_answer_is_not_left_over(text: str) -> None:
    assert list(left_in(text, "What colour is it?")) == []


@pytest.mark.parametrize("name", LEFT)
@pytest.mark.parametrize(("count", "said"), [(9, False), (10, True), (100, True)])
def test_leftovers_are_told_from_a_tenth_on(name: str, count: int, said: bool) -> None:
    rows: list[AnyRecord] = [
        Demonstration(
            prompt=f"What colour is thing {i}?", completion=LEFT[name] if i < count else f"It is {i}.", source=f"d:{i}"
        )
        for i in range(100)
    ]
    found = said_of(rows, preferences=False)
    assert ("left_over" in found) is said
    if said:
        assert (found["left_over"].about, found["left_over"].values["share"]) == (name, f"{count}%")
        english, spanish = (told(found["left_over"], tongue) for tongue in ("en", "es"))
        assert english.headline.startswith(f"{count}% of the answers hold what nobody wants to teach: ")
        assert spanish.headline.startswith(f"El {count}% de las respuestas contiene algo que nadie quiere enseñar: ")
        assert "{" not in english.headline + spanish.headline
        assert english.seen[0].split(":")[0] != spanish.seen[0].split(":")[0]


@pytest.mark.parametrize(
    ("text", "forms"),
    [
        ("IT IS AS BLUE AS IT CAN BE", {"=capitals"}),
        ("it is as blue as it ever can be", {"=small letters"}),
        ("Things:\n- blue\n- red", {"=lists", "=several lines"}),
        ("It is **blue**.", {"=bold"}),
        ("# Blue\nIt is.", {"=headings", "=several lines"}),
        ("It is blue , and red .", {"=spaces before signs"}),
        ("“It is blue.”", {"=quotes around it"}),
        ("It is blue.", set()),
        ("NASA", set()),
        ("", set()),
        ("你好" * 50, set()),
    ],
)
def test_forms_of_a_text(text: str, forms: set[str]) -> None:
    assert forms_of(text) == forms


def good(i: int) -> str:
    return f"Please press the button on the {i}th side, and wait for a while."


def bad(i: int) -> str:
    return f"Nobody knows what to do with the {i}th of those, I think."


Marked = Callable[[str], str]
FORMS: dict[str, Marked] = {
    "capitals": str.upper,
    "several_lines": lambda text: text.replace(",", ",\n"),
    "bold": lambda text: text.replace("the", "**the**"),
}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("side", ["preferred", "other", "good", "bad"])
def test_a_form_that_one_side_alone_has(name: str, side: str) -> None:
    texts = [(good(i), bad(i)) for i in range(60)]
    marked = [(FORMS[name](g), b) if side in ("preferred", "good") else (g, FORMS[name](b)) for g, b in texts]
    rows = list[AnyRecord]()
    for i, (g, b) in enumerate(marked):
        if side in ("preferred", "other"):
            rows.append(PreferencePair(prompt=f"What of {i}?", chosen=g, rejected=b, source=f"d:{i}"))
        else:
            rows += [
                Judgement(prompt=f"What of {i}?", completion=t, desirable=d, source=f"d:{i}")
                for t, d in ((g, True), (b, False))
            ]
    faults = Faults()
    for row in rows:
        faults.add(row)
    part = faults.to_dict()["shortcut_form"]
    names = {"preferred": "chosen", "other": "rejected"}
    assert part["side"] == names.get(side, side)
    account = {"audit": {"faults": {"pairs": 60, "shortcut_form": part | {"word": f"={name.replace('_', ' ')}"}}}}
    found = {f.key: f for f in findings_of(account)}["shortcut_form"]
    assert f"the {side} ones alone have" in found.title
    assert "{" not in told(found, "es").headline + "".join(told(found, "es").seen)


@pytest.mark.parametrize("side", ["good", "bad"])
@pytest.mark.parametrize(("marked", "said"), [(60, True), (30, False)])
def test_a_word_that_one_kind_of_single_answers_alone_has(side: str, marked: int, said: bool) -> None:
    rows = list[AnyRecord]()
    for i in range(60):
        for text, desirable in ((good(i), True), (good(i + 7), False)):
            if desirable == (side == "good") and i < marked:
                text += " Cheers!"
            rows.append(Judgement(prompt=f"What of {i}?", completion=text, desirable=desirable, source=f"d:{i}"))
    found = said_of(rows)
    assert ("shortcut_word" in found) is said
    if said:
        assert found["shortcut_word"].values["word"] in ("!", "cheers")
        assert f"stands in the {side} answer" in found["shortcut_word"].title
        assert f"{side} answers with" in found["shortcut_word"].evidence[0]


def test_which_word_is_named_does_not_hang_on_the_order_of_a_set() -> None:
    """Of words that tell equally well the first by the alphabet: a set's order changes with every process."""
    faults = Faults()
    for i in range(60):
        faults.add(
            PreferencePair(prompt=f"What of {i}?", chosen=f"{good(i)} zeta alpha", rejected=bad(i), source="d:1")
        )
    found = faults.shortcut()
    words = {w for w in faults.only[0] if faults.only[0][w] == found["pairs"] and not faults.only[1][w]}
    assert found["word"] == min(words)


# -- single answers: length, and labels as people write them -----------------------------------------------------------


def slow_share(good_lengths: list[int], bad_lengths: list[int]) -> float:
    wins = [1.0 if g > b else 0.5 if g == b else 0.0 for g in good_lengths for b in bad_lengths]
    return sum(wins) / len(wins)


@pytest.mark.parametrize("longer", [True, False])
def test_where_every_good_answer_is_the_longer_one(longer: bool) -> None:
    """A share of all, whose interval ends a rounding below 1."""
    rows: list[AnyRecord] = [
        Judgement(prompt=f"What of {i}?", completion="x" * (40 + i if i % 2 == longer else 20), desirable=i % 2 == 1)
        for i in range(320)
    ]
    found = said_of(rows)["length_tells"]
    assert (found.about, found.values["share"]) == ("longer" if longer else "shorter", "100%")


@pytest.mark.parametrize("seed", range(3))
def test_how_often_a_good_answer_is_the_longer_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    faults, lengths = Faults(), ([], [])
    for i in range(120):
        kind = int(rng.integers(2))
        text = "x" * int(rng.integers(1, 20) + 12 * (kind == 0))
        lengths[kind].append(len(text))
        faults.add(Judgement(prompt=f"What of {i}?", completion=text, desirable=kind == 0, source=f"d:{i}"))
    part = faults.to_dict()["longer"]
    assert part["right"] == pytest.approx(slow_share(*lengths))
    assert part["n"] == min(map(len, lengths))
    found = {f.key: f for f in findings_of({"audit": {"faults": {"longer": part}}})}
    assert ("length_tells" in found) is (part["low"] > 0.75)
    shorter = {"right": 1 - part["right"], "low": 1 - part["high"], "high": 1 - part["low"], "n": part["n"]}
    turned = {f.key: f for f in findings_of({"audit": {"faults": {"longer": shorter}}})}
    assert turned.keys() == found.keys()
    if found:
        assert (found["length_tells"].about, turned["length_tells"].about) == ("longer", "shorter")


def test_a_form_and_a_word_are_both_named_and_a_sign_is_its_form() -> None:
    """A word that leaks stands beside lists that one side alone has; the sign that a list begins with does not."""
    rows: list[AnyRecord] = [
        PreferencePair(
            prompt=f"What of {i}?",
            chosen=f"- {good(i)}{' zqleak' if i else ''}\n- and so on",
            rejected=bad(i),
            source=f"d:{i}",
        )
        for i in range(100)
    ]
    found = said_of(rows)
    assert {"shortcut_word", "shortcut_form"} <= found.keys()
    bold: list[AnyRecord] = [
        PreferencePair(prompt=f"What of {i}?", chosen=f"**{i}**", rejected=f"{i + 1}", source=f"d:{i}")
        for i in range(100)
    ]
    assert "shortcut_form" in said_of(bold)
    assert "shortcut_word" not in said_of(bold)


@pytest.mark.parametrize(
    "labels", [("right", "wrong"), ("pass", "fail"), ("y", "n"), (-1, -1), ("left", "right"), (1, 2, 3), ("a", "b")]
)
def test_classes_beside_demonstrations_cost_no_row(tmp_path: Path, labels: tuple[object, ...]) -> None:
    """A column of labels does not turn examples to imitate into good and bad ones, where these words are classes."""
    path = tmp_path / "d.jsonl"
    rows = [{"prompt": f"What of {i}?", "completion": good(i), "label": labels[i % len(labels)]} for i in range(12)]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    source = formats.read(path, kind="demonstrations")
    assert len(list(source)) == 12
    if labels not in (("right", "wrong"), ("pass", "fail"), ("y", "n")):
        with pytest.raises(formats.DataError):
            formats.read(path, kind="judgements")


@pytest.mark.parametrize(
    ("yes", "no"), [(1, -1), ("1", "-1"), ("y", "n"), ("Y", "N"), ("correct", "incorrect"), ("👍", "👎"), (1.0, -1.0)]
)
def test_labels_as_people_write_them(tmp_path: Path, yes: object, no: object) -> None:
    path = tmp_path / "d.jsonl"
    rows = [{"prompt": f"What of {i}?", "completion": good(i), "label": yes if i % 3 else no} for i in range(12)]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    read = list(formats.read(path, kind="judgements"))
    assert [r.desirable for r in read] == [bool(i % 3) for i in range(12)]


@pytest.mark.parametrize(
    ("column", "said"), [("label", True), ("rating", True), ("topic", False), ("__", False), ("grade_level", False)]
)
def test_grades_that_nobody_reads_are_told(tmp_path: Path, column: str, said: bool) -> None:
    path = tmp_path / "d.jsonl"
    rows = [{"prompt": f"What of {i}?", "completion": good(i), column: 1 + i % 5} for i in range(12)]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    source = formats.read(path, kind="demonstrations")
    assert len(list(source)) == 12
    assert bool(source.describe()["remarks"]) is said
    if said:
        assert f"{column} (1, 2, 3, 4, 5)" in source.describe()["remarks"][0]


# -- answers in prompts, first and last words --------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "said"), [(5, False), (30, True)])
def test_answers_that_stand_in_their_prompts(count: int, said: bool) -> None:
    rows: list[AnyRecord] = [
        PreferencePair(
            prompt=f"What of {i}?" + (f" Solution: {good(i)}" if i < count else ""),
            chosen=good(i), rejected=bad(i), source=f"d:{i}",
        )
        for i in range(100)
    ]  # fmt: skip
    assert ("answer_in_prompt" in said_of(rows)) is said
    both: list[AnyRecord] = [
        PreferencePair(prompt=f"{good(i)} Or: {bad(i)}", chosen=good(i), rejected=bad(i), source=f"d:{i}")
        for i in range(100)
    ]  # a choice that is offered
    assert "answer_in_prompt" not in said_of(both)


@pytest.mark.parametrize(("count", "said"), [(30, False), (40, True)])
def test_answers_that_end_or_begin_alike(count: int, said: bool) -> None:
    for key, mark in (("same_last", "{} Best wishes from Anna Smith"), ("same_first", "Sure! Here is it: {}")):
        rows: list[AnyRecord] = [
            Demonstration(
                prompt=f"What of {i}?",
                completion=mark.format(f"{i} is a number which comes after {i - 1} ({i})") if i < count
                else f"{i} comes before {i + 1} and after {i - 1}, and it is not {i + 2}",
                source=f"d:{i}",
            )
            for i in range(100)
        ]  # fmt: skip
        found = said_of(rows, preferences=False)
        assert (key in found) is said
        if said:
            assert found[key].severity == "info"


def test_what_is_taken_for_good_or_bad_in_a_hostile_account_is_no_crash(tmp_path: Path) -> None:
    run = make(tmp_path)
    for part in (
        {"left_machine": {"count": "x"}, "to_learn": {"count": 100}},
        {"left_machine": {"count": 90}, "left_<b>": {"count": 99}, "to_learn": {"count": 100}},
        {"longer": {"right": 5e9, "low": 1, "high": 2, "n": 4}},
        {"longer": {"right": 0.9, "low": 0.95, "high": 0.2, "n": 0.4}},
        {"kinds": {"prompt": {"right": 2, "low": 2, "high": 2, "n": 9}, "answer": 3}},
        {"ends": {"last": {"text": 7, "count": 50, "of": 60}, "first": []}},
        {"languages": {"chosen": {"of": 100, "clear": 100, "count": 50, "asked": {"a": 1}, "spoken": None}}},
        {"shortcut_form": {"word": "=nothing", "side": "x", "low": 0.99, "pairs": -1}},
    ):
        run.data = {"train": {"audit": {"faults": {"records": 100, "pairs": 100, **part}}}}
        found = diagnose(run)
        assert found.to_dict()["findings"]
        for finding in found.findings:
            assert told(finding, "es").headline


@pytest.mark.parametrize("name", [n for n in LEFTOVERS if n != "loop"])
def test_what_is_looked_for_first_is_there_wherever_it_is_found(name: str) -> None:
    """Every alternative of a pattern, as its own texts show, holds one of the hints."""
    more = {
        "machine": (
            *(
                "I am an AI and do not know.",
                "This was written by AI.",
                "Como modelo de lenguaje, no sé.",
                "I'm an AI.",
            ),
            *("En tant que modèle, je ne sais pas.", "Als KI-Sprachmodell weiß ich es nicht.", "I am ChatGPT."),
            *("My last update was in 2021.", "Según mi última actualización, sí.", "As a large language model, no."),
            *(
                "My knowledge cutoff is 2023.",
                "Generated by an AI.",
                "Como asistente de IA, no.",
                "Als Sprachmodell: nein.",
            ),
        ),
        "placeholder": ("{{ first_name }}", "{customer_name}", "Lorem ipsum", "TODO", "<your name>", "[tu nombre]"),
        "stamped": (
            "Sent from my iPhone",
            "Enviado desde mi móvil",
            "Von meinem iPhone gesendet",
            "(12:03) x",
            "1:02:03 x",
        ),
        "escaped": ("\\u5148", "\\xe9", 'hasn""t', "so.\\n\\nAnd"),
        "thought": ("Hmm, the user wants", "Alright, so the question is", "The user is asking for a colour."),
        "written_out": ("b'abc'", 'b"abc"', '{"text": "x"}', "{'role': 'x'}"),
        "graded": ("Score: 3/5", "Puntuación: 4,5", "Nota: 7", "Bewertung: 2", "grade=3"),
        "subwords": ("Spazi ##ergang", "Ġthe"),
        "unseen": ("a\xa0b\xa0c\xa0d",),
        "next_turn": ("x\n### Frage", "x.\nUser: y", "x.\nPregunta: y"),
    }
    for text in (LEFT[name], *more.get(name, ())):
        assert LEFTOVERS[name].pattern.search(text), text
        assert any(hint in text.lower() for hint in LEFTOVERS[name].hints), text


def test_of_a_word_and_its_sign_the_word_is_named() -> None:
    records: list[AnyRecord] = [
        PreferencePair(prompt=f"What is {i}?", chosen=f"Certainly! It is {i}.", rejected=f"It is {i}.", source="")
        for i in range(40)
    ]
    assert said_of(records)["shortcut_word"].values["word"] == "certainly"


@pytest.mark.parametrize(
    ("own", "answer", "severity"),
    [
        (None, "It is {}.", "warning"),
        (0, "It is {}.", "bad"),
        (40, "It is {}.", "info"),
        (40, "It is {}.</s>", "info"),
        (40, "[INST] It is {}.", "bad"),
        (40, "It is {}.<|eot_id|>", "bad"),  # of another model: it is not taken off
        (30, "It is {}.", "warning"),
    ],
)
def test_marks_of_the_models_own_template_are_none_to_take_out(own: int | None, answer: str, severity: str) -> None:
    """Prompts that the model's template wrote are taken as they are, marks within answers are learnt; without a model
    nobody knows whose marks these are."""
    faults = Faults()
    for i in range(40):
        chosen = answer.format(i)
        faults.add(
            PreferencePair(prompt=f"[INST] What is {i}? [/INST]", chosen=chosen, rejected="No.", source=f"d:{i}")
        )
    account: dict[str, Any] = {"audit": {"faults": faults.to_dict()}}
    if own is not None:
        account["tokens"] = {"examples": 40, "already_rendered": {"count": own, "sources": []}}
    found = {f.key: f for f in findings_of(account)}["template_in_text"]
    assert found.severity == severity
    assert any("--clean" in r for r in found.remedy) is (own == 30)  # where all have marks, none would stay
    assert (found.lines_of, len(found.lines)) == ((0, 0) if own == 30 or severity == "info" else (40, 20))
    assert found.sure == ("possible" if own is None else "sure")
