"""The prompts that a run watches are those of the split that it learns from, whichever others stand beside it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import runs
from prefiere.console import Display
from prefiere.data.prompts import columns_at
from prefiere.evaluate.compare import validation_prompts
from prefiere.launch import launch
from prefiere.settings import DPO

QUIET = Display(quiet=True)


def splits(folder: Path) -> Path:
    """A data set as UltraFeedback binarized has it: pairs and bare prompts beside each other, of training and test."""
    folder.mkdir()
    lines = runs.pairs_file(folder.parent / "pairs.jsonl").read_text().splitlines()
    for n, name in enumerate(("train_prefs", "test_prefs")):
        rows = [json.loads(line) | {"rank": 7 + i} for i, line in enumerate(lines[n * 16 : n * 16 + 16])]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("train_gen", "test_gen"):
        (folder / f"{name}.jsonl").write_text('{"prompt": "something else?"}\n' * 16)
    return folder


@pytest.mark.parametrize("held_out", [True, False])
def test_watched_prompts_are_read_where_the_pairs_were(tmp_path: Path, held_out: bool) -> None:
    data = splits(tmp_path / "set")
    more = {} if held_out else {"eval_data": str(data)}
    settings = runs.settings(tmp_path, DPO, max_steps=1, **more).model_copy(update={"data": str(data)})
    run = launch(settings, display=QUIET).run
    file = data / ("train_prefs.jsonl" if held_out else "test_prefs.jsonl")
    asked = {json.loads(line)["prompt"] for line in file.read_text().splitlines()}
    answered = {row["prompt"] for row in run.samples}
    assert answered
    assert answered <= asked  # as they were written, not as the template has them
    found = validation_prompts(run, 64)
    assert set(found) >= answered
    assert set(found) <= asked
    places = run.data["eval_sources"]
    rows = columns_at(places, str(data), kind="pairs", purpose="train" if held_out else "eval")
    assert all(rows[place]["rank"] >= 7 for place in places)
