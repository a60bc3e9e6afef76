"""Two answers and a verdict: which one won, in the words, numbers and scores of the sets that people hold."""

import json

import pytest

from prefiere.data import formats
from prefiere.data.formats import DataError
from prefiere.data.layouts.verdicts import side_word


def won(tmp_path, *rows, **options):
    """The chosen answer of each record: x stands on the first side, y on the second; "=" for a tie."""
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = list(formats.read(path, kind="pairs", **options))

    def said(text):
        return text if isinstance(text, str) else text[-1].content

    return "".join("=" if p.label == 0.5 else said(p.chosen) for p in pairs)


def rows_of(base, column, values):
    return [base | {column: v} for v in values]


PKU = {"prompt": "q", "response_0": "x", "response_1": "y"}
WEBGPT = {"question": {"dataset": "eli5", "id": "1", "full_text": "Why?"}, "answer_0": "x", "answer_1": "y"}
HELPSTEER2 = {"prompt": "q", "response_1": "x", "response_2": "y"}
ALPACA = {"instruction": "q", "output_1": "x", "output_2": "y", "annotator": "gpt"}
SHP = {"post_id": "a1", "history": "q", "human_ref_A": "x", "human_ref_B": "y", "score_A": 3, "score_B": 9}
LETTERS = {"prompt": "q", "response_a": "x", "response_b": "y"}
STUDIO = {"prompt": "q", "answer1": "x", "answer2": "y", "annotation_id": 3, "lead_time": 1.5}


@pytest.mark.parametrize(
    ("base", "column", "values", "expected"),
    [
        (PKU, "better_response_id", [0, 1, 1], "xyy"),
        (PKU, "safer_response_id", [1, 0], "yx"),
        (PKU, "better_response_id", [1, 1], "yy"),  # the columns are called 0 and 1
        (PKU, "better_response_id", ["1", "0"], "yx"),
        (PKU, "better", [1, 2], "xy"),  # 2 is no name of a column: counted from 1
        (HELPSTEER2, "preference_strength", [-3, 2, 0], "xy="),
        (HELPSTEER2, "winner", [1, 2], "xy"),
        (HELPSTEER2, "winner", [0, 1], "xy"),
        (ALPACA, "preference", [1, 2, 1.5, 1.2, 1.9], "xy=xy"),
        (ALPACA, "preference", [0, 1, 2], "=xy"),
        (SHP, "labels", [1, 0], "xy"),
        (LETTERS, "winner", [0, 1], "xy"),
        (LETTERS, "winner", [1, 2], "xy"),
        (LETTERS, "a_is_better", [1, 0], "xy"),
        (LETTERS, "first_wins", [True, False], "xy"),
        (LETTERS, "Winner", ["A", "b", "Tie"], "xy="),
        (LETTERS, "preferred", ["response_a", "Response B"], "xy"),
        (LETTERS, "choice", ["left", "right", "both"], "xy="),
        (LETTERS, "winner", ["model_a", "model_b", "tie"], "xy="),
        (LETTERS, "verdict", ["[[A]]", "[[B]]", "A>B", "B>>A", "A=B"], "xyxy="),
        (LETTERS, "preference", ["A is much better", "Response B is slightly better"], "xy"),
        (LETTERS, "preferred", ["x", "y"], "xy"),  # the answer itself
        (LETTERS | {"model_a": "gpt", "model_b": "claude"}, "winner", ["claude", "gpt"], "yx"),
        (STUDIO, "comparison", ["left", "right"], "xy"),
        (HELPSTEER2, "response_1_better", [1, 0], "xy"),
        (HELPSTEER2, "response_2_better", [1, 0], "yx"),
        (HELPSTEER2, "is_response_1_better", [True, False], "xy"),
        (PKU, "response_1_better", [1, 0], "yx"),  # the second is called 1
        (LETTERS, "a_is_better", ["TRUE", "FALSE"], "xy"),
        (LETTERS, "b_wins", ["true", "false"], "yx"),
        (LETTERS, "verdict", ["A is much better than B", "Response B is better than A"], "xy"),
        (LETTERS, "verdict", ["A and B are equally good", "It is a tie", "a draw"], "==="),
        ({"query": "q", "Option A": "x", "Option B": "y"}, "human_choice", ["Option B", "Option A"], "yx"),
        ({"question": "q", "left_response": "x", "right_response": "y"}, "vote", ["right", "left"], "yx"),
        ({"prompt": "q", "generation_one": "x", "generation_two": "y"}, "best", ["two", "one"], "yx"),
    ],
)  # fmt: skip
def test_verdicts(tmp_path, base, column, values, expected):
    assert won(tmp_path, *rows_of(base, column, values)) == expected


