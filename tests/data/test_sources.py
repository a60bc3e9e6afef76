"""What people name as data: sheets and compressed files, files that are no data, folders, and splits everywhere."""

import bz2
import gzip
import json
import lzma
import zipfile
from datetime import date

import openpyxl
import pyarrow as pa
import pytest

from prefiere.data import formats, sources, splits
from prefiere.data.formats import DataError
from prefiere.data.quality.marks import spoken_by

ROWS = [{"prompt": f"¿qué es {i}?", "chosen": f"el {i} — sí", "rejected": f"no sé {i}"} for i in range(3)]
LINES = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in ROWS).encode()


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def texts(path, kind="pairs", **options):
    return [(p.prompt, p.chosen, p.rejected) for p in formats.read(path, kind=kind, **options)]


EXPECTED = [(r["prompt"], r["chosen"], r["rejected"]) for r in ROWS]


# ---- what Excel writes


def sheet(path, *rows, before=0):
    book = openpyxl.Workbook()
    if before:
        book.active.title = "empty"
        book.create_sheet("data")
    for row in rows:
        book.worksheets[-1].append(row)
    book.save(path)
    return path


def test_a_sheet_of_excel(tmp_path):
    rows = [["Prompt", "Chosen", "Rejected", "margin", None], *([*r.values(), 1.5, None] for r in ROWS)]
    path = sheet(tmp_path / "d.xlsx", *rows, [None] * 5, ["q", "x_x000A_y", "nan", None], before=1)
    got = list(formats.read(path, kind="pairs", on_bad="drop"))
    assert [(p.prompt, p.chosen, p.rejected) for p in got] == EXPECTED
    assert [p.margin for p in got] == [1.5] * 3
    assert [p.source for p in got] == [f"{path}:{n}" for n in (2, 3, 4)]
    assert texts(sheet(tmp_path / "e.xlsx", ["prompt", "chosen", "rejected"], ["q", "x_x000A_y", "z"])) == [
        ("q", "x\ny", "z")
    ]


def test_a_team_s_sheet_of_two_answers(tmp_path):
    head = ["Date", "Voter", "Question", "Answer A", "Answer B", "Preferred"]
    said = ["A", "B", "Both bad", "Tie", "BOTH BAD", None]
    rows = [[date(2026, 3, 1), ["Ana", "Luis"][i % 2], f"q{i}", "x", "y", v] for i, v in enumerate(said)]
    path = sheet(tmp_path / "d.xlsx", head, *rows)
    votes = [(c.annotator, c.preference) for c in formats.read_comparisons(path)]
    assert votes == [("Ana", "a"), ("Luis", "b"), ("Ana", "both_bad"), ("Luis", "tie"), ("Ana", "both_bad")]
    source = formats.read(path, kind="pairs")
    assert [(p.chosen[0].content, p.label) for p in source] == [("x", 1.0), ("y", 1.0), ("x", 0.5)]
    assert source.counts.dropped == {"both bad": 2, "unanswered": 1}
    assert source.unread == ["Date"]


def test_a_cell_that_excel_cut_off_is_left_out(tmp_path):
    path = sheet(tmp_path / "d.xlsx", ["prompt", "chosen", "rejected"], ["q", "x" * 32_767, "y"], ["q", "x", "y"])
    source = formats.read(path, kind="pairs")
    assert len(list(source)) == 1
    assert source.counts.dropped == {"cut off by Excel": 1}


@pytest.mark.parametrize("encoding", ["cp1252", "utf-8", "utf-8-sig"])
@pytest.mark.parametrize("head", ["", "sep=;\r\n", '"sep=;"\r\n'])
def test_csv_of_excel(tmp_path, encoding, head):
    lines = ["Prompt;Chosen;Rejected", *(";".join(r.values()) for r in ROWS)]
    path = put(tmp_path / "d.csv", (head + "\r\n".join(lines)).encode(encoding))
    assert texts(path) == EXPECTED
    first = next(iter(formats.read(path, kind="pairs")))
    assert first.source == f"{path}:{3 if head else 2}"


