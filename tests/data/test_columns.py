"""Every column is read, or named; names in any spelling; what is guessed is refused where a text would be lost."""

import json
from dataclasses import replace

import pytest

from prefiere.data import formats
from prefiere.data.formats import DataError
from prefiere.data.layouts.names import map_to_give, side_by_side
from prefiere.data.schema import Message


def source_of(tmp_path, *rows, kind="pairs", name="d.jsonl", **options):
    path = tmp_path / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return formats.read(path, kind=kind, **options)


def user(text):
    return (Message("user", text),)


ANSWERS = {"chosen": "The sea is deep.", "rejected": "The sea is dry."}
CHAT = {
    "chosen": [{"role": "user", "content": "How deep?"}, {"role": "assistant", "content": "Deep."}],
    "rejected": [{"role": "user", "content": "How deep?"}, {"role": "assistant", "content": "Dry."}],
}


@pytest.mark.parametrize("column", ["query", "problem", "Prompt", "USER PROMPT", "user-prompt", "inputText"])
def test_a_prompt_under_another_name_is_read(tmp_path, column):
    (pair,) = source_of(tmp_path, {column: "How deep is the sea?"} | ANSWERS)
    prompt = pair.prompt if isinstance(pair.prompt, str) else pair.prompt[-1].content
    assert prompt == "How deep is the sea?"


@pytest.mark.parametrize("column", ["context", "source", "text", "post", "user", "conversation", "what they wrote"])
def test_a_guess_is_refused_while_a_text_is_unread(tmp_path, column):
    row = {column: "How deep is the sea?", "lang": "en", "id": "a1"} | ANSWERS
    with pytest.raises(DataError) as e:
        source_of(tmp_path, row)
    assert f"{column} would not be read" in str(e.value)
    given = map_to_give({"prompt": column})
    assert given in str(e.value)
    assert "lang would" not in str(e.value)
    (pair,) = source_of(tmp_path, row, columns={"prompt": column})
    assert (pair.prompt, pair.chosen) == ("How deep is the sea?", "The sea is deep.")
    (pair,) = source_of(tmp_path, row, columns={column: None})
    assert (pair.prompt, pair.chosen) == ("The sea is", " deep.")


def test_a_guess_stands_beside_names_numbers_and_addresses(tmp_path):
    row = {"source": "evol", "id": "2024-05-01T12:00:00Z", "url": "https://a.b/c d", "n": 7, "sha": "0a1b" * 10}
    source = source_of(tmp_path, row | ANSWERS)
    assert len(list(source)) == 1
    assert source.unread == ["source", "id", "url", "n", "sha"]


@pytest.mark.parametrize("kind", ["demonstrations", "prompts"])
def test_plain_text_is_refused_beside_another_text(tmp_path, kind):
    with pytest.raises(DataError, match="title would not be read"):
        source_of(tmp_path, {"title": "On the sea", "text": "It is deep."}, kind=kind)
    source = source_of(tmp_path, {"title": "On the sea", "text": "It is deep."}, kind=kind, columns={"title": None})
    assert source.layout.name == "text"


def test_prompts_alone_are_read_beside_answers_but_not_beside_a_context(tmp_path):
    row = {"prompt": "How deep?", "ground_truth": "About four kilometres.", "solution": "It is so."}
    source = source_of(tmp_path, row, kind="prompts")
    assert [p.prompt for p in source] == ["How deep?"]
    assert source.unread == ["ground_truth", "solution"]
    with pytest.raises(DataError, match="passage would not be read"):
        source_of(tmp_path, {"prompt": "How deep?", "passage": "A long text about the sea."}, kind="prompts")


def test_columns_that_are_not_read_are_named_wherever_they_appear(tmp_path):
    rows = [{"prompt": "q", "chosen": f"x{i}", "rejected": "y", "empty": None} for i in range(40)]
    rows[39] |= {"context": "Only here.", "margin": 2}
    source = source_of(tmp_path, *rows)
    assert source.unread == []
    assert len(list(source)) == 40
    assert source.unread == ["context"]
    assert source.describe()["unread_columns"] == ["context"]
    assert source.unread_lines() == ["columns not read: context"]


