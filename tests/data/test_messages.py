"""Messages in the spelling of many tools: as text, in parts, as calls of tools, with masks; half characters."""

import json

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefiere.data import formats
from prefiere.data.formats import DataError
from prefiere.data.schema import Message


def read(tmp_path, *rows, kind="demonstrations", **options):
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = formats.read(path, kind=kind, **options)
    return list(source), source


def chat(*answers):
    said = [{"role": "user", "content": "How deep?"}]
    for a in answers:
        said.append({"role": "assistant", "content": a} if isinstance(a, str) else a)
    return said


def said(messages):
    return [(m.role, m.content) for m in messages]


DEEP, DRY = chat('It\'s "deep".\nVery.'), chat("It's dry.")
ASKED, YES = ("user", "How deep?"), ("assistant", 'It\'s "deep".\nVery.')


# ---- messages written as text


@pytest.mark.parametrize("write", [json.dumps, repr, lambda v: json.dumps({"messages": v, "tools": []})])
@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_messages_as_text_in_a_column_are_decoded(tmp_path, write, suffix):
    rows = [{"prompt": "How deep?", "chosen": write(DEEP), "rejected": write(DRY)}] * 2
    path = tmp_path / f"d{suffix}"
    if suffix == ".jsonl":
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    elif suffix == ".csv":
        pd.DataFrame(rows).to_csv(path, index=False)
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    for pair in formats.read(path, kind="pairs"):
        assert said(pair.prompt) == [ASKED]
        assert said(pair.chosen) == [YES]


def test_a_table_of_arrays_that_pandas_wrote_as_csv(tmp_path):
    pq.write_table(pa.Table.from_pylist([{"messages": DEEP}]), tmp_path / "d.parquet")
    pd.read_parquet(tmp_path / "d.parquet").to_csv(tmp_path / "d.csv", index=False)
    (record,) = formats.read(tmp_path / "d.csv", kind="demonstrations")
    assert said(record.completion) == [YES]


def test_a_conversation_as_text_with_its_tools(tmp_path):
    tool = {"type": "function", "function": {"name": "sound", "parameters": {}}}
    text = json.dumps({"messages": DEEP, "tools": [tool]})
    (record,), _ = read(tmp_path, {"messages": text})
    assert said(record.completion) == [YES]
    assert record.tools == (tool,)


def test_text_that_is_no_conversation_stays_text(tmp_path):
    answers = ['[{"role": "admin", "content": 1}]', "[1, 2]", '{"from": "Vigo"}', "{role}", "[not json"]
    rows = [{"prompt": "Write JSON.", "completion": a} for a in answers]
    got, _ = read(tmp_path, *rows)
    assert [r.completion for r in got] == answers


@pytest.mark.parametrize(
    "given", ['[{"name": "Bob", "age": 3}]', '{"name": "Bob"}', '{"role": "user", "content": "hi"}']
)
def test_json_beside_an_instruction_is_what_is_said(tmp_path, given):
    (record,), _ = read(tmp_path, {"instruction": "As CSV.", "input": given, "output": "Bob,3"})
    assert said(record.prompt) == [("user", f"As CSV.\n{given}")]


def test_objects_beside_an_instruction_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"d\.jsonl:1 \(input\): expected text \(write it as text, .*found dict"):
        read(tmp_path, {"instruction": "As CSV.", "input": {"name": "Bob"}, "output": "Bob"})


@pytest.mark.parametrize("answer", ['{"role": "assistant", "content": "hi"}', json.dumps(DEEP), json.dumps(DEEP)[:-9]])
def test_an_answer_that_is_json_among_prose_is_an_answer(tmp_path, answer):
    rows = [{"prompt": "Write a request.", "completion": a} for a in (answer, "I will.", "It is deep.")]
    got, _ = read(tmp_path, *rows)
    assert [r.completion for r in got] == [answer, "I will.", "It is deep."]


def test_messages_that_are_cut_off_are_named(tmp_path):
    with pytest.raises(DataError, match=r"d\.jsonl:1 \(chosen\): it holds messages as text .* cut off"):
        read(tmp_path, {"prompt": "q", "chosen": json.dumps(DEEP)[:-9], "rejected": "no"}, kind="pairs")


# ---- bodies and roles


@pytest.mark.parametrize("body", ["content", "value", "text", "message"])
@pytest.mark.parametrize(
    ("user", "own"), [("user", "assistant"), ("human", "gpt"), ("prompter", "AI"), ("User", "Chatbot")]
)
def test_bodies_and_roles_by_other_names(tmp_path, body, user, own):
    (record,), _ = read(tmp_path, {"messages": [{"role": user, body: "How deep?"}, {"role": own, body: "Very."}]})
    assert said(record.prompt) == [ASKED]
    assert record.completion == (Message("assistant", "Very."),)


def test_a_message_without_content_says_what_it_has(tmp_path):
    with pytest.raises(DataError, match="the user message has no content; it has utterance, lang"):
        read(tmp_path, {"messages": [{"role": "user", "utterance": "q", "lang": "en"}, DEEP[1]]})


