"""Files of every kind, bad input of every kind, splits, the hub, and writing what can be read again."""

import gzip
import json
import re
import subprocess
import sys
import tracemalloc
import zipfile
from dataclasses import replace
from pathlib import Path

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from prefiere.data import formats, readers, sources
from prefiere.data.formats import DataError
from prefiere.data.layouts.detect import LAYOUTS, MAKES, OPTIONAL
from prefiere.data.schema import Comparison, Demonstration, Judgement, Message, PreferencePair

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
ROWS = [{"prompt": f"¿qué es {i}?", "chosen": f"el {i} 🐕\u2028", "rejected": f"no sé {i}\r\n"} for i in range(5)]
PAIRS = [PreferencePair(prompt=r["prompt"], chosen=r["chosen"], rejected=r["rejected"]) for r in ROWS]


def read(path, kind="pairs", **options):
    source = formats.read(path, kind=kind, **options)
    return [replace(r, source="") for r in source], source


def lines(rows):
    return "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)


def put(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


# -- files ------------------------------------------------------------------------------------------------------------


def arrow_stream(path, rows):
    table = pa.Table.from_pylist(rows)
    with pa.OSFile(str(path), "wb") as f, pa.ipc.new_stream(f, table.schema) as w:
        w.write_table(table)


def arrow_file(path, rows):
    table = pa.Table.from_pylist(rows)
    with pa.OSFile(str(path), "wb") as f, pa.ipc.new_file(f, table.schema) as w:
        w.write_table(table)


FILES = {
    "lines.jsonl": lines(ROWS),
    "lines.json": lines(ROWS),
    "no-end.jsonl": lines(ROWS).rstrip("\n"),
    "blank.jsonl": lines(ROWS[:2]) + "\n   \n" + lines(ROWS[2:]),
    "bom.jsonl": "\ufeff" + lines(ROWS),
    "crlf.jsonl": lines(ROWS).replace("\n", "\r\n"),
    "list.json": json.dumps(ROWS),
    "list.jsonl": json.dumps(ROWS),
    "pretty.json": "\ufeff" + json.dumps(ROWS, indent=2, ensure_ascii=False),
    "wrapped.json": json.dumps({"data": ROWS}),
    "wrapped-later.json": json.dumps({"version": "1", "rows": ROWS}, indent=1),
    "wrapped-one-line.json": json.dumps({"version": "1", "examples": ROWS}) + "\n",
    "objects.json": "\n".join(json.dumps(r, indent=1) for r in ROWS),
    "json-named.csv": lines(ROWS),
    "no-suffix": lines(ROWS),
    "zipped.jsonl.gz": gzip.compress(lines(ROWS).encode()),
    "zipped.json.gz": gzip.compress(json.dumps(ROWS).encode()),
    "zipped-unnamed.jsonl": gzip.compress(lines(ROWS).encode()),
}


@pytest.mark.parametrize("name", FILES)
def test_text_files(tmp_path, name):
    got, source = read(put(tmp_path / name, FILES[name]))
    assert got == PAIRS
    assert str(source.counts) == "5 read, 5 kept"
    assert [r.source for r in source] == [r.source for r in source]


def test_sources_name_file_and_line(tmp_path):
    path = put(tmp_path / "a.jsonl", FILES["blank.jsonl"])
    assert [r.source for r in formats.read(path, kind="pairs")] == [f"{path}:{n}" for n in (1, 2, 5, 6, 7)]
    path = put(tmp_path / "b.json", json.dumps(ROWS, indent=2))
    assert [r.source for r in formats.read(path, kind="pairs")] == [f"{path}:{n}" for n in (2, 7, 12, 17, 22)]


@pytest.mark.parametrize("write", [pq.write_table, arrow_stream, arrow_file], ids=["parquet", "stream", "file"])
def test_tables_are_recognised_by_content(tmp_path, write):
    path = tmp_path / "data.bin"
    write(pa.Table.from_pylist(ROWS), path) if write is pq.write_table else write(path, ROWS)
    got, source = read(path)
    assert got == PAIRS
    assert next(iter(source)).source == f"{path}:1"


def test_nulls_that_a_table_fills_in_are_no_message_keys(tmp_path):
    call = [{"function": {"name": "clock"}}]
    rows = [
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "x"}]},
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": call}]},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data.parquet")
    got, _ = read(tmp_path / "data.parquet", "demonstrations")
    assert got[0].completion == (Message("assistant", "x"),)
    assert got[1].completion == (Message("assistant", "", {"tool_calls": call}),)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv(tmp_path, delimiter):
    d = delimiter
    text = f'prompt{d}chosen{d}rejected\r\n"¿a{d}b?"{d}"dos\nlíneas ""y"" más"{d}no\r\n\r\nq{d}sí{d}no\r\n'
    got, source = read(put(tmp_path / "data.csv", "\ufeff" + text))
    assert [(p.prompt, p.chosen, p.rejected) for p in got] == [
        (f"¿a{d}b?", 'dos\nlíneas "y" más', "no"),
        ("q", "sí", "no"),
    ]
    assert [p.source for p in source] == [f"{tmp_path / 'data.csv'}:{n}" for n in (2, 5)]


