"""Runs from what a notebook holds: as from the file that says the same, resumable, and nothing for a refusal."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest

import prefiere
import runs
from prefiere import recipe
from prefiere.api import training
from prefiere.methods import METHODS
from prefiere.run import Run

SHORT = {"batch_size": 8, "max_steps": 2, "learning_rate": 1e-3, "eval_size": 6, "max_new_tokens": 6,
         "sample_prompts": 4}  # fmt: skip


@pytest.fixture(autouse=True)
def no_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take longer than all else, and nothing here reads them."""
    monkeypatch.setattr(training, "_write_report", lambda run: None)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, pairs and prompts."""
    folder = tmp_path_factory.mktemp("place")
    runs.ragged_folder(folder / "model", chat=False)
    runs.pairs_file(folder / "pairs.jsonl")
    runs.pairs_file(folder / "held-out.jsonl", n=6, seed=1)
    runs.prompts_file(folder / "prompts.txt")
    return folder


def contents(folder: Path) -> Mapping[str, bytes | None]:
    """Everything below a folder: files with what they hold, folders as None."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


@pytest.mark.long
def test_a_run_from_rows_is_the_run_from_their_file(place: Path, tmp_path: Path) -> None:
    given = {"model": place / "model", **SHORT}
    file = prefiere.dpo(data=place / "pairs.jsonl", out=tmp_path / "file", **given)
    pairs = rows(place / "pairs.jsonl")
    held = {"list": pairs, "frame": pd.DataFrame(pairs), "dataset": datasets.Dataset.from_list(pairs)}
    made = {name: prefiere.dpo(data=d, out=tmp_path / name, **given) for name, d in held.items()}
    for name, run in made.items():
        runs.assert_same_run(file, run, sources=False)
        kept = Path(run.recipe["data"])
        assert kept.parent == tmp_path / name / "inputs"
        assert rows(kept) == pairs
        assert run.data["train"]["read"]["files"] == ["data"]
        assert len(list(kept.parent.iterdir())) == 1
    assert len({Path(run.recipe["data"]).name for run in made.values()}) == 1
    assert prefiere.dpo(data=pd.DataFrame(pairs), out=tmp_path / "list", **given).already


@pytest.mark.long
def test_prompts_to_learn_and_to_watch_are_texts(place: Path, tmp_path: Path) -> None:
    texts = (place / "prompts.txt").read_text().splitlines()
    given = {"model": place / "model", "reward": "rewarding:letters", **SHORT, "eval_size": 4}
    file = prefiere.ppo(data=place / "prompts.txt", out=tmp_path / "file", **given)
    held = prefiere.ppo(prompts=texts, out=tmp_path / "held", **given)
    runs.assert_same_run(file, held)
    held_out = rows(place / "held-out.jsonl")
    options = {"model": place / "model", "eval_data": held_out, **SHORT, "sample_prompts": texts[:3]}
    watched = prefiere.sft(data=rows(place / "pairs.jsonl"), out=tmp_path / "sft", **options)
    assert {row["prompt"] for row in watched.samples} == set(texts[:3])
    assert {p.name.partition("-")[0] for p in (tmp_path / "sft" / "inputs").iterdir()} == {
        "data", "eval_data", "sample_prompts",
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"(prompts and data|data and prompts) are the same setting"):
        prefiere.ppo(prompts=texts, data=texts, out=tmp_path / "both", **given)


@pytest.mark.long
def test_a_run_that_was_stopped_goes_on_from_the_same_rows(place: Path, tmp_path: Path) -> None:
    pairs, given = rows(place / "pairs.jsonl"), {"model": str(place / "model"), **SHORT, "max_steps": 4}
    whole = prefiere.dpo(data=pairs, out=tmp_path / "whole", **given)
    real, steps = prefiere.launch.Loop._save, []  # type: ignore[attr-defined]

    def interrupted(loop: Any) -> None:
        real(loop)
        steps.append(loop.state.step)
        if len(steps) == 2:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prefiere.launch.Loop._save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prefiere.dpo(data=pairs, out=tmp_path / "broken", save_steps=1, **given)
    before = contents(tmp_path / "broken")
    others = [{**p, "chosen": p["chosen"] + "!"} for p in pairs]
    with pytest.raises(ValueError, match=r"was started with other settings \(data\)"):
        prefiere.dpo(data=others, out=tmp_path / "broken", **given)
    assert contents(tmp_path / "broken") == before
    moved = (tmp_path / "broken").rename(tmp_path / "moved")  # the rows move with the run
    runs.assert_same_run(whole, prefiere.dpo(data=pairs, out=moved, **given))
    assert Run.open(moved).recipe["data"].startswith(str(moved))
    again = training.train(recipe.load(None, whole.folder / "recipe.yaml"))  # as the command line does, from the recipe
    assert again.already


