"""What the console says in Spanish: errors that are met first, and the end of a command."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer import rich_utils
from typer.testing import CliRunner

import runs
from prefiere.api.scoring import Scores
from prefiere.asked import hub, spoken_help
from prefiere.asked.language import TONGUES, Tongue, other_words, speaking, words
from prefiere.asked.words import account
from prefiere.cli.main import app, main
from prefiere.cli.models import show_comparison
from prefiere.cli.score import _show_pairs
from prefiere.cli.train import how_it_went
from prefiere.console import Display, Terminal
from prefiere.data import formats
from prefiere.evaluate.compare import Compared, Pairing
from prefiere.evaluate.judges import JudgeError, load_scorer
from prefiere.launch import launch
from prefiere.methods import METHODS
from prefiere.tokens import encoder
from prefiere.tokens.truncation import WHAT
from prefiere.train.logs import spoken as told_row
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


def test_errors_that_are_met_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = make(tmp_path / "run")
    (tmp_path / "mine.py").write_text("other = 1\n")
    (tmp_path / "report.html").write_text("somebody's")
    for command, told in (
        (("score", "max_length=8", "--data", "d.jsonl"), "nombra al menos un modelo de recompensa"),
        (("compare", "m", "n"), "hace falta --prompts"),
        (("chat", str(tmp_path / "run")), "es un entrenamiento que aún no tiene modelo"),
        (("report", str(run.folder), str(run.folder)), "report.html ya existe y no es un informe de prefiere"),
        (("dpo", "no.yaml", "--out", "o"), "no.yaml: no hay tal archivo de receta"),
    ):
        done = CALL.invoke(app, [*command, "--lang", "es"])
        assert done.exit_code == 2, done.output
        assert told in " ".join(done.output.split())
    with speaking("es"), pytest.raises(JudgeError, match="el módulo mine no tiene ninguna función 'score'"):
        load_scorer("mine:score")


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
    seen = "  Qué se vio:\n    - de 40 pares cuyas respuestas difieren en longitud\n"
    assert f"{seen}  Qué probar:\n    - pares de respuestas de longitud parecida\n" in done.output
    for line in ("Forma     TRL standard (por prompt, chosen, rejected)", "Registros 40 leídos, 40 conservados"):
        assert f"{line}\n" in done.output


def test_the_end_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make(tmp_path / "run", train=PERFECT, answers=RUINED)
    with speaking("es"):
        found = how_it_went(run)
    said = capsys.readouterr().out
    assert "El modelo quedó arruinado" in said
    assert "exactitud en datos reservados: " in said
    assert "Ahora: pon rpo_alpha en 1" in said
    assert found["verdict"].startswith("The answers fell apart")  # for programs, whatever the language


def run_as(monkeypatch: pytest.MonkeyPatch, *words: str) -> int | None:
    """The console script with these words; how it ended."""
    monkeypatch.setattr(sys, "argv", ["prefiere", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code if isinstance(ended.value.code, int) else None


@pytest.mark.parametrize("asked", [("--lang", "es"), ("--lang=es",), ()])
def test_help(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], asked: tuple[str, ...]) -> None:
    """Of a command, its options and the settings to look at first; by --lang, or by the environment."""
    monkeypatch.setenv("LC_ALL", "C" if asked else "es_AR.UTF-8")
    monkeypatch.setenv("COLUMNS", "200")
    assert run_as(monkeypatch, "dpo", *asked, "--help") == 0
    said = capsys.readouterr().out
    for text in ("Uso: ", "dpo [OPTIONS]", "─ Argumentos ─", "─ Opciones ─"):
        assert text in said
    for text in ("Optimiza las preferencias", "La carpeta del entrenamiento.", "pasadas por los datos", "de fábrica"):
        assert text in said


def test_headings_of_typer_are_its_own_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """After a command in Spanish, and in English they are what typer says."""
    theirs = {name: getattr(rich_utils, name) for name in spoken_help.HEADINGS}
    assert run_as(monkeypatch, "serve", "--lang", "es", "--help") == 0
    said = capsys.readouterr().out
    assert "[obligatorio]" in said
    assert "[de fábrica: 127.0.0.1]" in said
    with speaking("en"), spoken_help.spoken_headings():
        assert {name: getattr(rich_utils, name) for name in spoken_help.HEADINGS} == theirs
    assert {name: getattr(rich_utils, name) for name in spoken_help.HEADINGS} == theirs


def test_help_of_the_program(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for spoken, told in (("C", "Talk with a model."), ("es_ES.UTF-8", "Conversa con un modelo.")):
        monkeypatch.setenv("LC_ALL", spoken)
        assert run_as(monkeypatch, "--help") == 0
        assert told in capsys.readouterr().out


FIRST = ("sft", "dpo", "reward", "ppo", "rloo", "grpo", "reinforce", "data", "report", "doctor", "compare", "chat")
FIRST += ("sample", "export", "serve", "score", "demo")


def test_the_first_commands_have_all_their_help_in_every_language() -> None:
    """Those of the first hour with their options, every command's own line, and the settings to look at first."""
    root: Any = typer.main.get_command(app)
    wanted = {root.help, *(c.help for c in root.commands.values()), *(p.help for p in root.params)}
    wanted.add(root.get_help_option(root.context_class(root)).help)
    wanted |= {p.help for name in FIRST for p in root.commands[name].params if getattr(p, "help", None)}
    wanted |= {row.settings.model_fields[key].description for row in METHODS.values() for key in row.matters}
    for spoken in TONGUES:
        if spoken != "en":
            assert other_words("prefiere.asked.words", "help", spoken).keys() == wanted