def test_csv_with_messages_margins_and_an_answer_that_looks_like_json(tmp_path):
    chat = json.dumps([{"role": "assistant", "content": "sí"}]).replace('"', '""')
    text = f'prompt,chosen,rejected,margin\nq,"{chat}",no,0.5\nlist,"[""a"", ""b""]",[1],\n'
    got, _ = read(put(tmp_path / "data.csv", text))
    assert got == [
        PreferencePair(
            prompt=(Message("user", "q"),),
            chosen=(Message("assistant", "sí"),),
            rejected=(Message("assistant", "no"),),
            margin=0.5,
        ),
        PreferencePair(prompt="list", chosen='["a", "b"]', rejected="[1]"),
    ]


def test_text_file_of_prompts(tmp_path):
    got, _ = read(put(tmp_path / "p.txt", "¿Qué es un perro?\n\n[x] and {y}\n"), "prompts")
    assert [p.prompt for p in got] == ["¿Qué es un perro?", "[x] and {y}"]


def test_limit(tmp_path):
    source = formats.read(put(tmp_path / "a.jsonl", lines(ROWS)), kind="pairs", limit=2)
    assert len(list(source)) == len(list(source)) == 2


# -- folders and data sets --------------------------------------------------------------------------------------------


def test_folder(tmp_path):
    put(tmp_path / "b.jsonl", lines(ROWS[2:]))
    put(tmp_path / "a" / "x.json", json.dumps(ROWS[:2]))
    put(tmp_path / "README.md", "prompt, chosen")
    put(tmp_path / ".cache" / "x.jsonl", lines(ROWS))
    put(tmp_path / "dataset_info.json", "{}")
    got, source = read(tmp_path)
    assert got == PAIRS
    assert source.files == [str(tmp_path / "a" / "x.json"), str(tmp_path / "b.jsonl")]


def test_each_file_of_a_folder_has_its_own_layout(tmp_path):
    put(tmp_path / "a.jsonl", lines(ROWS[:1]))
    put(tmp_path / "b.jsonl", lines([{"instruction": "q", "chosen": "sí", "rejected": "no"}]))
    got, source = read(tmp_path)
    assert [p.prompt for p in got] == ["¿qué es 0?", (Message("user", "q"),)]
    assert source.describe()["layout"] == (
        "TRL standard (by prompt, chosen, rejected) + Alpaca pairwise (by instruction, chosen, rejected)"
    )


def test_splits_of_a_folder(tmp_path):
    for name in ("train_prefs-00000-of-00001-ab.parquet", "train_sft-00000-of-00001.parquet", "test_prefs.parquet"):
        rows = [ROWS[0] | {"prompt": name.split("-")[0]}]
        (tmp_path / "data").mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data" / name)
    got, source = read(tmp_path)
    assert [p.prompt for p in got] == ["train_prefs"]
    assert source.split == "train_prefs"
    assert set(source.splits) == {"train_prefs", "train_sft", "test_prefs"}
    assert read(tmp_path, "demonstrations")[0][0].prompt == "train_sft"
    assert read(tmp_path, split="test_prefs")[0][0].prompt == "test_prefs.parquet"
    with pytest.raises(DataError, match="no split test_pref; did you mean test_prefs"):
        formats.read(tmp_path, kind="pairs", split="test_pref")


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train.jsonl.gz", "train"),
        ("data/train_prefs-00000-of-00004-0a1b.parquet", "train_prefs"),
        ("hh-harmless-test.jsonl.gz", "test"),
        ("validation/part.csv", "validation"),
        ("trainer.json", None),
        ("contest.json", None),
    ],
)
def test_split_of_a_path(name, split):
    from prefiere.data.sources import split_of

    assert split_of(Path(name)) == split


def test_other_splits_are_not_read_in_silence(tmp_path):
    put(tmp_path / "pairs.jsonl", lines(ROWS[:1]))
    put(tmp_path / "pairs-test.jsonl", lines(ROWS[1:]))
    assert read(tmp_path)[0] == PAIRS[:1]
    (tmp_path / "pairs.jsonl").rename(tmp_path / "pairs-validation.jsonl")
    with pytest.raises(DataError, match=r"held out by its name \(test, validation\), so not trained on"):
        formats.read(tmp_path, kind="pairs")


def test_saved_data_sets(tmp_path):
    import datasets

    saved = datasets.Dataset.from_list(ROWS)
    saved.save_to_disk(tmp_path / "one")
    assert read(tmp_path / "one")[0] == PAIRS
    datasets.DatasetDict(train=saved.select([0]), test=saved.select([1])).save_to_disk(tmp_path / "two")
    got, source = read(tmp_path / "two")
    assert got == PAIRS[:1]
    assert (source.split, source.splits) == ("train", ("train", "test"))
    assert read(tmp_path / "two", split="test")[0] == PAIRS[1:2]


