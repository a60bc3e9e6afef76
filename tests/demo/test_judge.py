import re

import pytest

from prefiere.demo import corpus, judge

ES, EN = "¿Qué es un perro?", "Tell me about dogs."


def verdict(prompt, completion):
    """(encyclopedic, casual, on topic) as 0 or 1."""
    rules = (judge.encyclopedic, judge.casual, judge.on_topic)
    return tuple(int(rule([prompt], [completion])[0]) for rule in rules)


@pytest.mark.parametrize(
    ("prompt", "completion", "expected"),
    [
        # As the table has it, and in other words.
        (ES, "El perro es un mamífero doméstico que desciende del lobo.", (1, 0, 1)),
        (EN, "A dog is a domestic mammal that descends from the wolf.", (1, 0, 1)),
        (EN, "Dogs descend from the wolf, and a dog is a domesticated mammal of the wolf line.", (1, 0, 1)),
        (EN, "The dog is a domesticated mammal, which descends from the wolf.", (1, 0, 1)),
        (ES, "El perro es el mejor amigo del hombre.", (0, 1, 1)),
        (EN, "A dog is man's best friend!", (0, 1, 1)),
        (ES, "¡El perro siempre es el mejor amigo del hombre!", (0, 1, 1)),
        # The right style about the wrong thing: another class, another fact, another noun, the other language.
        (ES, "El perro es un pez doméstico que desciende del lobo.", (1, 0, 0)),
        (ES, "El perro es un mamífero doméstico que desciende del gato.", (1, 0, 0)),
        (EN, "A dog is a bird of prey with sharp sight and strong claws.", (1, 0, 0)),
        (EN, "A cat is a domestic mammal that descends from the wolf.", (1, 0, 0)),
        (EN, "El perro es un mamífero doméstico que desciende del lobo.", (1, 0, 0)),
        (ES, "A dog is man's best friend.", (0, 1, 0)),
        (ES, "El gato siempre hace lo que le da la gana.", (0, 1, 0)),
        (ES, "El perro siempre hace lo que le da la gana.", (0, 1, 0)),
        # Both styles at once is neither.
        (ES, "El perro es un mamífero doméstico que siempre te quiere.", (0, 0, 0)),
        # No sentence, no style.
        (ES, "", (0, 0, 0)),
        (ES, "   ", (0, 0, 0)),
        (ES, "el el el", (0, 0, 0)),
        (ES, "El el el el el el el.", (0, 0, 0)),
        (ES, "El perro es un mamífero doméstico que", (0, 0, 0)),
        (ES, "perro es un mamífero doméstico que desciende del lobo.", (0, 0, 0)),
        (ES, "El perro es un mamífero que desciende que desciende que desciende del lobo.", (0, 0, 0)),
        (ES, "El perro es un mamífero mamífero que desciende del lobo.", (0, 0, 0)),
        (ES, "El perro es un mam\ufffdfero doméstico que desciende del lobo.", (0, 0, 0)),
        (ES, "El perro es un mamífero doméstico que desciende del lobo. perro lobo", (0, 0, 0)),
        (ES, "El perro nunca." + " siempre" * 50, (0, 0, 0)),
        (EN, "best best best best best.", (0, 0, 0)),
        (EN, "A dog is a mammal.", (0, 0, 0)),  # a class alone defines nothing
    ],
)
def test_verdicts_given_by_hand(prompt, completion, expected):
    assert verdict(prompt, completion) == expected


@pytest.mark.parametrize(
    "prompt",
    [
        "¿Qué es un perro?",
        "<|user|>¿Qué es un perro?<|end|><|assistant|>",
        "<|user|>Háblame del gato.<|end|><|assistant|>El gato hace lo que quiere.<|end|><|user|>¿Y el perro?<|end|>",
        "<|im_start|>user\n¿Cómo definirías un perro?<|im_end|>\n<|im_start|>assistant\n",
        "Dime algo sobre los perros",
    ],
)
def test_the_question_is_found_wherever_it_is(prompt):
    fact = "El perro es un mamífero doméstico que desciende del lobo."
    assert verdict(prompt, fact + "<|end|>") == (1, 0, 1)
    assert verdict(prompt, "El gato es un felino doméstico que caza de noche y ve en la oscuridad.")[2] == 0


def test_a_question_about_something_else_is_an_error_that_quotes_it():
    with pytest.raises(ValueError, match="not 'What is a zeppelin"):
        judge.on_topic(["What is a zeppelin?"], ["A zeppelin is a vehicle that floats in the air."])
    assert judge.encyclopedic(["What is a zeppelin?"], ["A zeppelin is a vehicle that floats in the air."]) == [1.0]


def test_every_answer_of_the_corpus_gets_its_own_verdict():
    for noun in corpus.nouns():
        for language in corpus.LANGUAGES:
            for question in corpus.QUESTIONS[language] + corpus.HELD_OUT_QUESTIONS[language]:
                prompt = noun.ask(language, question)
                assert verdict(prompt, noun.answers[language]["encyclopedic"]) == (1, 0, 1)
                assert verdict(prompt, noun.answers[language]["casual"]) == (0, 1, 1)


@pytest.mark.parametrize("language", corpus.LANGUAGES)
@pytest.mark.parametrize("style", corpus.STYLES)
def test_no_answer_passes_for_another_noun_even_under_its_name(language, style):
    nouns = corpus.nouns()[::3]
    for asked in nouns:
        prompt, name = asked.ask(language, corpus.QUESTIONS[language][0]), asked.names(language)[0]
        for other in nouns:
            names = "|".join(sorted(other.names(language), key=len, reverse=True))
            answer = re.sub(rf"\b({names})\b", name, other.answers[language][style], flags=re.IGNORECASE)
            answer = answer[0].upper() + answer[1:]
            assert judge.on_topic([prompt], [answer]) == [float(asked is other)], (prompt, answer)