def test_scores_of_both_sides(tmp_path):
    scores = [(1.0, -1.0), (-0.5, 0.5), (0.0, 0.0)]
    rows = [WEBGPT | {"score_0": a, "score_1": b, "quotes_0": {"title": ["t"]}} for a, b in scores]
    assert won(tmp_path, *rows) == "xy="
    path = tmp_path / "d.jsonl"
    assert next(iter(formats.read(path, kind="prompts"))).prompt[0].content == "Why?"
    rows = [LETTERS | {"rating_a": a, "rating_b": b} for a, b in ((4, 2), (1, 2))]
    assert won(tmp_path, *rows) == "xy"
    flags = [LETTERS | {"human_winner_a": a, "human_winner_b": b} for a, b in ((1, 0), (0, 1), (0, 0))]
    assert won(tmp_path, *flags) == "xy="


def test_strength_of_helpsteer2_is_a_soft_label(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps(HELPSTEER2 | {"preference_strength": s}) + "\n" for s in (-3, 1)))
    assert [p.label for p in formats.read(path, kind="pairs")] == [pytest.approx(0.9), pytest.approx(0.7)]


def test_a_strength_without_a_sign_does_not_say_which(tmp_path):
    rows = [LETTERS | {"preferred": p, "preference_strength": s} for p, s in (("A", 1), ("B", 3), ("A", 3))]
    assert won(tmp_path, *rows) == "xyx"
    source = formats.read(tmp_path / "d.jsonl", kind="comparisons")
    assert [c.strength for c in source] == [pytest.approx(1 / 3), 1.0, 1.0]
    assert source.unread == []
    # words decide against any sign; a scale that nobody knows is not read, and named
    rows = [LETTERS | {"preferred": p, "preference_strength": s} for p, s in (("A", 2), ("B", -2), ("tie", 0))]
    assert won(tmp_path, *rows) == "xy="
    rows = [LETTERS | {"preferred": p, "preference_strength": s} for p, s in (("A", 7), ("B", 1))]
    assert won(tmp_path, *rows) == "xy"
    source = formats.read(tmp_path / "d.jsonl", kind="comparisons")
    assert ([c.strength for c in source], source.unread) == ([None, None], ["preference_strength"])


def test_a_pair_of_scores_decides_where_the_higher_is_better(tmp_path):
    toxic = {"toxicity_score_a": 0.1, "toxicity_score_b": 0.9}
    with pytest.raises(DataError, match=r"score_a: toxicity_score_a, score_b: toxicity_score_b"):
        won(tmp_path, LETTERS | toxic)
    mapped = {"score_a": "toxicity_score_a", "score_b": "toxicity_score_b"}
    assert won(tmp_path, LETTERS | toxic, columns=mapped) == "y"
    assert won(tmp_path, LETTERS | toxic | {"overall_score_a": 2, "overall_score_b": 1}) == "x"
    two = LETTERS | {"rating_a": 5, "rating_b": 1, "reward_model_score_a": 0.1, "reward_model_score_b": 0.7}
    with pytest.raises(DataError, match=r"columns=\{reward_model_score_a: none, reward_model_score_b: none\}"):
        won(tmp_path, two)
    assert won(tmp_path, two, columns={"reward_model_score_a": None, "reward_model_score_b": None}) == "x"


