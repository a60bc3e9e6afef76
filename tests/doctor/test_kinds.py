"""What is of another kind than it should be: languages, held-out data, templates; and labels that are the prompt's."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
import pytest

from prefiere.data.convert import AnyRecord
from prefiere.data.quality.faults import Faults
from prefiere.data.quality.languages import asked_in, differ, language_of
from prefiere.data.quality.told import apart
from prefiere.data.schema import Demonstration, Judgement, Message, PreferencePair
from prefiere.doctor.case import Finding
from prefiere.doctor.diagnose import diagnose
from prefiere.doctor.dials import readings
from prefiere.doctor.plain.tell import told
from prefiere.doctor.rules.data import findings_of
from synthetic_runs import make


def said_of(records: list[AnyRecord], preferences: bool = True) -> dict[str, Finding]:
    faults = Faults()
    for record in records:
        faults.add(record)
    return {f.key: f for f in findings_of({"audit": {"faults": faults.to_dict()}}, preferences=preferences)}


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("What is a dog?", "English"),
        ("¿Qué es un perro?", "Spanish"),
        ("Qu'est-ce qu'un chien ?", "French"),
        ("Was ist ein Hund?", "German"),
        ("Che cos'è un cane?", "Italian"),
        ("O que é um cachorro?", "Portuguese"),
        ("Wat is een hond?", "Dutch"),
        ("Är det en hund?", "Swedish"),
        ("Kim jest ten człowiek i co robi się dla niego w domu?", "Polish"),
        ("Bu nedir ve ne için var?", "Turkish"),
        ("Apa itu dan bagaimana?", "Indonesian"),
        ("Как дела, друг мой?", "Cyrillic"),
        ("这是什么意思?", "Chinese"),
        ("これは何ですか", "Japanese"),
        ("이것은 무엇입니까", "Korean"),
        ("def f(x): return x in y", None),
        ("42 + 17", None),
        ("Explain photosynthesis", None),
        ("", None),
        ("Koira on eläin ja ystävä", None),
    ],
)
def test_the_language_of_a_text(text: str, language: str | None) -> None:
    assert language_of(text) == language


def test_a_long_text_is_told_by_its_beginning() -> None:
    english, spanish = (
        "What is it that you want of them? " * 100,
        "¿Qué es lo que se puede hacer con las de la casa? " * 100,
    )
    assert (language_of(english + spanish), language_of(spanish + english)) == ("English", "Spanish")
    assert language_of("ñ" * 100_000) is None


@pytest.mark.parametrize(
    "text",
    [
        "SELECT name FROM clients WHERE age > 1 AND city IS NOT NULL ORDER BY name",
        "for x in items:\n    if x is not None and x > 3:\n        total += x",
        "```python\nwith open(what) as it:\n    you = the.way(that)\n```",
        "where_is_my_order",
        "La casa",  # two words tell nothing
        "the cat of y el perro",  # as many of the one as of the other
        "Nominativo plurale: la gatta Minù, Torino, Fiat, Ferrari, Lamborghini, Maserati, Vespa, Piaggio, la Scala",
    ],
)
def test_code_and_what_is_mixed_have_no_language(text: str) -> None:
    assert language_of(text) is None


def talk(*turns: str) -> tuple[Message, ...]:
    return tuple(Message(*turn.split(":", 1)) for turn in turns)


@pytest.mark.parametrize(
    ("prompt", "language"),
    [
        ("What is it that you want?", "English"),
        (
            (Message("system", "You are the one that they ask."), Message("user", "sí, por favor, la de las rosas")),
            "Spanish",
        ),
        (talk("system:You are the one that they ask.", "user:sí, por favor, la de las rosas"), "Spanish"),
        (talk("system:You are the one that they ask.", "user:Cancelar"), None),
        (talk("user:¿Qué es lo que se puede hacer?", "assistant:What you want.", "user:OK"), "Spanish"),
        (talk("system:Answer in French, whatever you are asked.", "user:What is it that you want?"), None),
        ("请把下面的句子翻译成英文:我喜欢猫", None),
        ("Переведи на английский: я люблю кота", None),
        ("Hoe zeg je dat van de kat in het Engels?", None),
        ("I was in Turkey, and what I want to know is how they cook.", None),  # it may be about its language
    ],
)
def test_the_language_that_is_asked_in(prompt: str | tuple[Message, ...], language: str | None) -> None:
    assert asked_in(prompt) == language


def test_neighbours_are_not_told_apart() -> None:
    assert differ("English", "Spanish")
    assert differ("German", "English")
    assert not any(differ(a, b) for a, b in (("Spanish", "Portuguese"), ("Swedish", "German"), ("Chinese", "Japanese")))


ENGLISH, SPANISH = "It is one of those that you find in the house", "Es una de las que se encuentran en la casa"


def asked(i: int) -> str:
    return f"What is the thing of number {i}, and how do you use it?"


def row(kind: str, i: int, chosen: str, rejected: str, prompt: str = "") -> AnyRecord:
    prompt, source = prompt or asked(i), f"d:{i + 1}"
    if kind == "pairs":
        return PreferencePair(prompt=prompt, chosen=f"{chosen} {i}.", rejected=f"{rejected} {i + 7}.", source=source)
    if kind == "turned":
        return PreferencePair(
            prompt=prompt, chosen=f"{rejected} {i + 7}.", rejected=f"{chosen} {i}.", label=0.0, source=source
        )
    if kind == "singles":
        return Judgement(prompt=prompt, completion=f"{chosen} {i}.", desirable=True, source=source)
    return Demonstration(prompt=prompt, completion=f"{chosen} {i}.", source=source)


@pytest.mark.parametrize("kind", ["pairs", "turned", "singles", "demonstrations"])
@pytest.mark.parametrize(("wrong", "named"), [(0, False), (9, False), (10, True), (60, True)])
def test_answers_in_another_language_than_their_prompt(kind: str, wrong: int, named: bool) -> None:
    rows = [row(kind, i, SPANISH if i < wrong else ENGLISH, ENGLISH) for i in range(100)]
    said = said_of(rows, kind in ("pairs", "turned", "singles"))
    assert ("other_language" in said) is named
    if named:
        found = said["other_language"]
        assert (found.severity, found.values["share"], found.lines[0]) == ("warning", f"{wrong}%", "d:1")
        assert "Spanish where the prompt is English" in found.evidence[0]
        assert f"{wrong} ({wrong}%), sobre todo español donde se preguntó en inglés" in told(found, "es").seen[0]


@pytest.mark.parametrize(("clear", "said"), [(49, False), (50, True)])
def test_languages_that_are_clear_of_few_answers_say_nothing(clear: int, said: bool) -> None:
    """Of a language that is not known here some texts look like one that is."""
    part = {"of": 100, "clear": clear, "count": 30, "asked": "English", "spoken": "Spanish", "sources": []}
    found = findings_of({"audit": {"faults": {"languages": {"completion": part}}}}, preferences=False)
    assert ("other_language" in [f.key for f in found]) is said


def test_where_nearly_all_answers_differ_that_is_the_task() -> None:
    """A translation whose prompt names no language: information; of the preferred answers alone, a warning."""
    both = said_of([row("pairs", i, SPANISH, SPANISH) for i in range(100)])
    one = said_of([row("pairs", i, SPANISH, ENGLISH) for i in range(100)])
    assert (both["other_language"].severity, one["other_language"].severity) == ("info", "warning")


def test_other_answers_in_another_language_are_told_apart_from_those_to_be_learnt() -> None:
    [rows, bad] = [
        [row("pairs", i, ENGLISH, SPANISH if i < 50 else ENGLISH) for i in range(100)],
        [
            Judgement(prompt=asked(i), completion=f"{SPANISH} {i}.", desirable=False, source=f"d:{i}")
            for i in range(100)
        ],
    ]
    assert said_of(list(rows))["other_language"].said_as == "other_language_rejected"
    assert "other_language" not in said_of(list(bad))


@pytest.mark.parametrize(
    "prompt",
    [
        "Translate this for me into the other one: the house is red",
        "How do you say in Spanish that the house is red?",
        "Answer in French, as you would in the street: what is it?",
        "Traduce esto: the house that is red",
    ],
)
def test_where_a_language_is_named_any_may_be_wanted(prompt: str) -> None:
    rows = [row("pairs", i, SPANISH, SPANISH, f"{prompt} ({i})") for i in range(100)]
    assert "other_language" not in said_of(rows)


# -- labels of prompts -------------------------------------------------------------------------------------------------

OPENINGS = ("Explain", "Describe", "Compare", "Summarize")
FORMS = ("with a lot of words", "in short", "as it stands", "by the book")


def judged(rng: random.Random, good: Callable[[int, int], bool], n: int = 200) -> list[AnyRecord]:
    """Single answers whose label is that of their prompt's opening and their own form, by number."""
    out = list[AnyRecord]()
    for i in range(n):
        o, f = rng.randrange(4), rng.randrange(4)
        prompt, answer = f"{OPENINGS[o]} case {i} of {n}", f"Here is case {i} of {n} {FORMS[f]}"
        out.append(Judgement(prompt=prompt, completion=answer, desirable=good(o, f), source=f"d:{i}"))
    return out


