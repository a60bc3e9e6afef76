"""prefiere doctor: a verdict in plain words, as JSON, and the next run's recipe."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from prefiere.cli.main import app
from prefiere.run import Run
from synthetic_runs import STUCK, make

ASK = CliRunner()


def slow(folder: Path) -> Run:
    """A run whose rate is a thousandth of what suits it."""
    run = make(folder, train=STUCK, spread=0.02, recipe={"learning_rate": 1e-8})
    run.environment = {"plan": {"automatic": {"learning_rate": 1e-5}}}
    return run


def test_what_was_seen_is_said_in_spanish(tmp_path: Path) -> None:
    done = ASK.invoke(app, ["doctor", str(make(tmp_path / "run").folder), "--lang", "es"])
    assert done.exit_code == 0, done.output
    assert "margen en datos reservados: 0.00 → " in done.output
    assert not re.search(r"held-out|margin| to \d|measured", done.output)
    assert ASK.invoke(app, ["doctor", str(tmp_path / "run"), "--lang", "fr"]).exit_code == 2


def test_what_a_run_shows_in_plain_words(tmp_path: Path) -> None:
    done = ASK.invoke(app, ["doctor", str(slow(tmp_path / "run").folder), "--lang", "en"])
    assert done.exit_code == 0, done.output
    assert done.output.startswith("The learning rate is far too low: 1e-08.")
    assert "learning_rate=auto" in done.output


def test_in_spanish_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "es_ES.UTF-8")
    done = ASK.invoke(app, ["doctor", str(slow(tmp_path / "run").folder)])
    assert done.output.startswith("La tasa de aprendizaje es demasiado baja")


def test_as_json(tmp_path: Path) -> None:
    done = ASK.invoke(app, ["doctor", str(slow(tmp_path / "run").folder), "--json"])
    found = json.loads(done.stdout)
    assert found["changes"] == {"learning_rate": "auto"}
    assert found["findings"][0]["key"] == "rate_too_low"
    assert found["plain"][0]["headline"].startswith("The learning rate")


def test_the_next_recipe_changes_what_it_says_and_nothing_else(tmp_path: Path) -> None:
    run, recipe = slow(tmp_path / "run"), tmp_path / "next.yaml"
    before = sorted((p.name, p.read_bytes()) for p in run.folder.iterdir() if p.is_file())
    done = ASK.invoke(app, ["doctor", str(run.folder), "--apply", str(recipe)])
    assert done.exit_code == 0, done.output
    written = yaml.safe_load(recipe.read_text())
    assert written == run.recipe | {"learning_rate": "auto", "out": f"{run.folder}-next"}
    assert "# set learning_rate to auto, because: the learning rate is far too low" in recipe.read_text()
    assert sorted((p.name, p.read_bytes()) for p in run.folder.iterdir() if p.is_file()) == before
    again = ASK.invoke(app, ["doctor", str(run.folder), "--apply", str(recipe)])
    assert again.exit_code == 2
    assert "is there already" in again.output


@pytest.mark.parametrize(
    ("lang", "said"),
    [
        ("en", "The next run's recipe: {}. It has the same settings: nothing above names a value to set by itself."),
        ("es", "La receta del próximo entrenamiento: {}. Tiene los mismos ajustes: nada de lo dicho fija un valor."),
    ],
)
def test_a_recipe_that_changes_nothing_is_named_all_the_same(tmp_path: Path, lang: str, said: str) -> None:
    run, recipe = make(tmp_path / "run", recipe={"seed": 7}), tmp_path / "next.yaml"
    done = ASK.invoke(app, ["doctor", str(run.folder), "--apply", str(recipe), "--lang", lang])
    assert done.exit_code == 0, done.output
    assert done.output.splitlines()[-1] == said.format(recipe)
    assert yaml.safe_load(recipe.read_text()) == run.recipe | {"out": f"{run.folder}-next"}