def test_hub(tmp_path, monkeypatch):
    import datasets

    asked = []

    def load(name, config):
        asked.append((name, config))
        return datasets.DatasetDict(train_prefs=datasets.Dataset.from_list(ROWS))

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(sources, "why_no_data", lambda *_, **__: None)
    got, source = read("owner/name:config")
    assert got == PAIRS
    assert asked == [("owner/name", "config")]
    assert next(iter(source)).source == "owner/name:config[train_prefs]:1"


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (ConnectionError("Couldn't reach the Hub\n(long)"), "the hub is out of reach; check the name and the network"),
        (ValueError("Config name is missing. Pick one"), "name one of its configurations, as owner/name:CONFIG"),
        (RuntimeError("Dataset is a gated dataset on the Hub."), "accept its terms"),
        (RuntimeError("something else"), "could not load it (something else)"),
    ],
)
def test_hub_errors_are_one_line_with_advice(monkeypatch, error, advice):
    import datasets

    def fail(*_):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    monkeypatch.setattr(sources, "why_no_data", lambda *_, **__: None)
    with pytest.raises(DataError) as e:
        formats.read("owner/name", kind="pairs")
    assert str(e.value).startswith("owner/name: ")
    assert advice in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("name", ["nowhere", "nowhere/data.jsonl", "./nowhere", "/nowhere/at/all", "a/b/c"])
def test_no_such_file(name):
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        formats.read(name, kind="pairs")


# -- bad input --------------------------------------------------------------------------------------------------------


def damaged(tmp_path, text, reason, message, kept=2):
    """Damage is an error by default and with "error", and a counted drop with "drop"."""
    path = put(tmp_path / "d.jsonl", text)
    for mode in ("content", "error"):
        with pytest.raises(DataError, match=message):
            list(formats.read(path, kind="pairs", on_bad=mode))
    got, source = read(path, on_bad="drop")
    assert len(got) == source.counts.kept == kept
    assert source.counts.dropped == {reason: 1}
    assert len(source.problems) == 1
    return source.problems[0]


def test_broken_json_on_line_4711(tmp_path):
    good = lines(ROWS[:1])
    text = good * 4710 + '{"prompt": "q", "chosen" "x"}\n' + good * 10
    problem = damaged(tmp_path, text, "broken JSON", r"d\.jsonl:4711 \(line\): broken JSON: .* at column 26", kept=4720)
    assert problem.endswith("d.jsonl:4711 (line): broken JSON: Expecting ':' delimiter at column 26")


def test_missing_column(tmp_path):
    text = lines([ROWS[0], {"prompt": "q", "chosen": "x"}, ROWS[1]])
    damaged(
        tmp_path,
        text,
        "missing column rejected",
        r"d\.jsonl:2 \(rejected\): .*missing; found: prompt, chosen\..*on_bad",
    )


def test_wrong_type(tmp_path):
    damaged(tmp_path, lines([ROWS[0], ROWS[1] | {"chosen": 7}, ROWS[2]]), "wrong type in chosen", r":2 \(chosen\)")


def test_a_number_for_a_record(tmp_path):
    damaged(tmp_path, lines([ROWS[0], 7, ROWS[1]]), "not a record", r":2 \(line\): expected an object .* found int")


def test_bad_margin(tmp_path):
    damaged(tmp_path, lines([ROWS[0], ROWS[1] | {"margin": "big"}, ROWS[2]]), "wrong type in margin", r":2 \(margin\)")


def test_invalid_utf8(tmp_path):
    text = lines(ROWS[:1]).encode() + b'{"prompt": "\xff"}\n' + lines(ROWS[1:2]).encode()
    damaged(tmp_path, text, "not UTF-8", r":2 \(line\): not UTF-8: byte 0xff at position 13")


def test_nested_without_end(tmp_path):
    damaged(
        tmp_path, lines(ROWS[:1]) + '{"a":' + "[" * 200_000 + "\n" + lines(ROWS[1:2]), "broken JSON", r":2 \(line\)"
    )


def test_a_line_of_gigabytes_is_never_held(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "MAX_RECORD", 1 << 20)
    with open(tmp_path / "d.jsonl", "wb") as f:
        f.write(lines(ROWS[:1]).encode() + b'{"prompt": "')
        for _ in range(64):
            f.write(b"x" * (1 << 20))
        f.write(b'"}\n' + lines(ROWS[1:2]).encode())
    tracemalloc.start()
    try:
        source = formats.read(tmp_path / "d.jsonl", kind="pairs", on_bad="drop")
        assert [replace(r, source="") for r in source] == PAIRS[:2]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20
    assert source.counts.dropped == {"line too long": 1}
    # 64 MiB, 12 bytes before and 3 behind them
    assert ":2 (line): the line has 67,108,879 bytes, more than 1,048,576" in source.problems[0]
    with pytest.raises(DataError, match=r":2 \(line\): the line has"):
        list(formats.read(tmp_path / "d.jsonl", kind="pairs"))