def test_roles_are_named_where_nobody_answers(tmp_path):
    got, source = read(tmp_path, {"messages": [DEEP[0], {"role": "narrator", "content": "Very."}]})
    assert not got
    assert "roles found: user, narrator" in source.problems[0]


def test_a_tree_of_messages_is_named(tmp_path):
    tree = {"role": "prompter", "text": "q", "replies": [{"role": "assistant", "text": "x", "replies": []}]}
    with pytest.raises(DataError, match="a tree of messages"):
        read(tmp_path, {"prompt": tree}, kind="prompts")
    (prompt,), _ = read(tmp_path, {"prompt": tree | {"replies": []}}, kind="prompts")
    assert said(prompt.prompt) == [("user", "q")]


def test_learnt_after_the_greeting(tmp_path):
    (record,), _ = read(tmp_path, {"messages": [{"role": "assistant", "content": "Hello."}, *DEEP]})
    assert said(record.prompt) == [("assistant", "Hello."), ASKED]
    assert said(record.completion) == [YES]


# ---- parts


@pytest.mark.parametrize(
    "parts",
    [
        [{"type": "text", "text": "It is "}, {"type": "text", "text": "deep."}],
        [{"type": "text", "value": "It is deep."}],
        [{"type": "output_text", "text": "It is deep."}],
        ["It is ", "deep."],
        [{"text": "It is deep."}],
        {"parts": [{"text": "It is deep."}]},
    ],
)
def test_parts_of_text_are_joined_as_templates_join_them(tmp_path, parts):
    (record,), _ = read(tmp_path, {"messages": [DEEP[0], {"role": "assistant", "content": parts}]})
    assert record.completion == (Message("assistant", "It is deep."),)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "thinking", "thinking": "The sea..."},
        {"type": "reasoning", "value": "The sea..."},
        {"type": "reasoning", "text": "The sea..."},
        {"text": "The sea...", "thought": True},
    ],
)
def test_parts_that_think(tmp_path, part):
    content = [part, {"type": "text", "text": "Deep."}]
    (record,), _ = read(tmp_path, {"messages": [DEEP[0], {"role": "assistant", "content": content}]})
    assert record.completion == (Message("assistant", "Deep.", {"reasoning_content": "The sea..."}),)


CALL = {"type": "function", "function": {"name": "sound", "arguments": {"at": "Vigo"}}}


def test_anthropics_calls_and_results_are_turns(tmp_path):
    messages = [
        DEEP[0],
        {"role": "assistant", "content": [
            {"type": "text", "text": "I look."},
            {"type": "tool_use", "id": "t1", "name": "sound", "input": {"at": "Vigo"}},
        ]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "40 m"}]},
        ]},
        {"role": "assistant", "content": [{"type": "text", "text": "40 m."}]},
    ]  # fmt: skip
    (record,), _ = read(tmp_path, {"messages": messages})
    assert record.completion == (
        Message("assistant", "I look.", {"tool_calls": [CALL | {"id": "t1"}]}),
        Message("tool", "40 m", {"tool_call_id": "t1"}),
        Message("assistant", "40 m."),
    )


@pytest.mark.parametrize(
    "turn",
    [
        {"from": "function_call", "value": '{"name": "sound", "arguments": {"at": "Vigo"}}'},
        {"from": "function_call", "value": "{'name': 'sound', 'arguments': {'at': 'Vigo'}}"},
        {"role": "tool_call", "content": '[{"name": "sound", "arguments": {"at": "Vigo"}}]'},
        {"role": "assistant", "content": None, "function_call": {"name": "sound", "arguments": {"at": "Vigo"}}},
        {"role": "assistant", "content": None, "tool_calls": [{"name": "sound", "arguments": {"at": "Vigo"}}]},
        {"role": "assistant", "content": None, "tool_calls": json.dumps([CALL])},
        {"role": "assistant", "content": None, "tool_calls": [CALL | {"id": None}]},
        {
            "role": "assistant",
            "content": [{"type": "tool_call", "value": '{"name": "sound", "arguments": {"at": "Vigo"}}'}],
        },
        {"role": "model", "parts": [{"functionCall": {"name": "sound", "args": {"at": "Vigo"}}}]},
    ],
)
@pytest.mark.parametrize("result", [{"from": "observation", "value": "40 m"}, {"role": "function", "content": "40 m"},
                                    {"role": "tool_response", "content": "40 m"}])  # fmt: skip
def test_calls_of_tools_in_other_spellings(tmp_path, turn, result):
    said = [{"from": "human", "value": "How deep?"}, turn, result, {"from": "gpt", "value": "40 m."}]
    (record,), _ = read(tmp_path, {"conversations": said})
    assert record.completion == (
        Message("assistant", "", {"tool_calls": [CALL]}),
        Message("tool", "40 m"),
        Message("assistant", "40 m."),
    )


def test_a_call_that_is_no_call_is_an_error(tmp_path):
    turn = {"from": "function_call", "value": "please sound"}
    with pytest.raises(DataError, match="holds no JSON object with a name and arguments"):
        read(tmp_path, {"conversations": [{"from": "human", "value": "q"}, turn]})


