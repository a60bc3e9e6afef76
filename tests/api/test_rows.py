"""What a notebook holds becomes the same rows as the file that says the same, and what cannot is refused by place."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest

from prefiere.api.rows import Rows, rows_of
from prefiere.data.values import DataError

PAIRS = [
    {"prompt": f"¿Qué es {i}?", "chosen": f"un número {i}.", "rejected": "nada.", "n": i, "tags": ["a", "b"]}
    for i in range(5)
]


def taken(value: Any, **options: Any) -> Rows:
    rows, _ = rows_of(value, "data", "pairs", **options)
    assert rows is not None
    return rows


def read_back(value: Any, **options: Any) -> list[Any]:
    return [json.loads(line) for line in taken(value, **options).lines()]


@pytest.mark.parametrize("held", [PAIRS, tuple(PAIRS), pd.DataFrame(PAIRS), datasets.Dataset.from_list(PAIRS)])
def test_every_form_gives_the_same_rows_under_the_same_hash(held: Any, tmp_path: Path) -> None:
    rows = taken(held)
    assert [json.loads(line) for line in rows.lines()] == PAIRS
    assert rows.digest() == taken(PAIRS).digest()
    rows.write(tmp_path / "rows.jsonl")
    assert [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text("utf-8").splitlines()] == PAIRS
    assert rows.digest() != taken(PAIRS[::-1]).digest()


def test_names_are_left_alone() -> None:
    for name in ("pairs.jsonl", Path("pairs.jsonl"), None):
        assert rows_of(name, "data", "pairs") == (None, False)


def test_plain_texts_are_prompts() -> None:
    assert read_back(["What is a dog?", "two\nlines"]) == [{"text": "What is a dog?"}, {"text": "two\nlines"}]


def test_values_become_what_json_has() -> None:
    given = {
        "i": np.int64(3), "f": np.float32(0.5), "b": np.bool_(True), "array": np.arange(3), "missing": float("nan"),
        "none": None, "na": pd.NA, "nat": pd.NaT, "day": date(2026, 11, 28), "stamp": pd.Timestamp("2026-11-28 10:00"),
        "decimal": Decimal("1.5"), "nested": {"t": (1, np.str_("x")), 2: math.nan},
    }  # fmt: skip
    assert read_back([given]) == [
        {
            "i": 3, "f": 0.5, "b": True, "array": [0, 1, 2], "missing": None, "none": None, "na": None, "nat": None,
            "day": "2026-11-28", "stamp": "2026-11-28T10:00:00", "decimal": 1.5, "nested": {"t": [1, "x"], "2": None},
        }
    ]  # fmt: skip


def test_a_frame_has_its_gaps_and_its_named_index() -> None:
    frame = pd.DataFrame({"prompt": ["a", "b"], "score": [1.0, None], 7: ["x", None]}).set_index("prompt")
    assert read_back(frame) == [{"prompt": "a", "score": 1.0, "7": "x"}, {"prompt": "b", "score": None, "7": None}]


def test_a_data_set_in_the_format_of_a_library_gives_plain_values() -> None:
    held = datasets.Dataset.from_list([{"prompt": "a", "n": 1}]).with_format("numpy")
    assert read_back(held) == [{"prompt": "a", "n": 1}]


def test_the_split_of_a_data_set_is_told_where_it_can_be() -> None:
    split = {
        name: datasets.Dataset.from_list([{"prompt": name}]) for name in ("train_sft", "train_prefs", "test_prefs")
    }
    held = datasets.DatasetDict(split)
    assert read_back(held) == [{"prompt": "train_prefs"}]
    assert read_back(held, purpose="eval") == [{"prompt": "test_prefs"}]
    rows, used = rows_of(held, "data", "pairs", split="train_sft")
    assert rows is not None
    assert used
    assert rows.said == "data: split train_sft (not read: train_prefs, test_prefs)"
    with pytest.raises(DataError, match=r"^data: no split trian_sft; did you mean train_sft\? Splits: train_sft, "):
        rows_of(held, "data", "pairs", split="trian_sft")
    unclear = datasets.DatasetDict({"english": split["train_sft"], "spanish": split["train_sft"]})
    with pytest.raises(DataError, match=r"^data: which split\? Name it"):
        rows_of(unclear, "data", "pairs")


UNFIT: list[tuple[Any, str]] = [
    ([], "data: an empty list, without rows"),
    (pd.DataFrame({"prompt": []}), "data: a DataFrame without rows"),
    (datasets.Dataset.from_list([]), "data: a Dataset without rows"),
    ([{"prompt": "a"}, "b"], "data[1]: str 'b', where a dict of columns is expected"),
    (["a", {"prompt": "b"}], "data[1]: dict {'prompt': 'b'}, where a text is expected"),
    ([{"prompt": "a"}, {"prompt": b"b"}], "data[1], column prompt: bytes b'b' cannot be kept; give text, a number"),
    ([{"prompt": "a", "x": [1, {"y": math.inf}]}], "data[0], column x: an infinite number"),
    ([{"prompt": "\ud800"}], "data[0]: a character that no text file holds (U+D800); take it out"),
    ([{("a", "b"): 1}], "data[0]: ('a', 'b') is no name of a column"),
    (pd.DataFrame([[1, 2]], columns=["a", "a"]), "data: several columns are called a"),
    (pd.DataFrame([[1, 2]], columns=[1, "1"]), "data: several columns are called 1; rename or drop all but one"),
    ([{"n": 1}, {1: 1, "1": 2}], "data[1]: several columns are called 1; rename or drop all but one"),
    ([{"n": {2: 1, "2": 2}}], "data[0], column n: several columns are called 2; rename or drop all but one"),
    (pd.DataFrame({"a": [1]}, index=pd.Index([1], name="a")), "data: several columns are called a; rename or drop all"),
    (pd.DataFrame({"level_0": [1]}, index=pd.MultiIndex.from_tuples([(1, 2)])), "several columns are called level_0"),
    (pd.DataFrame([[1]], columns=pd.MultiIndex.from_tuples([("a", "b")])), "data: columns of several levels"),
    ({"prompt": ["a"], "chosen": ["b"]}, "Give pandas.DataFrame(it), or a list with a dict for each row."),
    (pd.Series(["a"]), "Give its list: it.tolist()."),
    ((c for c in "ab"), "Give a list of it: list(it)."),
    (7.5, "data must be a name (file, folder, hub id), a list of dicts, a pandas DataFrame or a datasets.Dataset, not"),
]  # fmt: skip


@pytest.mark.parametrize(("held", "said"), UNFIT)
def test_what_cannot_be_kept_is_refused_by_its_place(held: Any, said: str) -> None:
    with pytest.raises(DataError) as error:
        list(taken(held).lines())
    assert said in str(error.value)


def test_no_error_repeats_the_data() -> None:
    many = [{"prompt": "x" * 1000, "chosen": b"y" * 100_000}] * 5000
    for held in (many, {"rows": many}, [*many, "a" * 100_000], iter(many)):
        with pytest.raises(DataError) as error:
            list(taken(held).lines())
        assert len(str(error.value)) < 500


def test_no_library_is_imported_for_a_list() -> None:
    code = (
        "import sys; from prefiere.api.rows import rows_of; rows_of([{'a': 1}], 'data', 'pairs')[0].digest(); "
        "print([m for m in ('pandas', 'datasets', 'torch', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