def test_a_document_is_read_one_record_at_a_time(tmp_path, monkeypatch):
    record = {"prompt": "q" * 10_000, "chosen": "x", "rejected": "y"}
    path = put(tmp_path / "d.json", json.dumps({"data": [record] * 2_000}))
    tracemalloc.start()
    try:
        n = sum(1 for _ in formats.read(path, kind="pairs"))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert n == 2_000
    assert peak < path.stat().st_size / 3
    monkeypatch.setattr(readers, "MAX_RECORD", 1 << 20)
    long = put(tmp_path / "long.json", json.dumps([record, record | {"prompt": "q" * (3 << 20)}], indent=0))
    with pytest.raises(DataError, match=r"long\.json:7 \(line\): broken JSON: a record of more than 1,048,576"):
        list(formats.read(long, kind="pairs"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[\n{"prompt": "q",\n "chosen": x}]', r"d\.json:3 \(line\): broken JSON: Expecting value"),
        ('[\n{"prompt": "q", "chosen": "x", "rejected": "y"}', r"d\.json:2 \(line\): .*cut off"),
        ('[\n{"prompt": "q", "chosen": "x', r"d\.json:2 \(line\): broken JSON: Unterminated string"),
        ('[{"prompt": "q", "chosen": "x", "rejected": "y"},\n]', r"d\.json:2 \(line\): .*a comma before"),
        ('[\n"\xff"]'.encode("latin-1"), r"d\.json:2 \(line\): .*not UTF-8: byte 0xff"),
        ("nothing", r"d\.json:1 \(line\): broken JSON"),
    ],
)
def test_broken_documents_are_errors_in_every_mode(tmp_path, text, message):
    path = put(tmp_path / "d.json", text)
    with pytest.raises(DataError, match=message):
        list(formats.read(path, kind="pairs", on_bad="drop"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.jsonl", "", "the file is empty"),
        ("d.csv", " \n\n", "the file is empty"),
        ("d.json", "[]", "no records"),
        ("d.csv", "prompt,chosen,rejected\n", "no records"),
        ("d.bin", "one two three", "neither JSON, CSV, Parquet nor Arrow"),
        ("d.jsonl", '{"prompt": "q"}\n'.encode("utf-16"), "UTF-16"),
        ("d.parquet", b"PAR1 no PAR1", "damaged Parquet"),
        ("d.arrow", b"ARROW1\0\0 no", "damaged Arrow"),
        ("d.jsonl.gz", gzip.compress(lines(ROWS * 1000).encode())[:-20], r"compressed file is damaged after line \d+"),
        ("d.csv", 'prompt,chosen,rejected\nq,"open,y\n', r"d\.csv:2 \(line\): broken CSV: .*quote left open"),
        ("d.csv", "prompt,chosen,rejected\nq,x\n", r"d\.csv:2 \(line\): expected 3 cells, found 2"),
        ("d.csv", "prompt,chosen,chosen\nq,x,y\n", r"d\.csv:1 \(chosen\): two columns"),
        ("d.csv", "prompt,chosen,rejected\n¿,x,y\n".encode() + b"q,\xff,y\n", r"d\.csv:3 \(line\): not UTF-8"),
    ],
)
def test_bad_files(tmp_path, name, content, message):
    path = put(tmp_path / name, content)
    with pytest.raises(DataError, match=message):
        list(formats.read(path, kind="pairs"))


def test_an_empty_folder(tmp_path):
    with pytest.raises(DataError, match="no data in this folder"):
        formats.read(tmp_path, kind="pairs")


def test_a_file_has_no_splits(tmp_path):
    with pytest.raises(DataError, match="a file has no splits"):
        formats.read(put(tmp_path / "d.jsonl", lines(ROWS)), kind="pairs", split="train")


HALF = {"prompt": "q", "chosen": "x \ud800", "rejected": "y"}
Q = {"role": "user", "content": "q"}
X, Y = {"role": "assistant", "content": "x"}, {"role": "assistant", "content": "y"}
CONTENT = [
    (ROWS[0] | {"chosen": " \n"}, "empty chosen", "chosen"),
    (ROWS[0] | {"rejected": None}, "empty rejected", "rejected"),
    (ROWS[0] | {"rejected": []}, "empty answer", "the second answer"),
    (ROWS[0] | {"prompt": ""}, "empty prompt", "prompt"),
    (ROWS[0] | {"rejected": ROWS[0]["chosen"] + " "}, "chosen equals rejected", "chosen, rejected"),
    (ROWS[0] | {"chosen": [X | {"content": " "}]}, "empty chosen", "chosen"),
    (ROWS[0] | {"chosen": [X, Q]}, "ends without an answer", "chosen"),
    (ROWS[0] | {"chosen": [X | {"content": [{"type": "image_url"}]}]}, "not text", "chosen"),
    ({"prompt": "p", "chosen": [Q, X], "rejected": [Q, Y]}, "prompt differs from the messages", "prompt"),
    ({"prompt": "p", "chosen": [Q, X], "rejected": [Y]}, "one answer repeats the prompt", "the first answer"),
    ({"prompt": "q", "chosen": [Q, X], "rejected": "y"}, "", ""),  # the prompt is taken off the one that repeats it
    (HALF, "broken character", "chosen"),
]


@pytest.mark.parametrize(("row", "reason", "where"), CONTENT)
def test_examples_with_nothing_to_learn_from(tmp_path, row, reason, where):
    path = put(tmp_path / "d.jsonl", json.dumps(ROWS[0]) + "\n" + json.dumps(row) + "\n")
    for mode in ("content", "drop"):
        got, source = read(path, on_bad=mode)
        assert source.counts.dropped == ({reason: 1} if reason else {})
        assert len(got) == 2 - bool(reason)
    if reason:
        assert source.problems[0].startswith(f"{path}:2 ({where}): ")
        with pytest.raises(DataError, match=r"d\.jsonl:2 \(.*on_bad=content"):
            list(formats.read(path, kind="pairs", on_bad="error"))