def test_a_guessed_encoding_and_further_sheets_are_said(tmp_path):
    """Bytes beyond ASCII may be Windows-1252 as Excel writes it, or anything else: whoever reads it must look."""
    path = put(tmp_path / "d.csv", "prompt,chosen,rejected\nq,añejo,pan\n".encode("cp1252"))
    source = formats.read(path, kind="pairs")
    assert [p.chosen for p in source] == ["añejo"]
    assert source.unread_lines() == ["d.csv is not UTF-8 and read as Windows-1252: see whether its letters fit"]
    assert source.describe()["remarks"] == source.unread_lines()
    assert source.counts.read == 1
    book = openpyxl.Workbook()
    for title, rows in (
        ("pairs", [["prompt", "chosen", "rejected"], ["q", "x", "y"]]),
        ("Notes", [["see me"]]),
        ("", []),
    ):
        at = book.create_sheet(title)
        for row in rows:
            at.append(row)
    book.save(tmp_path / "d.xlsx")
    source = formats.read(tmp_path / "d.xlsx", kind="pairs")
    assert [(p.prompt, p.chosen) for p in source] == [("q", "x")]
    assert source.unread_lines() == ["sheet not read: Notes"]
    clean = formats.read(put(tmp_path / "e.csv", "prompt,chosen,rejected\nq,añejo,pan\n"), kind="pairs")
    assert list(clean)
    assert clean.unread_lines() == []


def test_cells_of_pandas_that_say_nothing_are_empty(tmp_path):
    path = put(tmp_path / "d.csv", "instruction,input,output\nq,nan,x\nq,NaN,y\nq,,z\n")
    got = list(formats.read(path, kind="demonstrations"))
    assert [r.prompt[-1].content for r in got] == ["q"] * 3


# ---- compressed files, and files that are no data


def zipped(path, files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def zstd(path, content):
    with pa.CompressedOutputStream(str(path), "zstd") as f:
        f.write(content)
    return path


PACK = {
    "d.jsonl.gz": lambda p: put(p, gzip.compress(LINES)),
    "d.jsonl.xz": lambda p: put(p, lzma.compress(LINES)),
    "d.jsonl.bz2": lambda p: put(p, bz2.compress(LINES)),
    "d.jsonl.zst": lambda p: zstd(p, LINES),
    "d.zip": lambda p: zipped(p, {"data/d.jsonl": LINES, "__MACOSX/d.jsonl": b"x", "data/.DS_Store": b"x"}),
    "unnamed": lambda p: put(p, lzma.compress(LINES)),
}


@pytest.mark.parametrize("name", PACK)
def test_compressed_files(tmp_path, name):
    path = PACK[name](tmp_path / name)
    assert texts(path) == EXPECTED
    if name != "unnamed":
        assert texts(tmp_path) == EXPECTED


@pytest.mark.parametrize("name", ["d.jsonl.xz", "d.jsonl.bz2", "d.jsonl.zst", "d.zip"])
def test_damaged_compressed_files(tmp_path, name):
    whole = LINES * 3000
    made = {
        "d.jsonl.xz": lambda p: put(p, lzma.compress(whole)),
        "d.jsonl.bz2": lambda p: put(p, bz2.compress(whole)),
        "d.jsonl.zst": lambda p: zstd(p, whole),
        "d.zip": lambda p: zipped(p, {"d.jsonl": whole}),
    }[name](tmp_path / name)
    content = made.read_bytes()
    made.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"damaged|cannot be read|broken JSON"):
        texts(made)


