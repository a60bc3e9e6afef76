"""Whatever a command refuses, every file of every folder that it was given is byte for byte as it was."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

import runs
from prefiere.cli.main import app
from prefiere.console import Display
from prefiere.feedback.store import Store
from prefiere.launch import launch


def state(folder: Path) -> dict[str, str]:
    """Every file below a folder by its content. A database's log of writes may be folded into its file."""
    kept = (p for p in sorted(folder.rglob("*")) if p.is_file() and p.suffix not in (".db-wal", ".db-shm"))
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in kept}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, a model, data, a store, a reward model's empty place, and files that nobody must touch."""
    folder = tmp_path_factory.mktemp("place")
    launch(runs.settings(folder, max_steps=2), display=Display(quiet=True))
    Store.open(str(folder / "votes.db"), create=True).close()
    (folder / "full").mkdir()
    (folder / "full" / "mine.txt").write_text("mine")
    (folder / "taken.jsonl").write_text("mine\n")
    (folder / "broken.jsonl").write_text('{"prompt": "a", "chosen": \n')
    (folder / "none.jsonl").write_text("")
    (folder / "loop.yaml").write_text("store: votes.db\nmodel: model\nrounds: 2\n")
    (folder / "broken.yaml").write_text("method: dpo\n  model: [\n")
    (folder / "config.yaml").write_text(
        json.dumps({"method": "dpo", "model": "model", "data": "pairs.jsonl", "out": "x", "betta": 1})
    )
    shutil.copytree(folder / "model", folder / "cut")
    weights = folder / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    return folder


REFUSED = [
    "sample nowhere --prompts pairs.jsonl",
    "sample cut --prompts pairs.jsonl",
    "sample model --prompts nowhere.txt",
    "sample model --prompts none.jsonl",
    "sample model --prompts pairs.jsonl --top-p 0",
    "compare run --prompts none.jsonl",
    "compare run --judge nowhere:score",
    "compare model",
    "compare model run",
    "compare run --ask nowhere/votes.db",
    "score model --data pairs.jsonl --out taken.jsonl",
    "score run --data broken.jsonl --out new.jsonl",
    "export run --out full",
    "export model --out new",
    "export run --out new --step 7",
    "export run --out new --prompts none.jsonl",
    "export run --out new --push not/a/name",
    "report model --out new.html",
    "report run --out full",
    "doctor model",
    "doctor run --apply taken.jsonl --lang xx",
    "data broken.jsonl",
    "data none.jsonl",
    "data pairs.jsonl --model nowhere/at/all",
    "estimate config.yaml",
    "estimate broken.yaml",
    "recipe validate config.yaml",
    "recipe from pairs.jsonl",
    "recipe show nothing",
    "votes import votes.db broken.jsonl",
    "votes import votes.db nowhere.jsonl",
    "votes export votes.db --out full/mine.txt/x.jsonl",
    "votes agree run",
    "votes agree pairs.jsonl",
    "votes forget votes.db nobody",
    "votes leave-out votes.db nobody",
    "votes why votes.db 99",
    "votes prioritise nowhere.db",
    "judge votes.db --judge nowhere:score",
    "judge votes.db --judge model",
    "collect votes.db --model cut --prompts pairs.jsonl",
    "collect votes.db --model model --prompts none.jsonl",
    "collect votes.db --model model --model model --prompts pairs.jsonl",
    "collect run/metrics.jsonl --model model --prompts pairs.jsonl",
    "loop loop.yaml",
    "loop pairs.jsonl",
    "dpo --model model --data pairs.jsonl --out full",
    "dpo --model cut --data pairs.jsonl --out run --fresh",
    "dpo --model model --data broken.jsonl --out run --fresh",
    "dpo --model model --data pairs.jsonl --out model",
    "dpo config.yaml",
    "reward --model model --data none.jsonl --out new",
    "ppo --model model --reward nowhere --prompts pairs.jsonl --out new",
]


@pytest.mark.parametrize("line", REFUSED)
def test_a_refusal_leaves_everything_as_it_was(place: Path, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    before = state(place)
    done = CliRunner().invoke(app, line.split())
    assert done.exit_code != 0, done.output
    assert "Traceback" not in done.output
    assert not isinstance(done.exception, Exception) or isinstance(done.exception, SystemExit), repr(done.exception)
    assert state(place) == before, line