@pytest.mark.parametrize(
    "row",
    [
        {"winner": "m", "model_a": "m", "model_b": "m"},
        {"winner": "Model A", "model_a": "Model B", "model_b": "Model A"},  # the side, or the model of that name?
    ],
)
def test_a_winner_that_may_be_either_is_refused(tmp_path, row):
    with pytest.raises(DataError, match=r"d\.jsonl:1 \(winner\)"):
        won(tmp_path, LETTERS | row)


ARGILLA = {"prompt": "q", "response1": "x", "response2": "y", "model1": "qwen-7b", "model2": "mistral-v1"}


@pytest.mark.parametrize(
    ("said", "expected"), [("response-2", "y"), ("qwen-7b", "x"), ("mistral-v1", "y"), ("y", "y"), ("the first", "x")]
)
def test_a_label_of_argilla_is_read_whole(tmp_path, said, expected):
    assert won(tmp_path, ARGILLA | {"preference.responses": [said]}) == expected


SPANISH = {"Pregunta": "q", "Respuesta A": "x", "Respuesta B": "y"}


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("A", "x"),
        ("la segunda", "y"),
        ("Izquierda", "x"),
        ("B es mucho mejor", "y"),
        ("A es mejor que B", "x"),
        ("Respuesta B", "y"),
        ("Empate", "="),
        ("ambas malas", ""),
        ("Ninguna", ""),
    ],
)
@pytest.mark.parametrize("column", ["Mejor", "¿Cuál es mejor?", "preferencia", "Ganadora"])
def test_a_sheet_in_spanish(tmp_path, said, expected, column):
    assert won(tmp_path, SPANISH | {column: said, "Votante": "ana"}, SPANISH | {column: "A"}) == expected + "x"


def test_chosen_and_rejected_in_spanish(tmp_path):
    assert won(tmp_path, {"Instrucción": "q", "Elegida": "x", "Rechazada": "y"}) == "x"


@pytest.mark.parametrize("said", ["droite", "la deuxième", "llama-b", 2])
def test_a_label_of_argilla_that_names_no_side_is_refused(tmp_path, said):
    with pytest.raises(DataError, match=r"d\.jsonl:1 \(preference\.responses\): expected"):
        won(tmp_path, ARGILLA | {"preference.responses": [said]})


def test_a_number_beyond_all_numbers_is_one_line(tmp_path):
    long = 10**400
    with pytest.raises(DataError, match=r"d\.jsonl:1 \(margin\)"):
        won(tmp_path, {"prompt": "q", "chosen": "x", "rejected": "y", "margin": long})
    with pytest.raises(DataError, match=r"d\.jsonl:1 \(winner\)"):
        won(tmp_path, LETTERS | {"winner": long}, LETTERS | {"winner": 1}, LETTERS | {"winner": 0})
    with pytest.raises(DataError, match=r"d\.jsonl:1 \(created_at\)"):
        won(tmp_path, LETTERS | {"winner": "a", "created_at": long})


def test_both_bad_is_dropped_and_nothing_said_is_counted(tmp_path):
    path = tmp_path / "d.jsonl"
    rows = rows_of(LETTERS, "winner", ["a", "both bad", "neither", "tie (bothbad)", None, ""])
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    source = formats.read(path, kind="pairs")
    assert len(list(source)) == 1
    assert source.counts.dropped == {"both bad": 3, "unanswered": 2}