FIELDS = sorted({f for layout in LAYOUTS for f in layout.fields} | {*OPTIONAL, "r.responses", "r.responses.status"})
LEAF = (
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.sampled_from(["", "x", "[1]", "\n\nHuman: a\n\nAssistant: b", "left"])
)
KEY = st.sampled_from(["role", "from", "content", "value", "text", "rank", "answer", "score", "completion", "parts"])
ANY = st.recursive(LEAF, lambda v: st.lists(v, max_size=3) | st.dictionaries(KEY, v, max_size=3), max_leaves=6)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), layout=st.sampled_from(LAYOUTS), kind=st.sampled_from(list(MAKES)))
def test_any_nonsense_is_an_error_with_its_place_or_a_counted_drop(tmp_path, data, layout, kind):
    more = data.draw(st.lists(st.sampled_from(FIELDS), max_size=3))
    fields = dict.fromkeys([*layout.fields, *more], ANY)
    rows = data.draw(st.lists(st.fixed_dictionaries(fields), min_size=1, max_size=3))
    path = put(tmp_path / "d.jsonl", lines(rows))
    try:
        source = formats.read(path, kind=kind, on_bad="drop")
    except DataError as e:
        assert str(path) in str(e)  # noqa: PT017 - most nonsense is only dropped
    else:
        n = len(list(source))
        assert n == source.counts.kept
        assert n + sum(source.counts.dropped.values()) >= len(rows) == source.counts.read


def test_texts_without_a_common_beginning(tmp_path):
    path = put(
        tmp_path / "d.jsonl", lines([{"chosen": "yes", "rejected": "no"}, {"chosen": "Q\na", "rejected": "Q\nb"}])
    )
    got, source = read(path)
    assert len(got) == 1
    assert source.counts.dropped == {"no common prompt": 1}


def test_problems_are_shown_up_to_a_number_and_counted_beyond(tmp_path):
    path = put(tmp_path / "d.jsonl", lines([ROWS[0]] + [ROWS[0] | {"chosen": ""}] * 30))
    _, source = read(path)
    assert source.counts.to_dict() == {"read": 31, "kept": 1, "dropped": {"empty chosen": 30}, "changed": {}}
    assert len(source.problems) == 20


# -- detection and column maps ----------------------------------------------------------------------------------------


def test_detected_layout_says_how(tmp_path):
    source = formats.read(put(tmp_path / "d.jsonl", lines(ROWS)), kind="pairs")
    assert str(source.layout) == "TRL standard (by prompt, chosen, rejected)"


def test_a_bad_first_row_does_not_decide(tmp_path):
    turn = {"conversations": [{"from": "human", "value": "q"}]}
    good = turn | {"chosen": {"from": "gpt", "value": "x"}, "rejected": {"from": "gpt", "value": "y"}}
    path = put(tmp_path / "d.jsonl", lines([{"chosen": "a", "rejected": "b"}, good, good]))
    got, source = read(path, on_bad="drop")
    assert source.layout.name == "ShareGPT ranking"
    assert len(got) == 2


def test_unknown_layout_names_columns_neighbours_and_an_example(tmp_path):
    path = put(tmp_path / "d.jsonl", lines([{"question": "q", "winner_text": "x", "loser_text": "y"}]))
    with pytest.raises(DataError) as e:
        formats.read(path, kind="pairs")
    said = str(e.value)
    assert "Columns found: question, winner_text, loser_text" in said
    assert "Axolotl (lacks chosen, rejected)" in said
    assert "'columns={chosen: winner_text, rejected: loser_text}'" in said
    with pytest.raises(DataError, match=r"'columns={prompt: <column>, chosen: <column>, rejected: <column>}'"):
        formats.read(put(tmp_path / "e.jsonl", lines([dict.fromkeys(("x1", "y1", "z1"), "x")])), kind="pairs")
    got, source = read(path, columns={"prompt": "question", "chosen": "winner_text", "rejected": "loser_text"})
    assert got == [PreferencePair(prompt="q", chosen="x", rejected="y")]
    assert source.layout.why.endswith("with prompt=question, chosen=winner_text, rejected=loser_text")


def test_column_map_settles_ambiguity_and_reaches_inside(tmp_path):
    row = {"prompt": "p", "messages": [{"role": "user", "content": "q"}], "out": {"good": "x", "bad": "y"}}
    row |= {"chosen": "old", "rejected": "older"}
    path = put(tmp_path / "d.jsonl", lines([row]))
    got, _ = read(path, columns={"prompt": "messages", "chosen": "out.good", "rejected": "out.bad"})
    (q, x, y) = (Message("user", "q"),), (Message("assistant", "x"),), (Message("assistant", "y"),)
    assert got == [PreferencePair(prompt=q, chosen=x, rejected=y)]