def test_columns_and_splits(tmp_path: Path) -> None:
    (tmp_path / "odd.csv").write_text("uno,dos\n1,2\n3,4\n")
    done = CALL.invoke(app, ["data", str(tmp_path / "odd.csv"), "--lang", "es"])
    assert done.exit_code == 2
    assert (
        "no tiene ninguna disposición conocida para preguntas. Columnas que hay: uno, dos. Lo más parecido: "
        in done.output
    )
    (tmp_path / "train.jsonl").write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n')
    done = CALL.invoke(app, ["data", f"{tmp_path}[tran]", "--lang", "es"])
    assert done.output == f"error: {tmp_path}: no hay ninguna parte tran; ¿querías decir train? Partes: train\n"
    (tmp_path / "empty.csv").write_text("")
    done = CALL.invoke(app, ["data", str(tmp_path / "empty.csv"), "--lang", "es"])
    assert done.output == f"error: {tmp_path / 'empty.csv'}: el archivo está vacío\n"


def test_progress(capsys: pytest.CaptureFixture[str]) -> None:
    row = {"step": 1200, "rewards/accuracies": 0.5, "eval_rewards/accuracies": 0.75}
    now = [0.0]
    with speaking("es"):
        assert told_row(row, 2000, "", "preference", 90.0) == (
            "paso 1,200/2,000  rewards/accuracies 50.0%  reservado: rewards/accuracies 75.0%  quedan unos 90 s"
        )
        with Display(Terminal(stderr=True), clock=lambda: now[0]).stage("leyendo", 4) as advance:
            now[0] = 30.0
            advance(1)
    assert capsys.readouterr().err == "leyendo (faltan 4)\nleyendo: 1 de 4, quedan unos 90 s\n"


def test_a_comparison(capsys: pytest.CaptureFixture[str]) -> None:
    pairing = Pairing("¿Qué es un perro?", "Un amigo.", "Un animal.", 0.0, 1.0)
    found = Compared("uno", "otro", [pairing], judge="regla", wins=1, p_value=1.0)
    with speaking("es"):
        show_comparison(found, Terminal(width=120))
    said = capsys.readouterr().out
    for text in ("pregunta", "antes: uno", "después: otro", "según regla: ganadas 1, perdidas 0, empatadas 0"):
        assert text in said


def start_of(folder: Path, spoken: Tongue) -> tuple[list[str], list[dict[str, Any]]]:
    """What a run of one update says before it, and the choices that it records; of the same data and model each time,
    whose tokens the second run finds in the cache of the first."""
    said = io.StringIO()
    settings = runs.settings(folder, out=str(folder / spoken), max_steps=1, sample_steps=0, lora=True)
    with speaking(spoken):
        run = launch(settings, display=Display(Terminal(file=said, width=500))).run
    return said.getvalue().splitlines(), run.environment["choices"]


def test_every_choice_of_a_run_is_said_in_its_language(tmp_path: Path) -> None:
    (english, first), (spanish, second) = start_of(tmp_path, "en"), start_of(tmp_path, "es")
    assert [(c["name"], c["value"]) for c in first] == [(c["name"], c["value"]) for c in second]
    assert not {c["why"] for c in first} & {c["why"] for c in second}
    assert "  lora = True: as asked" in english
    assert "  lora = True: como se pidió" in spanish
    of = str(tmp_path / "pairs.jsonl")
    assert f"{of}: TRL standard (by prompt, chosen, rejected); 24 read, 24 kept" in english
    assert f"{of}: TRL standard (por prompt, chosen, rejected); 24 leídos, 24 conservados" in spanish
    assert not {line for line in english if line} & {line for line in spanish if line}


