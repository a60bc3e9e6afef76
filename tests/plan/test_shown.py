"""What is said while data is read."""

import gzip
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefiere.console import Display, Terminal
from prefiere.data import formats
from prefiere.data.readers import about_lines, read_rows
from prefiere.data.values import DataError
from prefiere.plan.shown import reading

ROWS = [{"prompt": f"question {n}", "chosen": "a" * (1 + n % 7), "rejected": "bb"} for n in range(400)]


def jsonl(path):
    path.write_text("".join(json.dumps(r) + "\n" for r in ROWS))


def csv_file(path):
    path.write_text("prompt,chosen,rejected\n" + "".join(f"{r['prompt']},{r['chosen']},bb\n" for r in ROWS))


def parquet(path):
    pq.write_table(pa.Table.from_pylist(ROWS), path)


def document(path):
    path.write_text(json.dumps({"data": ROWS}, indent=1))


@pytest.mark.parametrize(
    ("name", "make"), [("p.jsonl", jsonl), ("p.csv", csv_file), ("p.parquet", parquet), ("p.json", document)]
)
def test_the_last_number_is_about_that_of_the_last_row(tmp_path, name, make):
    make(path := tmp_path / name)
    *_, (last, _) = read_rows(path)
    assert about_lines(path) == pytest.approx(last, rel=0.02)


def test_of_a_larger_text_it_is_told_by_its_first_lines(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in ROWS * 20))
    assert about_lines(path) == pytest.approx(20 * len(ROWS), rel=0.02)


def test_nothing_is_guessed_of_a_packed_file_or_a_single_line(tmp_path):
    (packed := tmp_path / "p.jsonl.gz").write_bytes(gzip.compress(json.dumps(ROWS[0]).encode()))
    (line := tmp_path / "p.json").write_text(json.dumps(ROWS))
    assert about_lines(packed) is about_lines(line) is None
    records = formats.read(line, kind="pairs")
    list(records)
    assert records.share_read() is None


def test_a_damaged_file_is_told_by_who_reads_it(tmp_path):
    """Not by who counts what is left to read, in passing, while another file is read."""
    parquet(tmp_path / "a.parquet")
    parquet(damaged := tmp_path / "b.parquet")
    damaged.write_bytes(damaged.read_bytes()[:-20])
    records = formats.read(tmp_path, kind="pairs")
    given = iter(records)
    assert next(given).prompt == "question 0"
    assert records.share_read() is None
    with pytest.raises(DataError, match=r"b\.parquet: damaged Parquet after row 0"):
        list(given)


def told(source, seconds_a_row=1.0):
    """What a log says of reading it, with a clock that goes on with each row."""
    now, out = [0.0], io.StringIO()
    display = Display(Terminal(file=out, width=200), clock=lambda: now[0])
    records = formats.read(source, kind="pairs")
    with reading(display, str(source), records) as so_far:
        for n, _ in enumerate(records, 1):
            now[0] += seconds_a_row
            so_far(n)
    return out.getvalue().splitlines()


def test_a_log_has_the_time_that_is_left(tmp_path):
    jsonl(path := tmp_path / "p.jsonl")
    opening, first, *_, last = told(path)
    assert opening.endswith("...")
    assert first.endswith("20 examples, about 6 min left")
    assert last.endswith("400 examples, about 0 s left")


def test_files_of_a_folder_count_together(tmp_path):
    for half in ("a", "b"):
        jsonl(tmp_path / f"{half}.jsonl")
    at_half = next(line for line in told(tmp_path) if " 400 examples" in line)
    assert at_half.endswith("about 7 min left")


def test_where_nothing_says_how_much_there_is_no_time_is_told(tmp_path):
    (path := tmp_path / "p.json").write_text(json.dumps(ROWS))
    assert all("left" not in line for line in told(path))