def test_a_column_can_be_hidden(tmp_path):
    chat = [[{"role": "user", "content": "q"}, {"role": "assistant", "content": a}] for a in "xy"]
    path = put(tmp_path / "d.jsonl", lines([{"prompt": "<|user|>q", "chosen": chat[0], "rejected": chat[1]}]))
    assert read(path)[1].counts.dropped == {"prompt differs from the messages": 1}
    assert read(path, columns={"prompt": None})[0][0].prompt == (Message("user", "q"),)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": {"choosen": "a"}}, "choosen is not a field of any layout; did you mean chosen"),
        (
            {"columns": {"chosen": "nope"}},
            r"d\.jsonl:1 \(nope\): the column is missing \(mapped to chosen\); found: prompt",
        ),
        ({"layout": "HH"}, "layout 'HH' is unknown"),
        ({"layout": "Nectar"}, "does not fit layout Nectar for pairs. Columns found: prompt, chosen, rejected"),
    ],
)
def test_bad_options(tmp_path, options, message):
    with pytest.raises(DataError, match=message):
        formats.read(put(tmp_path / "d.jsonl", lines(ROWS)), kind="pairs", **options)


@pytest.mark.parametrize("options", [{"on_bad": "ignore"}, {"kind": "rewards"}, {"pairs_per_prompt": "some"}])
def test_options_out_of_range(tmp_path, options):
    with pytest.raises(ValueError, match="is not one of"):
        formats.read(put(tmp_path / "d.jsonl", lines(ROWS)), **{"kind": "pairs"} | options)


# -- writing ----------------------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(lambda s: s.strip())
VALUES = st.recursive(
    st.booleans() | st.integers(-9, 9) | TEXT,
    lambda v: st.lists(v, max_size=2) | st.dictionaries(TEXT, v, max_size=2),
    max_leaves=4,
)
CALLS = st.lists(st.fixed_dictionaries({"function": st.fixed_dictionaries({"name": TEXT, "arguments": VALUES})}))
EXTRA = st.fixed_dictionaries({}, optional={"tool_calls": CALLS.filter(len), "name": VALUES, "thinking": VALUES})
TOOLS = st.lists(st.dictionaries(TEXT, VALUES, max_size=2), max_size=2).map(tuple)
NUMBER = st.floats(0, 4) | st.just(1.0)


def with_a_masked_turn(turns):
    """The turns, of which the first of several is not learnt."""
    return (replace(turns[0], learnt=False), *turns[1:]) if len(turns) > 1 else tuple(turns)


CHATS = st.tuples(
    st.lists(st.builds(Message, st.sampled_from(["system", "user"]), TEXT, EXTRA), min_size=1, max_size=3).map(tuple),
    st.lists(st.builds(Message, st.just("assistant"), TEXT, EXTRA), min_size=1, max_size=2).map(tuple),
    st.lists(st.builds(Message, st.just("assistant"), TEXT, EXTRA), min_size=1, max_size=2).map(with_a_masked_turn),
)
STRINGS = st.tuples(TEXT, TEXT, TEXT)


def records(texts):
    """Lists of records of one kind, all raw text or all messages."""
    texts = texts.filter(lambda t: t[1] != t[2] and not (isinstance(t[1], str) and t[1].strip() == t[2].strip()))

    def of(kind, *names, **fields):
        def build(parts):
            three, more = parts
            return kind(**dict(zip(names, three, strict=False)), **more)

        return st.lists(st.tuples(texts, st.fixed_dictionaries(fields)).map(build), min_size=1, max_size=4)

    whole = {"tools": TOOLS, "weight": NUMBER}
    return st.one_of(
        of(
            PreferencePair,
            "prompt",
            "chosen",
            "rejected",
            label=st.floats(0, 1),
            margin=st.none() | NUMBER,
            annotator=st.none() | TEXT,
            **whole,
        ).map(lambda rows: ("pairs", rows)),
        of(Judgement, "prompt", "completion", desirable=st.booleans(), **whole).map(lambda rows: ("judgements", rows)),
        of(Demonstration, "prompt", "completion", **whole).map(lambda rows: ("demonstrations", rows)),
        of(
            Comparison,
            "prompt",
            "answer_a",
            "answer_b",
            preference=st.sampled_from(["a", "b", "tie", "both_bad"]),
            strength=st.none() | st.floats(0.01, 1),
            annotator=st.none() | TEXT,
            created_at=st.none() | st.just("2026-11-23T07:00:00+00:00"),
            tools=TOOLS,
        ).map(lambda rows: ("comparisons", rows)),
    )


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".xlsx"])
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(kind_and_records=records(STRINGS) | records(CHATS))
def test_what_is_written_is_read_back(tmp_path, suffix, kind_and_records):
    kind, expected = kind_and_records
    assume(suffix != ".xlsx" or "'nan'" not in repr(expected).lower())  # which is refused: below
    path = tmp_path / f"out{suffix}"
    assert formats.write(expected, path) == len(expected)
    got, source = read(path, kind)
    assert got == expected
    assert not source.counts.dropped
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_written_rows_are_in_the_layout_of_trl(tmp_path):
    pair = PreferencePair(prompt="q", chosen="x", rejected="y", margin=2.0)
    chat = Judgement(prompt=(Message("user", "q"),), completion=(Message("assistant", "x"),), desirable=False)
    formats.write([pair], tmp_path / "a.jsonl")
    assert json.loads((tmp_path / "a.jsonl").read_text()) == {
        "prompt": "q",
        "chosen": "x",
        "rejected": "y",
        "margin": 2.0,
    }
    formats.write([chat], tmp_path / "b.parquet")
    assert pq.read_table(tmp_path / "b.parquet").to_pylist() == [
        {
            "prompt": [{"role": "user", "content": "q"}],
            "completion": [{"role": "assistant", "content": "x"}],
            "label": False,
        }
    ]