@pytest.mark.parametrize("seed", range(3))
def test_labels_that_go_with_the_prompt(seed: int) -> None:
    rng = random.Random(seed)
    found = said_of(judged(rng, lambda o, f: (o < 2) != (rng.random() < 0.1)))["label_of_prompt"]
    assert found.severity == "warning"
    assert found.cause
    assert 80 <= int(found.values["share"].rstrip("%")) <= 97  # a tenth is otherwise
    for sound in (
        lambda o, f: f < 2,  # the answer decides
        lambda o, f: rng.random() < 0.5,  # nothing does
        lambda o, f: rng.random() < 0.95,  # and nearly all are good
        lambda o, f: f < 2 if rng.random() < 0.7 else o < 2,  # both, and the answer more
        lambda o, f: rng.random() < (0.6 if o < 2 else 0.4),  # some prompts are harder
    ):
        assert "label_of_prompt" not in said_of(judged(rng, sound))


def test_a_good_and_a_bad_answer_to_every_prompt_have_no_label_of_the_prompt() -> None:
    rows = list[AnyRecord]()
    for i in range(100):
        for good in (True, False):
            text = f"{'Certainly' if good else 'No way'}, {i}"
            rows.append(Judgement(prompt=asked(i), completion=text, desirable=good, source=f"d:{i}"))
    faults = Faults()
    for r in rows:
        faults.add(r)
    kinds = faults.to_dict()["kinds"]
    assert kinds["prompt"]["low"] <= 0.5
    assert kinds["answer"]["right"] == 1.0