def test_labels_judged_blind_and_data_cleaned(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i}", "chosen": f"red {i}", "rejected": f"blue {i}"} for i in range(4)]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, [*rows, rows[0]])))
    given = ["data", str(tmp_path / "d.jsonl"), "--lang", "es"]
    asked = CALL.invoke(app, [*given, "--check"], input="1\n" * 5).output
    for text in (
        "1 de 5\n",
        "pregunta: p",
        "¿Cuál es mejor, 1 o 2? (otra cosa: no se puede decir)",
        "Se juzgaron demasiado pocos para saberlo",
        " de 5.\n",
    ):
        assert text in asked
    done = CALL.invoke(app, [*given, "--clean", str(tmp_path / "c.jsonl")])
    assert done.output.splitlines() == [
        f"4 registros escritos en {tmp_path / 'c.jsonl'}",
        f"  fuera 1: repiten un registro anterior (los primeros: {tmp_path / 'd.jsonl'}:5)",
    ]
    again = CALL.invoke(app, [*given, "--clean", str(tmp_path / "c.jsonl")])
    assert again.output == f"error: {tmp_path / 'c.jsonl'} ya existe. Nombra un archivo nuevo.\n"


def test_figures_of_a_reward_model(capsys: pytest.CaptureFixture[str]) -> None:
    share = [0.5, 0.25, 0.75]
    bins = [{"low": -1, "high": -1, "accuracy": share, "n": 2}, {"low": 0, "high": 3, "accuracy": share, "n": 1}]
    sure = {
        "low": 0.5,
        "high": 0.6,
        "predicted": 0.55,
        "observed": 0.5,
        "observed_low": 0.2,
        "observed_high": 0.8,
        "n": 1,
    }
    told = {"n": 1, "accuracy": share, "log_loss": share, "ece": 0.1, "mean": 1.0, "std": 2.0, "reliability": [sure],
            "length": {"rule": "longer", "baseline": share, "by_difference": bins}}  # fmt: skip
    apart = {"split": share, "accuracy_agreed": share, "accuracy_split": share}
    with speaking("es"):
        _show_pairs(Scores("d", {"m": told}, apart, {}, [], True), Terminal(width=120))
    said = capsys.readouterr().out
    assert said.startswith("1 par ")
    for text in ("aciertos", "eligiendo siempre la respuesta más larga: 50.0%", "seguro al", "50% a 60%", "0 a +3",
                 "su media acierta en el 50.0%"):  # fmt: skip
        assert text in said
    assert "-1 a" not in said  # a bin of one value


def test_progress_of_a_run_that_holds_nothing_out() -> None:
    """Answers to prompts that are trained on are sampled, not held out; a margin of rounding alone is none."""
    row = {"step": 0, "reward": 1.0, "samples/reward": 0.5, "rewards/margins": -1.2e-6}
    with speaking("es"):
        assert told_row(row, 4, "reward", "policy", None) == "paso 0/4  reward 1  muestreado: samples/reward 0.5"
        assert told_row(row, 4, "rewards/margins", "preference", None).startswith("paso 0/4  rewards/margins 0")


def test_rows_that_are_left_out(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "chosen": "a", "rejected": "b"}, {"prompt": "p", "chosen": "a", "rejected": "a"}]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, [*rows, {**rows[0], "chosen": ""}])))
    read = formats.read(tmp_path / "pairs.jsonl", kind="pairs")
    assert len(list(read)) == 1
    told = "3 leídos, 1 conservado, 1 descartado ({}), 1 descartado ({})"
    with speaking("es"):
        assert str(read.counts) == told.format("la elegida es igual a la rechazada", "respuesta elegida vacía")
        assert account.encoded({"examples": 2, "groups": 1, "tokens": 9, "notes": [], "identical": {"count": 0},
                                "no_room": {"count": 1, "sources": ["f:2"]}}) == [
            "2 ejemplos, 1 conservado, 9 tokens",
            "1 descartado: en max_length no cabe una respuesta junto al final de su pregunta (los primeros: f:2)",
        ]  # fmt: skip


def test_each_thing_that_happens_to_an_example_has_its_words() -> None:
    for spoken in TONGUES:
        said = words("prefiere.asked.words", spoken)
        for form in ("one", "many"):
            keys = [key for key in said if key.startswith("account.of.") and key.endswith(f".{form}")]
            assert [key.split(".")[2] for key in keys] == list(WHAT)


def test_the_reasons_of_the_table_are_given_somewhere() -> None:
    """Whole, or as a reason and the name of a column."""
    room = Path(formats.__file__).parent
    code = "".join(path.read_text(encoding="utf-8") for path in room.rglob("*.py")) + f'"{encoder.NO_TEMPLATE}"'
    for why in other_words("prefiere.asked.words", "reasons", "es"):
        head, _, name = why.rpartition(" ")
        assert f'"{why}"' in code or f'"{head} {{' in code or f"_name}} {head.split()[-1]} {{" in code, name