@pytest.mark.parametrize(
    ("base", "column", "values"),
    [
        (LETTERS, "winner", [1, 1]),  # counted from 0 or from 1?
        (HELPSTEER2, "winner", [1, 1]),  # 0/1 or 1/2, whatever the columns are called
        (HELPSTEER2, "winner", [0, 1, 2]),  # 0 and 1 with 2 for a tie, or 1 and 2 with 0 for one
        (LETTERS, "preferred", [True, False]),
        (LETTERS, "preferred", ["TRUE", "FALSE"]),
        (LETTERS, "response_1_better", [1, 0]),  # counted from 0 or from 1?
        (LETTERS, "preference_strength", [1, 3, 2]),  # how strongly, not which
        (LETTERS, "overall_preference", [1, 2]),
        (LETTERS, "label", [0, 1]),  # names a side, or says that the first is better?
        (LETTERS, "preference", [-1, 0, 1]),
        (LETTERS, "preference", [1, 2, 3, 4, 5]),
        (LETTERS, "preference", [0, 1, 2]),
        (HELPSTEER2, "preference_strength", [-3, 7]),
    ],
)
def test_numbers_whose_meaning_cannot_be_known_are_refused(tmp_path, base, column, values):
    with pytest.raises(DataError, match=column):
        won(tmp_path, *rows_of(base, column, values))


def test_a_column_map_says_what_the_numbers_mean(tmp_path):
    rows = rows_of(LETTERS, "label", [1, 0])
    with pytest.raises(DataError, match="winner_index: label"):
        won(tmp_path, *rows)
    assert won(tmp_path, *rows, columns={"winner_index": "label"}) == "yx"
    assert won(tmp_path, *rows, columns={"a_is_better": "label"}) == "xy"
    assert won(tmp_path, *rows_of(LETTERS, "label", [1, 1]), columns={"winner_number": "label"}) == "xx"
    signed = rows_of(LETTERS, "says", [-1, 1, 0])
    assert won(tmp_path, *signed, columns={"preference_strength": "says"}) == "xy="


def test_the_whole_column_decides_not_its_beginning(tmp_path):
    values = [1] * 60 + [0]
    assert won(tmp_path, *rows_of(LETTERS, "winner", values)) == "y" * 60 + "x"
    values = [1] * 60 + [2]
    assert won(tmp_path, *rows_of(LETTERS, "winner", values)) == "x" * 60 + "y"


def test_an_unknown_word_is_an_error_with_its_line(tmp_path):
    with pytest.raises(DataError, match=r"d\.jsonl:2 \(winner\): expected a, b, tie or both_bad .* found 'Mary'"):
        won(tmp_path, *rows_of(LETTERS, "winner", ["a", "Mary"]))


def test_of_two_verdicts_the_unread_one_is_named_and_can_be_taken(tmp_path):
    rows = [PKU | {"better_response_id": better, "safer_response_id": 1 - better} for better in (0, 1)]
    assert won(tmp_path, *rows) == "xy"
    source = formats.read(tmp_path / "d.jsonl", kind="pairs")
    assert source.unread == ["safer_response_id"]
    assert won(tmp_path, *rows, columns={"better_response_id": None}) == "yx"


def test_label_studio_with_choices(tmp_path):
    data = {"prompt": "q", "answer1": "x", "answer2": "y"}
    rows = [
        {"data": data, "annotations": [{"result": [{"type": "choices", "value": {"choices": [side]}}]}]}
        for side in ("right", "Answer 1")
    ]
    assert won(tmp_path, *rows) == "yx"


@pytest.mark.parametrize(
    ("word", "expected"),
    [("A", "a"), ("model_b", "b"), ("both bad", "both_bad"), ("Both are good", "tie"), ("draw", "tie"), ("", None),
     ("2", "b"), ("second", "b"), ("perhaps", None), ("a or b", None), ("B, same length", None),
     ("B (both correct)", None), ("A, none of the facts wrong", None), ("A is not better than B", None),
     ("A is better, B has the same length", None), ("neither A nor B", "both_bad"), ("about the same", "tie")],
)  # fmt: skip
def test_words(word, expected):
    assert side_word(word) == expected
