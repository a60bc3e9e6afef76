"""From one file to its rows."""

from __future__ import annotations

import json
from pathlib import Path

from prefiere.data.readers import read_rows


def test_a_row_with_a_list_of_its_own_is_no_wrapper(tmp_path: Path) -> None:
    """``data`` may be a column of JSON Lines; where it is all of a file, of one line too, it wraps the rows."""
    rows = [{"data": [{"a": 1}, None], "prompt": f"What of {i}?", "completion": f"It is {i}."} for i in range(3)]
    lines = tmp_path / "rows.jsonl"
    lines.write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert [row for _, row in read_rows(lines)] == rows
    alone = tmp_path / "alone.jsonl"
    alone.write_text(json.dumps({"data": rows}) + "\n")
    assert [row for _, row in read_rows(alone)] == rows
    pretty = tmp_path / "pretty.jsonl"
    pretty.write_text(json.dumps({"data": rows}, indent=1))
    assert [row for _, row in read_rows(pretty)] == rows
