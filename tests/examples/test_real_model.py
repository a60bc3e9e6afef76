"""The example's whole path with a tiny model and a few invented pairs."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import runs
from examples.test_hh_harmless import write_pairs


@pytest.fixture(scope="module")
def example() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[2] / "examples"))
        return importlib.import_module("real_model")


@pytest.fixture(scope="module")
def finished(example: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], dict[str, Any]]:
    tmp = tmp_path_factory.mktemp("real")
    model = runs.settings(tmp).model
    data = write_pairs(tmp / "pairs.jsonl")
    given = [f"--model={model}", f"--data={data}", f"--out={tmp / 'out'}", "--prompts=3", "--new-tokens=4"]
    given += ["--steps=2", "--batch=2"]
    return tmp / "out", given, example.main(given)


@pytest.mark.long
def test_each_pair_is_judged_by_what_learnt_from_the_other_half(finished: tuple[Path, list[str], Any]) -> None:
    out, _, found = finished
    read = {}
    for k in (0, 1):
        for name in ("train", "eval"):
            read[k, name] = {json.dumps(json.loads(line)) for line in (out / f"half-{k}/{name}.jsonl").open()}
    assert read[0, "train"] == read[1, "eval"]
    assert read[1, "train"] == read[0, "eval"]
    assert not read[0, "train"] & read[0, "eval"]
    assert len(read[0, "train"] | read[0, "eval"]) == found["pairs"] == 14
    assert found["ways"]["characters"]["accuracy"]["mean"] == pytest.approx(9 / 14)
    assert set(found["ways"]) == {"characters", "before", "before_per_token", "reward", "reward-lora", "dpo"}


@pytest.mark.long
def test_the_judge_learnt_from_nothing_that_the_policies_saw(finished: tuple[Path, list[str], Any]) -> None:
    out, _, found = finished
    assert set(found["answers"]) == {"dpo", "ppo"}
    for name, shown in json.loads((out / "answers.json").read_text()).items():
        a = found["answers"][name]
        assert a["won"] + a["lost"] + a["tied"] == len(shown) == 3
        gains = [row["score_after"] - row["score_before"] for row in shown]
        assert a["gain"]["mean"] == pytest.approx(np.mean(gains), abs=1e-6)
    assert set(found["runs"]) == {f"half-{k}/{r}" for k in (0, 1) for r in ("dpo", "reward", "reward-lora")} | {
        "half-0/ppo"
    }


@pytest.mark.long
def test_the_same_command_repeats(example: ModuleType, finished: tuple[Path, list[str], Any]) -> None:
    _, given, found = finished
    assert example.main(given) == found


def test_whole_conversations_are_drawn(example: ModuleType) -> None:
    keys = np.asarray([7, 7, 8, 9, 9, 9, 10, 11])
    assert example.drawn(keys, None, 0) == list(range(8))
    for seed in range(5):
        kept = example.drawn(keys, 4, seed)
        assert 1 <= len(kept) <= 4
        assert all((keys[kept] == name).sum() == (keys == name).sum() for name in set(keys[kept].tolist()))