# -- held-out data -----------------------------------------------------------------------------------------------------


def texts(rng: np.random.Generator, low: int, high: int, n: int = 100) -> list[np.ndarray]:
    return [rng.integers(low, high, 12).astype(np.int32) for _ in range(n)]


@pytest.mark.parametrize("seed", range(5))
def test_sets_of_the_same_kind_are_not_told_apart(seed: int) -> None:
    rng = np.random.default_rng(seed)
    same, other, few = (
        apart(texts(rng, 0, 300, n), texts(rng, low, low + 300, held))
        for n, held, low in ((400, 60, 0), (400, 60, 300), (400, 5, 300))
    )
    assert same is not None
    assert same["low"] <= 0.5
    assert same["right"] < 0.65
    assert other is not None
    assert other["low"] > 0.8
    assert few is None


def test_lengths_do_not_tell_sets_apart() -> None:
    """A set of tokens carries length: as many of each text are looked at."""
    rng = np.random.default_rng(0)
    short, long = ([rng.integers(0, 300, n).astype(np.int32) for _ in range(200)] for n in (20, 200))
    found = apart(short, long)
    assert found is not None
    assert found["low"] <= 0.5


def test_a_task_that_is_taught_among_others_is_no_other_task() -> None:
    """Of ten tasks, one is held out for the test: a tenth of what is trained on looks like it."""
    rng = np.random.default_rng(0)
    train = [rng.integers(300 * (i % 10), 300 * (i % 10) + 300, 60).astype(np.int32) for i in range(400)]
    found = apart(train, [rng.integers(0, 300, 60).astype(np.int32) for _ in range(60)])
    assert found is not None
    assert found["low"] > 0.8
    assert found["alike"] > 0.05
    none = apart(train, [rng.integers(9_000, 9_300, 60).astype(np.int32) for _ in range(60)])
    assert none is not None
    assert none["alike"] < 0.02