def test_a_failed_write_leaves_what_was_there(tmp_path):
    formats.write(PAIRS[:1], tmp_path / "a.jsonl")
    before = (tmp_path / "a.jsonl").read_bytes()
    half = PreferencePair(prompt="q", chosen="\ud800", rejected="y", source="f:3")
    with pytest.raises(ValueError, match=r"record 2 \(f:3\) cannot be written"):
        formats.write([PAIRS[0], half], tmp_path / "a.jsonl")
    assert (tmp_path / "a.jsonl").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]
    with pytest.raises(ValueError, match=r"ends in \.jsonl, \.parquet or \.xlsx"):
        formats.write(PAIRS, tmp_path / "a.csv")
    chat = replace(PAIRS[0], prompt=(Message("user", "q"),))
    for name in ("a.parquet", "a.xlsx"):
        with pytest.raises(ValueError, match=rf"^{name}: some texts .* write \.jsonl"):
            formats.write([PAIRS[0], chat], tmp_path / name)


HOSTILE = [
    "=1+1", '=HYPERLINK("http://x","y")', "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "#N/A", "'=1", " =1 ", "TRUE", "1.0",
    "2026-01-01", "_x0041_", "_x0041_x0042_", "a\x00\x1b\r\nb", "\ufffe", "<b>&amp;", "ñ\U0001f600",
]  # fmt: skip


def test_no_text_becomes_a_formula_or_anything_else_in_a_sheet(tmp_path):
    pairs = [PreferencePair(prompt=text, chosen=f"{text}x", rejected="y") for text in HOSTILE]
    formats.write(pairs, tmp_path / "a.xlsx")
    assert read(tmp_path / "a.xlsx")[0] == pairs
    sheet = openpyxl.load_workbook(tmp_path / "a.xlsx").active
    kinds = {cell.data_type for row in sheet.iter_rows(min_row=2) for cell in row}
    assert kinds <= {"s", "inlineStr"}
    quoted = [sheet.cell(row, 1).quotePrefix for row in range(2, 2 + 5)]
    assert quoted == [True] * 5  # Excel takes it for text when it is edited, too
    with zipfile.ZipFile(tmp_path / "a.xlsx") as book:
        assert b"<f>" not in book.read("xl/worksheets/sheet1.xml")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "chosen is '', which a sheet does not tell from an empty cell"),
        ("nan", "chosen is 'nan', which a sheet does not tell from an empty cell"),
        ("x" * 32_767, "chosen has 32,767 characters, and a cell keeps 32,766"),
        ("\x00" * 5_000, "chosen has 35,000 characters, and a cell keeps 32,766"),
        ("\ud800", "surrogates not allowed"),
    ],
)
def test_what_a_sheet_does_not_keep_is_refused(tmp_path, text, why):
    pair = PreferencePair(prompt="q", chosen=text, rejected="y", source="f:3")
    with pytest.raises(ValueError, match=rf"record 2 \(f:3\) cannot be written: .*{re.escape(why)}"):
        formats.write([PAIRS[0], pair], tmp_path / "a.xlsx")
    assert not list(tmp_path.iterdir())


# -- the real thing ---------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data is not here")
def test_hh_rlhf():
    got, source = read(SHARED / "hh-harmless-test.jsonl.gz")
    assert source.layout.name == "HH-RLHF"
    # four chosen answers are empty; in five pairs the dialogues part before the last answer
    assert source.counts.to_dict() == {"read": 2312, "kept": 2308, "dropped": {"empty chosen": 4}, "changed": {}}
    several = [p for p in got if len(p.chosen) > 1 or len(p.rejected) > 1]
    assert len(several) == 5
    with gzip.open(SHARED / "hh-harmless-test.jsonl.gz", "rt", encoding="utf-8") as f:
        raw = [json.loads(line) for line in f]
    kept = [
        r for r in raw if not r["chosen"].endswith("\n\nAssistant:") and not r["chosen"].endswith("\n\nAssistant: ")
    ]
    for row, pair in zip(kept, got, strict=True):
        if pair in several:
            continue
        for side in ("chosen", "rejected"):
            turns = (*pair.prompt, *getattr(pair, side))
            names = {"user": "Human", "assistant": "Assistant"}
            again = "".join(f"\n\n{names[m.role]}: {m.content}" for m in turns)
            assert " ".join(again.split()) == " ".join(row[side].split())
        assert pair.chosen[0].content == row["chosen"].rpartition("\n\nAssistant:")[2].strip()


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data is not here")
def test_sharegpt_demo():
    got, source = read(SHARED / "dpo_en_demo.json")
    assert source.layout.name == "ShareGPT ranking"
    assert str(source.counts) == "299 read, 299 kept"
    raw = json.loads((SHARED / "dpo_en_demo.json").read_text(encoding="utf-8"))
    assert [p.chosen[0].content for p in got] == [r["chosen"]["value"] for r in raw]
    assert [[m.content for m in p.prompt] for p in got] == [[t["value"] for t in r["conversations"]] for r in raw]
    assert {m.role for p in got for m in p.prompt} == {"system", "user", "assistant"}