NO_DATA = {
    "d.jsonl": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0a\nsize 12\n", "git lfs pull"),
    "d.parquet": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0a\nsize 12\n", "git lfs pull"),
    "d.db": (b"SQLite format 3\0" + b"\0" * 100, "an SQLite database"),
    "d.png": (b"\x89PNG\r\n\x1a\n" + b"\0" * 20, "an image"),
    "d.jpg": (b"\xff\xd8\xff\xe0" + b"\0" * 20, "an image"),
    "d.xls": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 20, "save it as .xlsx"),
    "d.pkl": (b"\x80\x04\x95\0", "a pickle"),
    "d.json": (b"<!DOCTYPE html><html>", "a web page"),
}


@pytest.mark.parametrize("name", NO_DATA)
def test_what_is_no_data_is_named(tmp_path, name):
    content, said = NO_DATA[name]
    with pytest.raises(DataError, match=said):
        texts(put(tmp_path / name, content))


def test_a_zip_of_several_files_says_so(tmp_path):
    with pytest.raises(DataError, match=r"2 files in this zip file \(a\.jsonl, b\.jsonl"):
        texts(zipped(tmp_path / "d.zip", {"a.jsonl": LINES, "b.jsonl": LINES}))


# ---- folders


def test_what_lies_beside_data_is_not_read_and_named(tmp_path):
    put(tmp_path / "pairs.jsonl", LINES)
    beside = {
        "README.md": "# x",
        "metadata.json": '{"version": 1}',
        "notes.txt": "buy milk",
        "about.json": '{"by": "Ana"}',
    }
    for name, content in beside.items():
        put(tmp_path / name, content)
    source = formats.read(tmp_path, kind="pairs")
    assert len(list(source)) == 3
    assert [name.rpartition("/")[2] for name in source.beside] == ["about.json", "metadata.json", "notes.txt"]
    assert source.unread_lines()[-1].startswith("files not read: ")
    assert source.describe()["unread_files"] == list(source.beside)


def test_text_alone_is_data(tmp_path):
    put(tmp_path / "a.txt", "one\ntwo\n")
    assert [p.prompt for p in formats.read(tmp_path, kind="prompts")] == ["one", "two"]


# ---- splits


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("owner/name", ("owner/name", None, None)),
        ("owner/name:config[test_prefs]@v1.0", ("owner/name:config", "test_prefs", "v1.0")),
        ("owner/name@0a1b", ("owner/name", None, "0a1b")),
        ("folder[train]", ("folder", "train", None)),
        ("a@b.jsonl", ("a@b.jsonl", None, None)),
    ],
)
def test_names(name, expected):
    found = splits.read_name(name)
    assert (found.base, found.split, found.revision) == expected


def test_a_slice_is_no_split_and_two_splits_are_one_too_many(tmp_path):
    with pytest.raises(DataError, match=r"is no split; write its name alone"):
        formats.read("owner/name[train[:10%]]", kind="pairs")
    put(tmp_path / "train.jsonl", LINES)
    with pytest.raises(DataError, match="leave one out"):
        formats.read(f"{tmp_path}[train]", kind="pairs", split="test")


def test_a_path_that_looks_like_a_split_is_a_path(tmp_path):
    path = put(tmp_path / "odd[1]" / "train.jsonl", LINES)
    assert texts(path.parent) == texts(path) == EXPECTED


def folder(tmp_path, *names):
    for i, name in enumerate(names):
        put(tmp_path / name, json.dumps(ROWS[i]) + "\n")
    return tmp_path


def test_a_split_is_named_in_the_name_and_the_held_out_one_is_validated_on(tmp_path):
    folder(tmp_path, "train.jsonl", "test.jsonl")
    assert texts(tmp_path) == EXPECTED[:1]
    assert texts(f"{tmp_path}[test]") == EXPECTED[1:2]
    assert texts(tmp_path, purpose="eval") == EXPECTED[1:2]
    assert texts(f"{tmp_path}[train]", purpose="eval") == EXPECTED[:1]


def test_of_two_held_out_splits_one_is_to_be_named(tmp_path):
    folder(tmp_path, "train.jsonl", "test.jsonl", "validation.jsonl")
    with pytest.raises(DataError, match="which split to validate on"):
        texts(tmp_path, purpose="eval")