def test_functions_by_themselves_become_tools(tmp_path):
    bare = {"name": "sound", "description": None, "parameters": {"type": "object"}}
    theirs = {"name": "sound", "input_schema": {"type": "object"}}
    whole = ({"type": "function", "function": {"name": "sound", "parameters": {"type": "object"}}},)
    for tools in ([bare], json.dumps([theirs]), [theirs], bare):
        (record,), _ = read(tmp_path, {"messages": DEEP, "tools": tools})
        assert record.tools == whole


def test_an_image_is_called_one_and_an_unknown_part_by_its_name(tmp_path):
    image = {"role": "user", "content": [{"type": "text", "text": "Who?"}, {"type": "image_url", "image_url": {}}]}
    got, source = read(tmp_path, {"messages": [image, DEEP[1]]}, {"messages": DEEP})
    assert len(got) == 1
    assert "see or hear (image_url)" in source.problems[0]
    with pytest.raises(DataError, match=r"a part that is not known \(hologram\)"):
        read(tmp_path, {"messages": [{"role": "user", "content": [{"type": "hologram", "x": 1}]}, DEEP[1]]})


@pytest.mark.parametrize("extra", ["nope", "[1]"])
def test_further_keys_that_are_no_object_are_named(tmp_path, extra):
    with pytest.raises(DataError, match=r"d\.jsonl:1 \(messages\[\]\.extra_json\): expected the JSON of an object"):
        read(tmp_path, {"messages": chat({"role": "assistant", "content": "Yes.", "extra_json": extra})})


# ---- masks


@pytest.mark.parametrize(
    ("key", "off", "on"),
    [
        ("weight", 0, 1),
        ("train", False, True),
        ("loss", False, None),
        ("loss_weight", 0.0, 1.0),
        ("trainable", "false", "true"),
        ("train_on_turn", False, True),
        ("loss_mask", 0, 1),
        ("training", False, True),
        ("masked", True, False),
        ("mask", 1, 0),
        ("is_masked", "true", "false"),
    ],
)
def test_turns_marked_not_to_be_learnt(tmp_path, key, off, on):
    messages = chat(
        {"role": "assistant", "content": "No.", key: off}, {"role": "user", "content": "Sure?", key: off},
        {"role": "assistant", "content": "Yes.", key: on},
    )  # fmt: skip
    (record,), _ = read(tmp_path, {"messages": messages})
    assert [(m.content, m.learnt, dict(m.extra)) for m in record.completion] == [
        ("No.", False, {}),
        ("Sure?", True, {}),
        ("Yes.", True, {}),
    ]
    formats.write([record], tmp_path / "again.jsonl")
    (again,) = formats.read(tmp_path / "again.jsonl", kind="demonstrations")
    assert again.completion == record.completion


def test_a_weight_between_is_an_error_and_all_masked_is_left_out(tmp_path):
    half = chat({"role": "assistant", "content": "No.", "weight": 0.5})
    with pytest.raises(DataError, match=r"weight=0\.5: a turn is learnt \(1, true\) or not"):
        read(tmp_path, {"messages": half})
    got, source = read(tmp_path, {"messages": chat({"role": "assistant", "content": "No.", "weight": 0})})
    assert not got
    assert source.counts.dropped == {"no turn to learn": 1}


@pytest.mark.parametrize("flag", [True, False, 0, 1])
def test_an_unknown_flag_of_a_turn_is_refused_by_name(tmp_path, flag):
    with pytest.raises(
        DataError, match=rf"d\.jsonl:1 \(messages\): the assistant's turn has learn_it={flag}: .*weight"
    ):
        read(tmp_path, {"messages": chat({"role": "assistant", "content": "Yes.", "learn_it": flag})})


def test_keys_of_messages_that_nobody_reads_are_named(tmp_path):
    asked = {"role": "user", "content": "How deep?", "context": "A map of the bay."}
    _, source = read(tmp_path, {"messages": [asked, {**DEEP[1], "name": "Ana", "masked": None}]})
    assert source.unread == ["messages[].context"]


# ---- half characters


HALF = "I smile \ud83d"


@pytest.mark.parametrize(
    "row",
    [
        {"messages": chat({"role": "assistant", "reasoning_content": HALF, "content": "Yes."})},
        {"messages": chat({"role": "assistant", "content": None, "tool_calls": [CALL | {"id": HALF}]})},
        {"messages": DEEP, "tools": [{"name": "x", "description": HALF, "parameters": {}}]},
        {"messages": [{"role": "user", "content": HALF}, DEEP[1]]},
        {"messages": chat({"role": "assistant", "content": "Yes.", "name": {HALF: 1}})},
    ],
)
def test_half_a_character_is_counted_wherever_it_stands(tmp_path, row):
    got, source = read(tmp_path, {"messages": DEEP}, row)
    assert len(got) == 1
    assert source.counts.dropped == {"broken character": 1}
    assert "d.jsonl:2 (" in source.problems[0]


def test_numbers_as_answers_get_the_right_error(tmp_path):
    with pytest.raises(DataError, match=r"\(chosen\): expected text or messages, found int '4'"):
        read(tmp_path, {"prompt": "2+2?", "chosen": 4, "rejected": 5}, kind="pairs")