LAYOUTS_WITH_A_SYSTEM = [
    {"prompt": "How deep?"} | ANSWERS,
    {"question": "How deep?"} | ANSWERS,
    CHAT,
    {"prompt": "How deep?"} | CHAT | {"score_chosen": 5, "score_rejected": 1},
    {"chosen_messages": CHAT["chosen"], "rejected_messages": CHAT["rejected"]},
    {"messages": CHAT["chosen"], "rejected_response": "Dry."},
    {"messages": CHAT["chosen"], "rejected_messages": CHAT["rejected"]},
    {"chosen_conversations": CHAT["chosen"], "rejected_conversations": CHAT["rejected"]},
    {"conversations": CHAT["chosen"][:1], "chosen": CHAT["chosen"][1], "rejected": CHAT["rejected"][1]},
    {"input": {"messages": CHAT["chosen"][:1]}, "preferred_output": CHAT["chosen"][1:],
     "non_preferred_output": CHAT["rejected"][1:]},
    {"chosen": "\n\nHuman: How deep?\n\nAssistant: Deep.", "rejected": "\n\nHuman: How deep?\n\nAssistant: Dry."},
    {"prompt": "How deep?", "response_a": "Deep.", "response_b": "Dry.", "winner": "model_a"},
    {"conversation_a": CHAT["chosen"], "conversation_b": CHAT["rejected"], "winner": "model_a"},
    {"context": CHAT["chosen"][:1], "response1": "Deep.", "response2": "Dry.", "overall_preference": -1},
    {"prompt": "How deep?", "answers": [{"answer": "Deep.", "rank": 1}, {"answer": "Dry.", "rank": 2}]},
    {"data": {"prompt": "How deep?", "answer1": "Deep.", "answer2": "Dry."},
     "annotations": [{"result": [{"type": "pairwise", "value": {"selected": "left"}}]}]},
]  # fmt: skip


@pytest.mark.parametrize("column", ["system", "system_prompt", "System Message"])
@pytest.mark.parametrize("row", LAYOUTS_WITH_A_SYSTEM, ids=lambda row: "+".join(row))
def test_a_system_column_reaches_the_prompt_in_every_layout(tmp_path, row, column):
    source = source_of(tmp_path, row | {column: "Be brief."})
    (pair,) = source
    assert pair.prompt == (Message("system", "Be brief."), Message("user", "How deep?"))
    assert all(isinstance(x, tuple) for x in (pair.chosen, pair.rejected))
    assert source.unread == []


def test_a_conversation_keeps_its_own_system_message_and_the_columns_is_counted(tmp_path):
    row = {"messages": [{"role": "system", "content": "Be long."}, *CHAT["chosen"]], "system": "Be brief."}
    source = source_of(tmp_path, row, kind="demonstrations")
    (record,) = source
    assert record.prompt[0] == Message("system", "Be long.")
    assert source.counts.changed == {"system column left out, the conversation has its own": 1}


@pytest.mark.parametrize("column", ["images", "image", "Videos", "audio"])
def test_rows_with_something_to_see_are_left_out_and_counted(tmp_path, column):
    row = {"messages": CHAT["chosen"]}
    source = source_of(tmp_path, row | {column: ["a.jpg"]}, row | {column: []}, kind="demonstrations")
    assert len(list(source)) == 1
    assert source.counts.dropped == {f"{column.lower()} not read": 1}


def test_a_number_is_an_input(tmp_path):
    row = {"instruction": "Square this.", "input": 7, "output": "49"}
    source = source_of(tmp_path, row, row | {"input": 1.5}, row | {"input": float("nan")}, kind="demonstrations")
    assert [r.prompt for r in source] == [user("Square this.\n7"), user("Square this.\n1.5"), user("Square this.")]


def test_reasoning_beside_an_answer_is_named(tmp_path):
    source = source_of(tmp_path, {"question": "q", "reasoning": "Let me see.", "answer": "x"}, kind="demonstrations")
    assert source.unread == ["reasoning"]


def test_names_match_without_regard_to_case_and_joints_and_the_exact_name_wins(tmp_path):
    (pair,) = source_of(tmp_path, {"PROMPT": "q", "Chosen": "x", "Rejected ": "y", "Soft Label": 0.75})
    assert (pair.prompt, pair.chosen, pair.rejected, pair.label) == ("q", "x", "y", 0.75)
    (pair,) = source_of(tmp_path, {"Prompt": "no", "prompt": "q", "chosen": "x", "rejected": "y"})
    assert pair.prompt == "q"
    rows = {"My Question": "q", "Good One": "x", "Bad One": "y"}
    (pair,) = source_of(tmp_path, rows, columns={"prompt": "my_question", "chosen": "good one", "rejected": "bad-one"})
    assert (pair.prompt, pair.chosen, pair.rejected) == ("q", "x", "y")


def test_advice_goes_by_likeness_and_is_quoted_for_a_shell(tmp_path):
    with pytest.raises(DataError) as e:
        source_of(tmp_path, {"my question": "q", "good reply": "x", "bad reply": "y"})
    assert '\'columns={prompt: "my question", chosen:' in str(e.value)
    import shlex

    import yaml

    (word,) = shlex.split(str(e.value).partition("for example ")[2])
    assert yaml.safe_load(word.removeprefix("columns=")) == {
        "prompt": "my question",
        "chosen": "good reply",
        "rejected": "bad reply",
    }


@pytest.mark.parametrize("verdict", ["winner", "preference", "better_response_id", "choice", "human_label"])
def test_advice_never_calls_a_side_chosen_beside_a_verdict(tmp_path, verdict):
    for row in (
        {"q": "q", "reply_x": "x", "reply_y": "y", verdict: "x"},
        {"q": "q", "answer_1": "x", "answer_2": "y", verdict: "somebody else"},
    ):
        with pytest.raises(DataError) as e:
            source_of(tmp_path, row)
        assert "chosen:" not in str(e.value)
        assert f"preference: {verdict}" in str(e.value)