HELD_OUT = ["test.jsonl", "pairs-test.jsonl", "pairs.test.jsonl", "test/x.jsonl", "Test-part1.jsonl", "val_2.jsonl",
            "eval-00000-of-00002.jsonl", "heldout.jsonl", "held-out.jsonl", "pairs_held_out.jsonl"]  # fmt: skip


@pytest.mark.parametrize("name", HELD_OUT)
def test_files_of_a_test_split_are_not_trained_on(tmp_path, name):
    folder(tmp_path, "pairs.jsonl", name)
    assert texts(tmp_path) == EXPECTED[:1]
    (tmp_path / "pairs.jsonl").unlink()
    with pytest.raises(DataError, match="held out by its name"):
        texts(tmp_path)
    assert texts(tmp_path, purpose="eval") == EXPECTED[1:2]


def test_a_data_set_with_a_test_split_alone_is_not_trained_on(tmp_path):
    import datasets

    datasets.DatasetDict(test=datasets.Dataset.from_list(ROWS)).save_to_disk(tmp_path / "d")
    with pytest.raises(DataError, match="held out by its name"):
        texts(tmp_path / "d")
    assert texts(f"{tmp_path / 'd'}[test]") == EXPECTED


def by_row(tmp_path, *names):
    rows = [r | {"split": s} for r, s in zip(ROWS, names, strict=True)]
    return put(tmp_path / "d.jsonl", "".join(json.dumps(r) + "\n" for r in rows))


def test_rows_that_name_their_split(tmp_path):
    path = by_row(tmp_path, "train", "test", "train")
    source = formats.read(path, kind="pairs")
    assert len(list(source)) == 2
    assert source.counts.dropped == {"of split test": 1}
    assert source.unread == []
    assert texts(path, split="test") == texts(f"{path}[test]") == texts(path, purpose="eval") == EXPECTED[1:2]
    with pytest.raises(DataError, match="no split dev"):
        texts(path, split="dev")
    with pytest.raises(DataError, match="held out by its name"):
        texts(by_row(tmp_path, "test", "test", "test"))


def test_a_column_split_that_names_no_splits_is_a_column(tmp_path):
    source = formats.read(by_row(tmp_path, "banana", "peach", "train"), kind="pairs")
    assert len(list(source)) == 3
    assert source.unread == ["split"]


def rows_said(tmp_path, *said, **options):
    """Which rows are read, by their number, where these are the values of their column split (... for no column)."""
    rows = [
        {"prompt": f"q{i}", "chosen": f"{i}", "rejected": "no"} | ({} if s is ... else {"split": s})
        for i, s in enumerate(said)
    ]
    path = put(tmp_path / "d.jsonl", "".join(json.dumps(r) + "\n" for r in rows))
    source = formats.read(path, kind="pairs", **options)
    return [int(p.chosen) for p in source], dict(source.counts.dropped)


@pytest.mark.parametrize("gap", [None, ..., "", "banana"])
@pytest.mark.parametrize("first", [True, False])
def test_one_row_of_no_split_lets_no_held_out_row_in(tmp_path, gap, first):
    said = [gap, "train", "test", "train"] if first else ["train", "test", "train", gap]
    got, dropped = rows_said(tmp_path, *said)
    assert got == ([1, 3] if first else [0, 2])
    assert dropped == {"of split test": 1, "of split banana" if gap == "banana" else "without a split": 1}
    assert rows_said(tmp_path, *said, purpose="eval")[0] == ([2] if first else [1])


def test_held_out_rows_behind_the_first_ones_are_left_out(tmp_path):
    assert rows_said(tmp_path, *[...] * 40, "test", ...) == ([*range(40), 41], {"of split test": 1})
    assert rows_said(tmp_path, None, *["train"] * 40, "test")[1] == {"of split test": 1, "without a split": 1}
    assert rows_said(tmp_path, *["banana"] * 40, "held_out") == ([*range(40)], {"of split held_out": 1})
    with pytest.raises(DataError, match="held out by its name"):
        rows_said(tmp_path, None, "banana", "test")