@pytest.mark.parametrize(
    ("low", "alike", "named"), [(0.8, 0.0, False), (0.81, 0.0, True), (0.81, 0.02, True), (0.81, 0.03, False)]
)
def test_held_out_data_of_another_kind(tmp_path: Path, low: float, alike: float, named: bool) -> None:
    run = make(tmp_path)
    run.data = {"apart": {"right": 0.97, "low": low, "high": 1.0, "n": 200, "alike": alike}}
    found = diagnose(run)
    assert ("another_task" in found) is named
    assert (found.severity == "good") is not named
    for strange in ([1], {"right": "x", "low": None, "n": -3}, {"low": 1e400, "n": 5}):
        run.data = {"apart": strange}
        assert "another_task" not in diagnose(run)


# -- templates, and which cause explains what --------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "said"), [(49, False), (50, True)])
def test_a_template_that_is_not_used(tmp_path: Path, count: int, said: bool) -> None:
    """Information, unless the run came to harm."""
    run = make(tmp_path)
    run.data = {"train": {"tokens": {"examples": 100, "template_unused": {"count": count, "sources": ["d:1"]}}}}
    found = {f.key: f for f in diagnose(run).findings}
    assert ("template_unused" in found) is said
    if said:
        [remedy] = found["template_unused"].remedies
        assert (remedy.setting, remedy.value) == ("template", "auto")
        assert found["template_unused"].severity == "info"
        run.status = run.status | {"state": "failed", "reason": "out of memory"}
        assert {f.key: f for f in diagnose(run).findings}["template_unused"].severity == "warning"


def shortcut(word: str) -> dict[str, Any]:
    return {"word": word, "side": "chosen", "pairs": 90, "of": 90, "low": 0.95}


@pytest.mark.parametrize(("word", "shown"), [(".", False), ("indeed", True)])
def test_answers_that_were_cut_explain_a_sign_and_no_word(tmp_path: Path, word: str, shown: bool) -> None:
    run = make(tmp_path)
    counts = {"to_learn": {"count": 100}, "unended": {"count": 90, "sources": []}, "shortcut": shortcut(word)}
    run.data = {
        "train": {
            "audit": {"faults": {"records": 100, "pairs": 100, **counts, "at_the_limit": {"length": 80, "count": 60}}}
        }
    }
    found = diagnose(run)
    assert "cut_off" in found
    assert ("shortcut_word" in found) is shown


def test_prompts_that_became_the_same_when_they_were_cut_are_no_leak(tmp_path: Path) -> None:
    run = make(tmp_path)
    leak = {"known_answers": {"examples": 30, "of": 60, "sources": []}}
    run.data = leak
    assert "known_answers" in diagnose(run)
    cut = {"train": {"tokens": {"examples": 100, "truncated_prompts": {"count": 100, "sources": []}}}}
    run.data = leak | cut
    found = diagnose(run)
    assert "cut" in found
    assert "known_answers" not in found
    answers = {"train": {"tokens": {"examples": 100, "truncated_completions": {"count": 100, "sources": []}}}}
    run.data = leak | answers  # these say nothing of the prompts
    assert "known_answers" in diagnose(run)


