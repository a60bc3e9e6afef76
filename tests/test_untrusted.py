"""Files that nobody vouches for: what is no plain file, too large, or grows when read is refused in one line."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path

import pytest
import yaml

from prefiere import untrusted
from prefiere.run import Run, RunError
from prefiere.untrusted import UnreadableFile, at_ends, read_json, read_log, read_yaml, thinned

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{k}: &{k} [{','.join(['*' + above] * 9)}]\n" for above, k in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a: &a {k: v}\n" + "".join(
    f"{k}: &{k} {{<<: [{','.join(['*' + above] * 9)}]}}\n" for above, k in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(("text", "why"), [
    (BOMB, "stands for more than"), (MERGES, "stands for more than"), ("a: &a [*a]", "stands for more than"),
    ("- 1", "no names and values"), ("1: 2", "no names and values"),
    ("a: !!python/object/apply:os.system [x]", "damaged"),
    ("a: " + "{a: " * 3000, "damaged"), ("a: " + "9" * 5000, "damaged"), ("a: [", "damaged"),
    ("a: " + "x" * untrusted.LONGEST_YAML, "more than 65,536 bytes"),
])  # fmt: skip
def test_yaml_that_no_run_writes_is_refused(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(UnreadableFile, match=why) as refused:
        read_yaml(tmp_path / "recipe.yaml")
    assert "\n" not in str(refused.value)


def test_a_list_that_is_named_twice_is_no_bomb(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run")
    shared = ["data.jsonl"]
    (run.folder / "recipe.yaml").write_text(yaml.safe_dump({"data": shared, "eval_data": shared}))
    assert "*" in (run.folder / "recipe.yaml").read_text()
    assert run.recipe == {"data": ["data.jsonl"], "eval_data": ["data.jsonl"]}


@pytest.mark.parametrize("text", ["[1]", "3", '{"a": ' * 100_000, '{"a": ' + "1" * 5000 + "}", '{"a"', "\ud800"])
def test_json_that_no_run_writes_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "status.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(RunError, match=r"status.json is damaged.*Restore it"):
        _ = Run(tmp_path).status


@pytest.mark.parametrize("name", ["recipe.yaml", "status.json", "data.json", "metrics.jsonl", "samples.jsonl"])
def test_links_pipes_and_folders_are_not_read(tmp_path: Path, name: str) -> None:
    private = tmp_path / "private"
    private.write_text('{"secret": 1}')
    run = Run.create(tmp_path / "run")
    file = run.folder / name
    reads = {"recipe.yaml": "recipe", "status.json": "status", "data.json": "data", "metrics.jsonl": "metrics",
             "samples.jsonl": "samples"}  # fmt: skip
    file.symlink_to(private)
    with pytest.raises(RunError, match="symbolic link"):
        getattr(run, reads[name])
    file.unlink()
    os.mkfifo(file)  # opening one to read waits for a writer, for ever
    with pytest.raises(RunError, match="no plain file"):
        getattr(run, reads[name])
    file.unlink()
    file.mkdir()
    with pytest.raises(RunError, match="no plain file"):
        getattr(run, reads[name])


def test_a_log_is_read_up_to_the_row_at_which_its_writer_is(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    log.write_text('{"step": 1}\n\n{"step": 2}\n{"ste')
    assert [row["step"] for row, _ in read_log(log)] == [1, 2]
    for bad in ('{"step": "x"}', "[1]", '{"step": NaN}', "{", '{"a": "' + "x" * untrusted.LONGEST_ROW + '"}'):
        log.write_text('{"step": 1}\n' + bad + '\n{"step": 2}\n')
        with pytest.raises(UnreadableFile, match=r"metrics.jsonl:2 is damaged"):
            list(read_log(log))
    assert list(read_log(tmp_path / "none")) == []


@pytest.mark.parametrize(("rows", "kept"), [(1, 1), (10_000, 10_000), (10_001, 5_001), (100_000, 6_251)])
def test_a_long_log_is_thinned_evenly_and_keeps_its_ends(rows: int, kept: int) -> None:
    found = [row["step"] for row in thinned(({"step": i}, 10) for i in range(rows))]
    assert len(found) == kept
    assert (found[0], found[-1]) == (0, rows - 1)
    assert len({b - a for a, b in itertools.pairwise(found[:-1])}) <= 1  # the last may be nearer


def test_rows_of_a_megabyte_do_not_add_up() -> None:
    found = thinned(({"step": i}, untrusted.LONGEST_ROW) for i in range(1000))
    assert len(found) <= untrusted.MOST_TEXT // untrusted.LONGEST_ROW + 1
    assert found[-1]["step"] == 999


def test_of_answers_the_first_and_the_last_step_are_kept(tmp_path: Path) -> None:
    rows = [{"step": s, "n": n} for s in (0, 10, 20, 30) for n in range(3)]
    assert at_ends((r, 10) for r in rows) == rows[:3] + rows[-3:]
    assert at_ends((r, 10) for r in rows[:3]) == rows[:3]
    run = Run.create(tmp_path)
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert run.samples == rows
    assert run.samples_at_ends() == rows[:3] + rows[-3:]


def test_a_json_file_of_another_size_is_refused(tmp_path: Path) -> None:
    with open(tmp_path / "data.json", "wb") as f:
        f.truncate(untrusted.LONGEST_FILE + 1)
    with pytest.raises(UnreadableFile, match="more than 16,777,216 bytes"):
        read_json(tmp_path / "data.json")
    with open(tmp_path / "metrics.jsonl", "wb") as f:
        f.truncate(untrusted.LONGEST_LOG + 1)
    with pytest.raises(UnreadableFile, match="bytes"):
        list(read_log(tmp_path / "metrics.jsonl"))