@pytest.mark.parametrize("name", ["held_out", "held-out", "Held out", "hold_out", "heldout"])
def test_held_out_in_every_spelling(tmp_path, name):
    assert rows_said(tmp_path, "train", name) == ([0], {f"of split {name}": 1})
    assert rows_said(tmp_path, "train", name, split=name)[0] == [1]


def test_a_null_beside_training_rows_alone_changes_nothing(tmp_path):
    assert rows_said(tmp_path, "train", None, "train") == ([0, 1, 2], {})


def test_a_list_of_splits_is_one_line(tmp_path):
    with pytest.raises(DataError, match=r"d\.jsonl:1 \(split\): expected the name of one split, found \['train'\]"):
        rows_said(tmp_path, ["train"], ["test"])
    assert rows_said(tmp_path, ["train"], ["test"], columns={"split": None})[0] == [0, 1]
    assert rows_said(tmp_path, ["sums"], ["prose", "verse"])[0] == [0, 1]


def test_rows_of_the_split_that_suits_the_kind(tmp_path):
    names = ["train_prefs", "test_prefs", "train_sft", "test_sft"]
    rows = [{"prompt": n, "completion": "x", "split": n} for n in names]
    path = put(tmp_path / "d.jsonl", "".join(json.dumps(r) + "\n" for r in rows))

    def read(**options):
        return [d.prompt for d in formats.read(path, kind="demonstrations", **options)]

    assert (read(), read(purpose="eval")) == (["train_sft"], ["test_sft"])


def test_the_commit_of_the_hub_is_recorded(monkeypatch, tmp_path):
    import datasets

    sha, asked = "0a1b2c3d" * 5, []

    def load(name, config, **options):
        asked.append((name, config, options))
        datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / sha)  # where the library puts what it makes
        return datasets.DatasetDict(train=datasets.load_from_disk(tmp_path / sha))

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(sources, "why_no_data", lambda *_, **__: None)
    source = formats.read("owner/name:config[train]@main", kind="pairs")
    assert asked == [("owner/name", "config", {"revision": "main"})]
    assert source.commit == source.describe()["commit"] == sha


def test_a_name_with_a_split_is_still_the_hubs():
    assert sources.on_hub("owner/name:config[test]@main")
    assert not sources.on_hub("folder/data.jsonl[test]")


@pytest.mark.parametrize(
    ("row", "remark"),
    [
        (
            {"question": "p", "answer_a": "x", "answer_b": "y", "rating_a": 4, "rating_b": 2},
            "rating_a, rating_b the higher",
        ),
        ({"prompt": "p", "completions": ["x", "y"], "scores": [4, 2]}, "scores the higher"),
        ({"prompt": "p", "completions": ["x", "y"], "ranks": [1, 2]}, "ranks the lower"),
        ({"question": "p", "answer_a": "x", "answer_b": "y", "preference": "a"}, None),
    ],
)
def test_which_way_numbers_are_read_is_said(tmp_path, row, remark):
    """School grades may be better where they are lower."""
    (tmp_path / "d.jsonl").write_text(json.dumps(row) + "\n")
    source = formats.read(tmp_path / "d.jsonl", kind="pairs")
    (pair,) = source
    assert spoken_by(pair.chosen) == "x"
    assert list(source.remarks) == ([f"of {remark} is taken for the better answer"] if remark else [])


@pytest.mark.parametrize("stars", [(1, 5, 3), ("1", "5", "3")])
def test_answers_with_grades_are_no_good_and_bad_ones_and_it_is_said_why(tmp_path, stars):
    rows = [{"prompt": f"p{i}", "completion": "x", "label": s} for i, s in enumerate(stars)]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    with pytest.raises(DataError, match=r"label holds numbers \(1, 3, 5\): write true where an answer is good"):
        list(formats.read(tmp_path / "d.jsonl", kind="judgements"))
