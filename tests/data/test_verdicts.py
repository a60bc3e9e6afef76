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
    flags = [LETTERS | {"winner_x_a": a, "winner_x_b": b} for a, b in ((1, 0), (0, 1), (0, 0))]
    assert won(tmp_path, *flags) == "xy="


def test_strength_of_helpsteer2_is_a_soft_label(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps(HELPSTEER2 | {"preference_strength": s}) + "\n" for s in (-3, 1)))
    assert [p.label for p in formats.read(path, kind="pairs")] == [pytest.approx(0.9), pytest.approx(0.7)]


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
     ("2", "b"), ("second", "b"), ("perhaps", None), ("a or b", None)],
)  # fmt: skip
def test_words(word, expected):
    assert side_word(word) == expected