@pytest.mark.parametrize(
    ("method", "name", "value", "odd"),
    [
        ("dpo", "adam_beta2", 0.95, False),
        ("dpo", "adam_beta2", 0.99, False),
        ("dpo", "adam_beta2", 0.5, True),
        ("dpo", "adam_beta2", 0.0, True),
        ("ppo", "cliprange_value", 1e-4, True),
        ("ppo", "cliprange_value", None, False),
        ("ppo", "max_approx_kl", 1e-5, True),
        ("ppo", "num_mini_batches", 16, False),
        ("ppo", "num_mini_batches", 32, True),
        ("ppo", "kl_rollout_coef", 1.0, False),
        ("ppo", "kl_rollout_coef", 20.0, True),
    ],
)
def test_settings_that_are_read(method: str, name: str, value: float | None, odd: bool) -> None:
    [found] = [r for r in readings({"method": method, name: value}, {}) if r.dial.name == name]
    assert found.odd is odd


PLAIN = str.maketrans("áéíóú", "aeiou")


def spanish_words(n: int) -> list[str]:
    """Sentences of which 9 in 34 different words have an accent, ``n`` of them, each with a word of its own."""
    heads = [a + b for a in "bcdfglmnprst" for b in "áaeiou"]
    ends = [a + b for a in ("lla", "rro", "ndo", "sta", "mbre") for b in ("", "s", "da", "mente")]
    made = [head + end for head in heads for end in ends]
    return [
        f"El {made[i % len(made)]} es de la {made[(7 * i) % len(made)]} y no del que está en una." for i in range(n)
    ]


def spanish(n: int, lost: str, kind: str) -> list[AnyRecord]:
    """``n`` records with answers in Spanish, of which those of a side have lost their accents."""
    prompts = [f"¿Cómo es el número {i} de la lista y por qué está en ella?" for i in range(n)]
    texts = spanish_words(n)
    plain = [t.translate(PLAIN) for t in texts]
    if kind == "demonstrations":
        answers = plain if lost else texts
        return [Demonstration(prompt=p, completion=a, source=p) for p, a in zip(prompts, answers, strict=True)]
    chosen, rejected = (plain if lost == side else texts for side in ("chosen", "rejected"))
    return [
        PreferencePair(prompt=p, chosen=chosen[i], rejected=rejected[i - 1], source=p) for i, p in enumerate(prompts)
    ]


def decomposed(records: list[AnyRecord]) -> list[AnyRecord]:
    """The same with accents apart from their letters."""
    texts = ("prompt", "chosen", "rejected", "completion")
    return [replace(r, **{n: normalize("NFD", getattr(r, n)) for n in texts if hasattr(r, n)}) for r in records]


@pytest.mark.parametrize(
    ("lost", "kind", "said"),
    [
        ("", "pairs", None),
        ("", "demonstrations", None),
        ("chosen", "pairs", "The answers lack the accents of their language, Spanish."),
        ("rejected", "pairs", "The worse answers lack the accents of their language, Spanish."),
        ("completion", "demonstrations", "The answers lack the accents of their language, Spanish."),
    ],
)
def test_answers_without_the_accents_of_their_language(lost: str, kind: str, said: str | None) -> None:
    for form in ("NFC", "NFD"):  # as macOS writes accents: a letter, and what stands above it
        with_marks = spanish(300, lost, kind) if form == "NFC" else decomposed(spanish(300, lost, kind))
        found = said_of(with_marks, kind == "pairs").get("accents_lost")
        assert (found and told(found, "en").headline) == said
    if found is not None:
        assert found.severity == "warning"
        assert "español" in told(found, "es").headline