def test_reading_needs_neither_torch_nor_the_hub(tmp_path):
    path = put(tmp_path / "d.jsonl", lines(ROWS))
    code = f"""
import sys
from prefiere.data import audit, formats, schema
audit.audit(formats.read({str(path)!r}, kind="pairs"))
bad = {{"torch", "transformers", "datasets", "pyarrow", "pandas"}} & set(sys.modules)
assert not bad, bad
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_columns_that_pandas_wrote_are_named(tmp_path):
    with pytest.raises(DataError, match="columns, not records: write it with orient='records', lines=True"):
        read(put(tmp_path / "d.json", '{"prompt":{"0":"q","1":"r"},"chosen":{"0":"a","1":"b"}}'))


def test_lines_of_two_encodings_are_refused(tmp_path):
    (tmp_path / "d.csv").write_bytes(b"prompt,chosen,rejected\ncaf\xe9,yes it is,no\n" + "señor,sí señor,no\n".encode())
    with pytest.raises(DataError, match=r"d\.csv:3 \(line\): mixed encodings: .*convert the file to UTF-8"):
        read(tmp_path / "d.csv")


def test_a_sheet_with_two_columns_of_one_name_is_refused_and_one_without_a_name_is_named(tmp_path):
    from openpyxl import Workbook

    for names, last in (
        (["prompt", "chosen", "rejected", "rejected"], None),
        (["prompt", "chosen", "rejected"], "x y"),
    ):
        book = Workbook()
        book.active.append(names)
        book.active.append(["How?", "So.", "No.", last])
        book.save(tmp_path / "d.xlsx")
        if last is None:
            with pytest.raises(DataError, match=r"d\.xlsx:1 \(rejected\): two columns have this name"):
                formats.read(tmp_path / "d.xlsx", kind="pairs")
            continue
        assert formats.read(tmp_path / "d.xlsx", kind="pairs").unread == ["(column 4)"]


def in_sheet(path, old: bytes, new: bytes) -> None:
    """Change what a workbook's first sheet says."""
    with zipfile.ZipFile(path) as book:
        parts = {name: book.read(name) for name in book.namelist()}
    sheet = parts["xl/worksheets/sheet1.xml"]
    assert sheet.count(old) == 1
    parts["xl/worksheets/sheet1.xml"] = sheet.replace(old, new)
    with zipfile.ZipFile(path, "w") as book:
        for name, part in parts.items():
            book.writestr(name, part)


@pytest.mark.parametrize("size", ["A1", "A1:C2", "A1:B4"])
def test_a_sheet_that_claims_another_size_is_read_whole(tmp_path, size):
    from openpyxl import Workbook

    book = Workbook()
    for row in (["prompt", "chosen", "rejected"], ["How?", "So.", "No."], [], ["Why?", "Thus.", "No."]):
        book.active.append(row)
    book.save(tmp_path / "d.xlsx")
    in_sheet(tmp_path / "d.xlsx", b'ref="A1:C4"', f'ref="{size}"'.encode())
    source = formats.read(tmp_path / "d.xlsx", kind="pairs")
    found = [(p.source, p.prompt, p.chosen, p.rejected) for p in source]
    assert found == [
        (f"{tmp_path / 'd.xlsx'}:2", "How?", "So.", "No."),
        (f"{tmp_path / 'd.xlsx'}:4", "Why?", "Thus.", "No."),
    ]


def test_formulas_without_their_values_are_named(tmp_path):
    """openpyxl writes a formula without what it gives; a text that is empty is a value."""
    from openpyxl import Workbook

    book = Workbook()
    for row in (["prompt", "chosen", "rejected", "margin", "note"], ["How?", "So.", "No.", "=1+1", "=REPT(A1,0)"]):
        book.active.append(row)
    book.save(tmp_path / "d.xlsx")
    in_sheet(tmp_path / "d.xlsx", b'<c r="E2"><f>REPT(A1,0)</f><v /></c>', b'<c r="E2" t="str"><f>R</f><v></v></c>')
    source = formats.read(tmp_path / "d.xlsx", kind="pairs")
    assert [pair.margin for pair in source] == [None]
    (said,) = source.unread_lines()
    assert said.startswith("column margin holds formulas whose values the workbook lacks")
    in_sheet(tmp_path / "d.xlsx", b"<f>1+1</f><v />", b"<f>1+1</f><v>2</v>")
    source = formats.read(tmp_path / "d.xlsx", kind="pairs")
    assert [pair.margin for pair in source] == [2.0]
    assert source.unread_lines() == []