def test_two_columns_side_by_side():
    def pairs(*columns):
        return [(s.a, s.b) for s in side_by_side(columns)]

    assert pairs("prompt", "response_a", "response_b") == [("response_a", "response_b")]
    assert pairs("Answer 1", "answer2") == [("Answer 1", "answer2")]
    assert pairs("human_ref_A", "human_ref_B") == [("human_ref_A", "human_ref_B")]
    assert pairs("left_text", "right_text") == [("left_text", "right_text")]
    assert pairs("r0", "r1", "r2") == pairs("ra", "rb", "rc") == []
    assert pairs("r_0", "r_1") == [("r_0", "r_1")]
    assert pairs("x_a", "x_b", "x_c") == []


def test_records_of_hidden_columns_are_as_without_them(tmp_path):
    row = {"prompt": "q", "chosen": "x", "rejected": "y"}
    (bare,) = source_of(tmp_path, row)
    (hidden,) = source_of(tmp_path, row | {"note": "a long note"}, columns={"note": None})
    assert replace(bare, source="") == replace(hidden, source="")


def test_a_column_that_only_late_rows_fill_is_named(tmp_path):
    early = [{"prompt": f"How deep {i}?", "context": None} | ANSWERS for i in range(40)]
    source = source_of(tmp_path, *early, {"prompt": "How deep?", "context": "A map of the bay."} | ANSWERS)
    assert source.unread == []
    assert len(list(source)) == 41
    assert source.unread == ["context"]


def test_a_guess_is_refused_at_the_late_row_whose_text_it_would_lose(tmp_path):
    row = {"chosen": "How deep?\nVery deep.", "rejected": "How deep?\nQuite dry.", "passage": ""}
    source = source_of(tmp_path, *[row] * 40, row | {"passage": "A map of the bay."})
    with pytest.raises(DataError, match=r"d\.jsonl:41: passage would not be read"):
        list(source)


def test_of_input_and_context_the_second_is_named_where_a_row_has_both(tmp_path):
    row = {"instruction": "How deep?", "output": "Very."}
    rows = [row | {"input": "", "context": "The bay."}, row | {"input": "In m.", "context": "The bay."}]
    source = source_of(tmp_path, *rows, kind="demonstrations")
    assert [r.prompt[-1].content for r in source] == ["How deep?\nThe bay.", "How deep?\nIn m."]
    assert source.unread == ["context"]


ASKS = "How deep is the sea here?"


@pytest.mark.parametrize("given", [{"prompt": ASKS}, {"instruction": ASKS, "input": ""}])
def test_answers_that_repeat_a_text_prompt_lose_it_and_are_counted(tmp_path, given):
    source = source_of(tmp_path, given | {"chosen": f"{ASKS} Very deep.", "rejected": f"{ASKS} Dry."})
    (pair,) = source
    said = [t if isinstance(t, str) else t[-1].content for t in (pair.chosen, pair.rejected)]
    assert [x.strip() for x in said] == ["Very deep.", "Dry."]
    assert source.counts.changed == {"prompt cut off answers that repeat it": 1}


@pytest.mark.parametrize("chosen", ["Very deep.", ASKS])
def test_where_one_answer_does_not_repeat_the_prompt_neither_is_cut(tmp_path, chosen):
    source = source_of(tmp_path, {"prompt": ASKS, "chosen": chosen, "rejected": f"{ASKS} Dry."})
    (pair,) = source
    assert (pair.chosen, pair.rejected, source.counts.changed) == (chosen, f"{ASKS} Dry.", {})


@pytest.mark.parametrize("asked", ["What is a dog?", "How deep is it?", "这里的海水到底有多深呢？"])
def test_a_short_question_that_is_repeated_is_cut(tmp_path, asked):
    (record,) = source_of(tmp_path, {"prompt": asked, "completion": f"{asked} It is."}, kind="demonstrations")
    assert record.completion.strip() == "It is."


@pytest.mark.parametrize(
    ("asked", "rest"),
    [("Why?", "It is."), ("Why not?", "It is."), ("Hello there friend", "It is."), ("Was it you?", "she said."),
     ("Who is he??", "? I see."), ("Who is he?", "\"And you?\"")],
)  # fmt: skip
def test_a_short_prompt_that_an_answer_may_begin_with_is_not_cut(tmp_path, asked, rest):
    (record,) = source_of(tmp_path, {"prompt": asked, "completion": f"{asked} {rest}"}, kind="demonstrations")
    assert record.completion == f"{asked} {rest}"


def test_a_greeting_is_no_repeated_prompt(tmp_path):
    (record,) = source_of(tmp_path, {"prompt": "Hello", "completion": "Hello there."}, kind="demonstrations")
    assert record.completion == "Hello there."