def test_few_words_without_accents_say_nothing_and_code_has_none() -> None:
    """A sentence that is always the same may well have no accent, however often it is there."""
    same = "El perro es de la casa y no del que vive en una calle con mi tia."
    again: list[AnyRecord] = [
        Demonstration(prompt=f"¿Por qué es así el número {i}?", completion=same, source="") for i in range(500)
    ]
    assert "accents_lost" not in said_of(again, False)
    code = "\n```python\n" + " ".join(f"name{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(80)) + "\n```"
    records: list[AnyRecord] = [
        Demonstration(prompt=f"¿Por qué es así el número {i}?", completion=text + code, source="")
        for i, text in enumerate(spanish_words(60))
    ]
    assert "accents_lost" not in said_of(records, False)


DIALOGUE = (
    Message("user", "I need help with sleeping."),
    Message("assistant", "Get up at the same hour every day."),
    Message("user", "And when I cannot?"),
)


@pytest.mark.parametrize(
    ("prompt", "again"),
    [
        (DIALOGUE, False),
        (tuple(m for m in DIALOGUE for _ in range(2)), True),
        ("Which of the five colours is it? Which of the five colours is it?", True),
        ("Which of the five colours is it?", False),
        ("no no no no no no no no", False),
        ((Message("user", "Go on"), Message("user", "Go on")), False),
        ((Message("user", "What is there?"), *[Message("tool", "no results found")] * 2), False),
        ((Message("user", "Say it is blue."), Message("assistant", "Say it is blue.")), False),
    ],
)
@pytest.mark.parametrize("twice", [30, 8])
def test_prompts_that_say_something_twice(prompt: str | tuple[Message, ...], again: bool, twice: int) -> None:
    records: list[AnyRecord] = [
        Demonstration(prompt=prompt, completion=f"Answer {i} it is.", source=f"d:{i}") for i in range(twice)
    ]
    records += [
        Demonstration(prompt=f"What of number {i} then?", completion=f"It is number {i}.", source="")
        for i in range(100 - twice)
    ]
    found = said_of(records, False).get("asked_twice")
    assert (found is not None) is (again and twice == 30)
    if found is not None:
        assert found.title == "30% of the prompts say something twice in a row."
        assert found.lines[0] == "d:0"


@pytest.mark.parametrize("contrary", [0, 3, 20])
@pytest.mark.parametrize("classes", [True, False])
def test_a_question_that_has_two_of_a_few_answers(contrary: int, classes: bool) -> None:
    """Of classes one of the two is wrong; in words a question has many answers."""
    names = ["positive", "negative", "neutral"]
    records: list[AnyRecord] = []
    for i in range(120):
        answer = names[i % 3] if classes else f"It is {i}, and that is all."
        records.append(Demonstration(prompt=f"How is review {i}?", completion=answer, source=""))
        if i < contrary:
            other = names[(i + 1) % 3] if classes else f"I would say {i}, or a little more."
            records.append(Demonstration(prompt=f"How is review {i}?", completion=other, source=f"d:{i}"))
    for order in (records, records[::-1]):
        found = said_of(order, False).get("answered_otherwise")
        assert (found is not None) is (classes and contrary == 20)
        if found is not None:
            assert found.title == "20 answers are not the one that their question has most often."
            assert found.severity == "info"


def test_one_answer_that_is_written_in_two_ways_is_one() -> None:
    """Nor do answers to nothing contradict each other."""
    ways: list[AnyRecord] = [
        Demonstration(prompt=f"How is review {i // 2}?", completion=("Positive.", "positive")[i % 2], source="")
        for i in range(200)
    ]
    assert "answered_otherwise" not in said_of(ways, False)
    nothing: list[AnyRecord] = [
        Demonstration(prompt="", completion=("positive", "negative")[i % 2], source="") for i in range(200)
    ]
    assert "answered_otherwise" not in said_of(nothing, False)