@pytest.mark.long
def test_rows_of_a_run_that_was_replaced_go_with_it(place: Path, tmp_path: Path) -> None:
    pairs, given = rows(place / "pairs.jsonl"), {"model": str(place / "model"), "out": tmp_path / "run", **SHORT}
    prefiere.dpo(data=pairs, **given)
    first = [p.name for p in (tmp_path / "run" / "inputs").iterdir()]
    with pytest.raises(ValueError, match="on_log failed"):  # before its first checkpoint: the old run comes back
        prefiere.dpo(data=pairs[1:], fresh=True, on_log=lambda step, row: 1 / 0, **given)
    assert [p.name for p in (tmp_path / "run" / "inputs").iterdir()] == first
    assert prefiere.dpo(data=pairs, **given).already
    prefiere.dpo(data=pairs[1:], fresh=True, **given)
    (kept,) = (tmp_path / "run" / "inputs").iterdir()
    assert [kept.name] != first
    assert rows(kept) == pairs[1:]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"data": [{"prompt": "a", "chosen": "b"}, {"prompt": "a", "chosen": 3}]}, 
     "data has no known layout for pairs. Columns found: prompt, chosen"),
    ({"data": [{"prompt": "a", "chosen": "b", "rejected": "c"}, {"prompt": "a", "chosen": 3, "rejected": "c"}]},
     r"data\[1\] \(chosen\): "),
    ({"data": [{"prompt": "a", "chosen": "b", "rejected": "c"}] * 3}, r"data has too few distinct prompts"),
    ({"data": 7.5}, "data must be a name"),
    ({"eval_data": []}, "eval_data: an empty list"),
    ({"model": "no/such/model"}, "there is no model folder no/such/model"),
    ({"betta": 1}, "Did you mean beta"),
    ({"beta": "x" * 100_000}, "beta must be a number above 0"),
    ({"columns": {"prompt": "question"}}, "question"),
]  # fmt: skip


@pytest.mark.parametrize(("wrong", "said"), REFUSED, ids=[said for _, said in REFUSED])
@pytest.mark.parametrize("there", ["nothing", "empty", "run"])
def test_whatever_is_refused_leaves_everything_as_it_was(
    place: Path, tmp_path: Path, wrong: dict[str, Any], said: str, there: str
) -> None:
    """A new folder is not there, an empty one is empty, and a finished run that ``fresh`` would replace is whole."""
    pairs = rows(place / "pairs.jsonl")
    out = tmp_path / "deep" / "run"
    if there != "nothing":
        out.mkdir(parents=True)
    if there == "run":
        (out / "recipe.yaml").write_text("method: dpo\n")
        (out / "inputs").mkdir()
        (out / "inputs" / f"data-{'0' * 32}.jsonl").write_text("{}\n")
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=said) as error:
        prefiere.dpo(**{"model": place / "model", "data": pairs, "out": out, "fresh": True, **SHORT} | wrong)
    assert len(str(error.value)) < 1000
    assert "inputs" not in str(error.value)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["dpo", "grpo"])
@pytest.mark.long
def test_no_setting_given_a_data_set_makes_an_error_of_its_size(name: str, tmp_path: Path) -> None:
    pairs = [{"prompt": f"question {i}", "chosen": "x" * 100, "rejected": "y"} for i in range(5000)]
    wants = {"reward": "rewarding:letters"} if METHODS[name].family == "policy" else {}
    given = {"model": "no/such/model", "data": "no.jsonl", "out": tmp_path / "run", **wants}
    for key in METHODS[name].settings.model_fields.keys() - {"method"}:
        for value in (pairs, {str(i): pair for i, pair in enumerate(pairs)}):
            with pytest.raises((ValueError, FileNotFoundError, TypeError)) as error:
                getattr(prefiere, name)(**given | {key: value})
            assert len(str(error.value)) < 2000, key
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", METHODS)
def test_every_method_refuses_an_empty_list(name: str, tmp_path: Path) -> None:
    wants = {"reward": "rewarding:letters"} if METHODS[name].family == "policy" else {}
    with pytest.raises(ValueError, match="data: an empty list"):
        getattr(prefiere, name)(model="m", data=[], out=tmp_path / "run", **wants)
    assert not (tmp_path / "run").exists()
