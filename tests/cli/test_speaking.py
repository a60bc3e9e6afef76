"""What a training command says off a terminal: a line for each row; at the end the verdict, figures and what next."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import runs
from prefiere.api import training
from prefiere.cli.main import app
from prefiere.doctor.diagnose import diagnose
from prefiere.run import Run
from prefiere.stats import Moments
from prefiere.train.logs import noted

SMALL = [
    "template=never",
    "batch_size=8",
    "max_new_tokens=6",
    "eval_size=6",
    "sample_prompts=4",
    "dtype=float32",
    "learning_rate=0.003",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("speaking")
    runs.ragged_folder(made / "model")
    runs.pairs_file(made / "pairs.jsonl")
    return made


def train(folder: Path, out: str, *words: str) -> Result:
    paths = ["--model", str(folder / "model"), "--data", str(folder / "pairs.jsonl"), "--out", str(folder / out)]
    return CliRunner().invoke(app, ["dpo", *paths, *SMALL, *words])


@pytest.fixture(scope="module")
def done(folder: Path) -> Result:
    """Six steps, logged every other, validated at the end."""
    return train(folder, "run", "--max-steps", "6", "--logging-steps", "2", "--eval-steps=6", "--guard", "false")


def test_a_log_gets_a_line_for_each_row(done: Result, folder: Path) -> None:
    assert done.exit_code == 0, done.output
    lines = [line for line in done.stderr.splitlines() if line.startswith("step ")]
    rows = Run(folder / "run").metrics
    assert [line.split("  ")[0] for line in lines] == [f"step {row['step']}/6" for row in rows]
    for line, row in zip(lines, rows, strict=True):
        assert f"loss {row['loss']:.4g}  rewards/accuracies {row['rewards/accuracies']:.1%}" in line
        margin = float(line.split("rewards/margins ")[1].split()[0])
        assert margin == pytest.approx(row["rewards/margins"], rel=1e-3, abs=1e-6)
        assert ("held out: loss" in line) == ("eval_loss" in row)
    assert re.search(r"  [\d,]+ tokens/s  about \d+ s left$", lines[1])
    assert lines[-1].endswith("tokens/s")
    assert f"held out: loss {rows[-1]['eval_loss']:.4g}, rewards/accuracies" in lines[-1]


def test_long_phases_say_that_they_began(done: Result) -> None:
    said = done.stderr
    order = ["reading ", "loading ", "reference log-probs (", "before training", "step 0/6"]
    assert [said.index(word) for word in order] == sorted(said.index(word) for word in order)


def test_the_end_has_the_verdict_three_figures_and_what_to_do_next(done: Result, folder: Path) -> None:
    told = diagnose(Run(folder / "run"))
    said = done.stdout.splitlines()
    assert told.headline in said
    figures = [line for line in said if " → " in line]
    assert [line.split(" on held-out data")[0].strip() for line in figures[:2]] == ["accuracy", "margin"]
    assert len(figures) == 3
    assert figures[2].strip().startswith("KL to the start: ")
    assert [line for line in said if line.startswith("  Next: ")] == [  # six prompts held out: too few to conclude from
        "  Next: a larger eval_size, or more data",
        "  Next: more updates: a larger num_train_epochs, or a smaller batch_size, if the curves still rise at the end",
    ]
    run = folder / "run"
    assert f"Try it: prefiere chat {run}, prefiere compare {run}" in said
    assert said[-1] == f"Report: {run / 'report.html'}"


def test_json_has_the_findings(folder: Path) -> None:
    again = train(
        folder, "run", "--max-steps", "6", "--logging-steps", "2", "--eval-steps=6", "--guard=false", "--json"
    )
    found = json.loads(again.stdout)
    told = diagnose(Run(folder / "run"))
    assert found["verdict"] == told.headline
    assert [f["key"] for f in found["findings"]] == [f.key for f in told.findings]
    assert all({"title", "severity", "meaning", "evidence", "remedies"} <= set(f) for f in found["findings"])


def test_a_report_that_was_not_written_is_not_pointed_to(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: Run) -> None:
        raise KeyError("method.toy")

    monkeypatch.setattr(training, "_write_report", fails)
    done = train(folder, "unreported", "--max-steps", "1", "--sample-steps", "0", "--json")
    assert done.exit_code == 0, done.output
    assert "no report: KeyError" in done.stderr
    assert "Report:" not in done.stderr
    assert json.loads(done.stdout)["report"] is None


def test_hostile_names_do_nothing_in_a_log(folder: Path) -> None:
    paths = [
        "--model",
        str(folder / "model"),
        "--data",
        str(folder / "pairs.jsonl"),
        "--out",
        str(folder / "a\x1b[2Jb"),
    ]
    done = CliRunner().invoke(app, ["dpo", *paths, *SMALL, "max_steps=1", "judge=no\x1b]0;x\x07:f"])
    assert "\x1b" not in done.output
    assert "⟨U+001B⟩" in done.output


def test_a_bar_shows_the_loss_and_the_methods_first_figure() -> None:
    metrics = {name: Moments.of([value]) for name, value in METRICS.items()}
    assert noted(metrics, "loss", "preference") == "loss 0.6123  rewards/accuracies 75.0%"
    assert noted(metrics, "reward", "policy") == "reward 1.5  objective/kl 0.25"
    assert noted({"loss": Moments.of([2.0])}, "loss", "imitation") == "loss 2"


METRICS = {"loss": 0.61234, "rewards/margins": 0.1, "rewards/accuracies": 0.75, "reward": 1.5, "objective/kl": 0.25}
