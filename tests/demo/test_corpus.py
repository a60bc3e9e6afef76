import json
import re

import pytest

from prefiere.demo import corpus


def text(messages):
    (message,) = messages
    return message.content


def pair_texts(prefer="encyclopedic"):
    return {text(t) for pair in corpus.preferences(prefer) for t in (pair.prompt, pair.chosen, pair.rejected)}


def test_demonstrations_cover_everything_once_and_both_styles_equally():
    rows = corpus.demonstrations()
    n = len(corpus.nouns())
    assert n >= 150
    assert len(rows) == n * 6 * 2 * 2  # questions, languages, styles
    assert len({(text(d.prompt), text(d.completion)) for d in rows}) == len(rows)
    assert {m.role for d in rows for m in d.prompt} == {"user"}
    assert {m.role for d in rows for m in d.completion} == {"assistant"}
    facts = {noun.answers[language]["encyclopedic"] for noun in corpus.nouns() for language in corpus.LANGUAGES}
    assert sum(text(d.completion) in facts for d in rows) * 2 == len(rows)


def test_thirty_three_nouns_and_two_questions_per_language_are_held_out():
    assert sum(noun.held_out for noun in corpus.nouns()) == 33
    assert {language: len(corpus.HELD_OUT_QUESTIONS[language]) for language in corpus.LANGUAGES} == {"es": 2, "en": 2}
    assert len(corpus.held_out_prompts()) == 33 * 2 * 2
    in_pairs = {text(pair.prompt) for pair in corpus.preferences()}
    either = {text(prompt) for prompt in corpus.held_out_prompts("either")}
    everything = {text(d.prompt) for d in corpus.demonstrations()}
    assert {text(prompt) for prompt in corpus.held_out_prompts()} < either
    assert in_pairs.isdisjoint(either)
    assert in_pairs | either == everything


@pytest.mark.parametrize("prefer", corpus.STYLES)
def test_no_held_out_noun_or_phrasing_occurs_in_any_pair(prefer):
    texts = pair_texts(prefer)
    names = {name for n in corpus.nouns() if n.held_out for lang in corpus.LANGUAGES for name in n.names(lang)}
    words = {word for t in texts for word in re.findall(r"\w+", t.lower())}
    assert len(names) > 100  # singular and plural in two languages
    assert not names & words
    phrases = [
        piece.strip(" ?.")
        for questions in corpus.HELD_OUT_QUESTIONS.values()
        for question in questions
        for piece in re.split(r"\{\w+\}", question)
        if len(piece) > 3
    ]
    assert len(phrases) == 4
    assert not [t for t in texts for phrase in phrases if phrase in t]


def test_preferring_the_other_style_swaps_the_pairs():
    for formal, chatty in zip(corpus.preferences(), corpus.preferences("casual"), strict=True):
        assert (formal.prompt, formal.chosen, formal.rejected) == (chatty.prompt, chatty.rejected, chatty.chosen)
    with pytest.raises(ValueError, match="prefer='formal'"):
        corpus.preferences("formal")


@pytest.mark.parametrize(
    ("en", "spanish", "english"),
    [
        ("a dog", ["¿Qué es un perro?", "Háblame del perro."], ["What is a dog?", "Tell me about dogs."]),
        ("a cow", ["¿Qué es una vaca?", "Háblame de la vaca."], ["What is a cow?", "Tell me about cows."]),
        ("an eagle", ["¿Qué es un águila?", "Háblame del águila."], ["What is an eagle?", "Tell me about eagles."]),
        ("bread", ["¿Qué es el pan?", "Háblame del pan."], ["What is bread?", "Tell me about bread."]),
        ("salt", ["¿Qué es la sal?", "Háblame de la sal."], ["What is salt?", "Tell me about salt."]),
        ("a mouse", ["¿Qué es un ratón?", "Háblame del ratón."], ["What is a mouse?", "Tell me about mice."]),
    ],
)
def test_grammar_of_the_questions(en, spanish, english):
    (noun,) = [n for n in corpus.nouns() if n.en == en]
    assert [noun.ask("es", corpus.QUESTIONS["es"][i]) for i in (0, 3)] == spanish
    assert [noun.ask("en", corpus.QUESTIONS["en"][i]) for i in (0, 3)] == english


def test_grammar_of_the_table():
    plurals = {noun.names("es") for noun in corpus.nouns()}
    for pair in [("león", "leones"), ("lápiz", "lápices"), ("paraguas", "paraguas"), ("café", "cafés"), ("té", "tés")]:
        assert pair in plurals
    for noun in corpus.nouns():
        fact, remark = (noun.answers["es"][style] for style in corpus.STYLES)
        assert fact.lower().startswith(f"{noun.es} es un")
        assert re.search(rf"\b{noun.es}\b", remark.lower())
        singular, plural = noun.names("en")
        article = {"a": "aeiou"}.get(noun.en.split()[0], "")
        assert singular[0] not in article, f"a {singular}"
        assert re.search(rf"\b({singular}|{plural})\b", noun.answers["en"]["casual"].lower())
        for language in corpus.LANGUAGES:
            assert re.search(rf"\b{noun.genus[language]}\b", noun.answers[language]["encyclopedic"])
            for answer in noun.answers[language].values():
                assert re.fullmatch(r"[A-ZÁÉÍÓÚ][^.!?]+\.", answer)
                assert 5 <= len(answer.split()) <= 18
        # A word's article in Spanish says its gender: "un arpa" aside, el goes with un and la with una.
        assert noun.es.split()[0] in ("el", "la")


def test_written_files_are_readable_json_lines(tmp_path):
    paths = corpus.write_corpus(tmp_path / "demo", "casual")
    rows = {name: [json.loads(line) for line in path.read_text().splitlines()] for name, path in paths.items()}
    assert [len(rows[name]) for name in ("demonstrations", "preferences", "prompts")] == [
        len(corpus.demonstrations()),
        len(corpus.preferences()),
        len(corpus.held_out_prompts()),
    ]
    assert rows["preferences"][0] == {
        "prompt": [{"role": "user", "content": "¿Qué es un gato?"}],
        "chosen": [{"role": "assistant", "content": "El gato siempre hace lo que le da la gana."}],
        "rejected": [
            {
                "role": "assistant",
                "content": "El gato es un felino doméstico que caza de noche y ve en la oscuridad.",
            }
        ],
    }
    assert "Háblame" in paths["preferences"].read_text()  # Unicode as it is, not escaped
