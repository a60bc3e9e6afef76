"""What the console says in Spanish: errors that are met first, and the end of a command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from prefiere.asked import hub
from prefiere.asked.language import speaking
from prefiere.cli.main import app
from prefiere.cli.train import how_it_went
from synthetic_runs import PERFECT, RUINED, make

CALL = CliRunner()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("dpo", "betta=1"), "betta no es un ajuste. ¿Querías decir beta?"),
        (("dpo", "cliprange=1"), "cliprange es un ajuste del método ppo"),
        (("report", "nowhere"), "nowhere no es un entrenamiento"),
        (("doctor", "nowhere"), "nowhere no es un entrenamiento"),
    ],
)
def test_errors_that_are_met_first(tmp_path: Path, words: tuple[str, ...], told: str) -> None:
    (tmp_path / "pairs.jsonl").write_text("{}")
    given = ("--model", "m", "--data", str(tmp_path / "pairs.jsonl"), "--out", str(tmp_path / "out"))
    done = CALL.invoke(app, [words[0], *(given if words[0] == "dpo" else ()), *words[1:], "--lang", "es"])
    assert done.exit_code == 2
    assert told in done.output


def test_a_model_and_data_that_are_nowhere() -> None:
    with speaking("es"):
        assert str(hub.why_no_model("nowhere/m")).startswith("aquí no hay ninguna carpeta nowhere/m")
        assert "ningún archivo ni carpeta nowhere/d" in str(hub.why_no_data("nowhere/d", held=False))


def test_where_a_report_is(tmp_path: Path) -> None:
    run = make(tmp_path / "run")
    done = CALL.invoke(app, ["report", str(run.folder), "--out", str(tmp_path / "page.html"), "--lang", "es"])
    assert done.output == f"Informe: {tmp_path / 'page.html'}\n"


def test_what_was_seen_in_data(tmp_path: Path) -> None:
    pairs = [{"prompt": f"p{i}", "chosen": f"red {i}", "rejected": f"blue {i}"} for i in range(40)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    done = CALL.invoke(app, ["data", str(tmp_path / "pairs.jsonl"), "--lang", "es"])
    assert "    - de 40 pares cuyas respuestas difieren en longitud\n" in done.output


def test_the_end_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make(tmp_path / "run", train=PERFECT, answers=RUINED)
    with speaking("es"):
        found = how_it_went(run)
    said = capsys.readouterr().out
    assert "El modelo quedó arruinado" in said
    assert "exactitud en datos reservados: " in said
    assert "Ahora: pon rpo_alpha en 1" in said
    assert found["verdict"].startswith("The answers fell apart")  # for programs, whatever the language
