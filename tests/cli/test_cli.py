"""The command line: what goes to stdout and stderr, exit codes, and that it starts without torch."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from prefiere import recipe
from prefiere.api import training
from prefiere.api.run import Run
from prefiere.asked import pages
from prefiere.cli.main import app
from prefiere.methods import METHODS
from prefiere.run import Stop, StopKind

HEAVY = ("torch", "transformers", "peft", "accelerate", "datasets")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def prefiere(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, where importing anything heavy fails."""
    block = "".join(f"sys.modules['{name}'] = None; " for name in HEAVY)
    code = f"import sys; {block}sys.argv = ['prefiere', *sys.argv[1:]]; from prefiere.cli.main import main; main()"
    env = {**os.environ, **environment}
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=env)


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[SimpleNamespace]:
    """A training loop that only writes down how it was called."""
    calls: list[SimpleNamespace] = []

    def fake(settings: recipe.Settings, *, fresh: bool, console: Any) -> Any:
        calls.append(SimpleNamespace(settings=settings, fresh=fresh))
        print("training")
        made = Run.create(tmp_path / settings.out)
        made.status = {"state": "finished", "step": 3}
        made.log({"step": 3, "loss": float("nan")})
        return made

    monkeypatch.setattr(training, "train", fake)
    return calls


def test_help_needs_nothing_heavy_and_names_every_command() -> None:
    done = prefiere("--help")
    assert done.returncode == 0, done.stderr
    for name in ("demo", "data", "sft", "dpo", "sample", "chat", "compare", "report", "export", "recipe"):
        assert f" {name} " in done.stdout


def test_python_m_is_the_same_command() -> None:
    done = subprocess.run([sys.executable, "-m", "prefiere", "recipe", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "validate" in done.stdout


def test_flags_beat_the_recipe_and_key_value_beats_flags(loop: list[SimpleNamespace], tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("method: dpo\nmodel: m\ndata: d\nseed: 1\nbeta: 0.3\n")
    done = run("dpo", str(tmp_path / "r.yaml"), "--data", "e", "--out", "o", "--seed", "2", "seed=3", "--fresh")
    assert done.exit_code == 0, done.output
    (call,) = loop
    assert (call.settings.model, call.settings.data, call.settings.seed, call.settings.beta) == ("m", "e", 3, 0.3)
    assert call.fresh is True


def test_the_three_arguments_are_enough(loop: list[SimpleNamespace]) -> None:
    done = run("sft", "--model", "m", "--data", "d", "--out", "o")
    assert done.exit_code == 0
    assert loop[0].settings == recipe.load("sft", None, {"model": "m", "data": "d", "out": "o"})
    assert loop[0].fresh is False


def test_json_is_one_object_on_stdout_and_all_else_on_stderr(loop: list[SimpleNamespace], tmp_path: Path) -> None:
    done = run("dpo", "--model", "m", "--data", "d", "--out", "o", "--json")
    assert done.exit_code == 0
    result = json.loads(done.stdout)
    assert (result["state"], result["step"], result["metrics"]) == ("finished", 3, {"step": 3, "loss": None})
    assert result["run"] == str(tmp_path / "o")
    assert "training" in done.stderr
    assert "Model: " in done.stderr
    assert ("Report: " in done.stderr, result["report"]) == (False, None)  # this run, which is none, has no page


def test_only_the_first_process_speaks(
    loop: list[SimpleNamespace], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RANK", "1")
    done = run("dpo", "--model", "m", "--data", "d", "--out", "o", "--json")
    assert (done.exit_code, done.stdout) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dpo", "--model", "m", "--data", "d"], "error: out is missing: give --out"),
        (["dpo", "missing.yaml"], "error: missing.yaml: there is no such recipe file"),
        (
            ["dpo", "--model", "m", "--data", "d", "--out", "o", "--optim", "sgd"],
            "optim is not a setting here; write nothing: it is AdamW",
        ),
        (["dpo", "--model", "m", "--data", "d", "--out", "o", "--beta", "-0.5"], "error: --beta -0.5: beta must be"),
        (["dpo", "--model", "m", "--data", "d", "--out", "o", "--beta", "-1e-5"], "error: --beta -1e-5: beta must be"),
        (["report", "nowhere"], "error: nowhere is not a run"),
        (["recipe", "validate", "nowhere.yaml"], "error: nowhere.yaml: there is no such recipe file"),
    ],
)
def test_a_users_error_is_one_line_and_exit_2(arguments: list[str], message: str) -> None:
    done = run(*arguments)
    assert done.exit_code == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""


def test_a_bug_shows_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ValueError that some library raised is no user's error."""

    def broken(settings: recipe.Settings, **_: Any) -> None:
        json.loads("{")

    monkeypatch.setattr(training, "train", broken)
    done = run("dpo", "--model", "m", "--data", "d", "--out", "o")
    assert done.exit_code == 1
    assert "Traceback" in done.stderr
    assert "JSONDecodeError" in done.stderr


def test_ctrl_c_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(settings: recipe.Settings, **_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "train", interrupted)
    assert run("dpo", "--model", "m", "--data", "d", "--out", "o").exit_code == 130


@pytest.mark.parametrize(
    ("kind", "code"),
    [("interrupted", 130), ("degenerate", 3), ("exploited", 3), ("kl_budget", 3), ("early", 0), (None, 0)],
)
def test_a_run_that_was_stopped_says_so_by_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: StopKind | None, code: int
) -> None:
    stop = Stop(kind, "for a reason that names no guard") if kind else None

    def stopped(settings: recipe.Settings, **_: Any) -> Run:
        made = Run.create(tmp_path / "o")
        made.status = {"state": "stopped", "stop": asdict(stop) if stop else None}
        return made

    monkeypatch.setattr(training, "train", stopped)
    done = run("dpo", "--model", "m", "--data", "d", "--out", "o", "--json")
    assert done.exit_code == code
    said = json.loads(done.stdout)
    assert said["stopped"] == (stop.text if stop and not stop.finished else None)
    assert said["stop"] == (asdict(stop) if stop else None)


@pytest.mark.long
def test_recipe_commands_need_nothing_heavy(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("method: sft\nseed: 1\n")
    done = prefiere("recipe", "validate", str(tmp_path / "r.yaml"), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["recipes"][str(tmp_path / "r.yaml")]["seed"] == 1
    assert "a valid recipe for prefiere sft" in done.stderr

    done = prefiere("recipe", "show", "dpo", "--json")
    shown = json.loads(done.stdout)
    assert {"key": "beta", "may_be": "a number above 0", "default": "0.1"}.items() <= {
        **next(row for row in shown["dpo"] if row["key"] == "beta")
    }.items()
    assert prefiere("recipe", "show", "--markdown").stdout == pages.settings_page()
    assert json.loads(prefiere("recipe", "schema").stdout) == json.loads(json.dumps(pages.schema()))
    for name, row in METHODS.items():
        listed = prefiere("recipe", "show", name, COLUMNS="200").stdout
        assert all(key in listed for key in row.settings.model_fields)
    assert len(prefiere("recipe", "show").stdout.splitlines()) < 15


@pytest.mark.long
def test_settings_are_checked_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    """Importing torch takes seconds: what is wrong with settings is said without it, all at once."""
    (tmp_path / "r.yaml").write_text("beta: 0\nlr_sched: linear\n")
    done = prefiere("dpo", "--config", str(tmp_path / "r.yaml"), "--out", str(tmp_path / "o"), "--lam", "0.9")
    assert done.returncode == 2
    said = done.stderr.splitlines()
    assert said[0] == "error: 5 settings to put right:"
    assert [line.split(" is ")[0].split(" must ")[0].split(": ")[-1].strip() for line in said[1:]] == [
        "lr_sched", "lam", "model", "data", "beta",
    ]  # fmt: skip
    for words in (
        ["estimate"],
        ["data"],
        ["score", "runs/rm"],
        ["recipe", "validate", str(tmp_path / "r.yaml"), "method=dpo"],
    ):
        done = prefiere(*words, "--data", "d", "--max_lenght", "5")
        assert "max_lenght is not a setting. Did you mean max_length?" in done.stderr, words


@pytest.mark.parametrize("name", METHODS)
def test_the_help_of_a_method_has_the_settings_that_matter(name: str) -> None:
    row = METHODS[name]
    assert len(set(row.matters)) == 12
    shown = prefiere(name, "--help", COLUMNS="160")
    assert shown.returncode == 0, shown.stderr
    help = shown.stdout[shown.stdout.index("Settings to look at first") :]
    for key, _, default, meaning in pages.settings_table(name):
        assert (f"\n{key} " in help) == (key in row.matters), key
        if key in row.matters:
            assert default in help
            assert meaning.split()[0] in help
    assert f"prefiere recipe show {name}, or docs/settings.md" in help


def test_the_version_and_the_environment_need_nothing_heavy() -> None:
    from importlib.metadata import version

    assert prefiere("--version").stdout == f"prefiere {version('prefiere')}\n"
    done = prefiere("env", "--json", HF_TOKEN="hf_secret", OMP_NUM_THREADS="3")
    assert done.returncode == 0, done.stderr
    assert "hf_secret" not in done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["versions"]["torch"] == version("torch")
    assert found["extras"]["mlflow"].startswith("not installed")
    assert found["environment"]["OMP_NUM_THREADS"] == "3"
    assert found["environment"]["HF_TOKEN"] == "set"
    assert {"versions", "extras", "machine", "environment", "caches"} <= set(found)


def test_a_shell_completes_commands_and_settings() -> None:
    done = prefiere(_PREFIERE_COMPLETE="complete_bash", COMP_WORDS="prefiere dpo max_l", COMP_CWORD="2")
    assert "max_length=" in done.stdout
    assert "--install-completion" in prefiere("--help").stdout


def test_a_report_never_takes_the_place_of_something_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One run's lies in its folder; that of several is made here, over an older one alone."""
    for name in ("one", "two"):
        made = Run.create(tmp_path / name)
        made.recipe = recipe.load("dpo", None, {"model": "m", "data": "d", "out": name}).model_dump()
        made.log({"step": 0, "loss": 0.7})
    monkeypatch.chdir(tmp_path)
    theirs = tmp_path / "report.html"
    theirs.write_text("<html>a year of work</html>")
    assert run("report", "one").exit_code == 0
    assert "<!doctype html>" in (tmp_path / "one" / "report.html").read_text()
    done = run("report", "one", "two")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "report.html is there already and is no report of prefiere. Name another file with --out." in done.stderr
    assert theirs.read_text() == "<html>a year of work</html>"
    theirs.unlink()
    assert [run("report", "one", "two").exit_code for _ in range(2)] == [0, 0]
    assert run("report", "one", "two", "--out", "both.html").exit_code == 0
    assert (tmp_path / "both.html").exists()


def test_data_says_which_columns_could_be_pairs(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("Question,Good answer,Bad answer,Date\nWhat?,This,That,2026\nWhy?,So,Hm,2026\n")
    done = CliRunner().invoke(app, ["data", str(path)])
    assert done.exit_code == 0, done.output
    given = """'columns={chosen: "Good answer", rejected: "Bad answer"}'"""
    assert f"as pairs: {given}" in done.output.replace("\n", " ")
    mapped = CliRunner().invoke(app, ["data", str(path), *shlex.split(given), "--json"])
    assert json.loads(mapped.stdout)["read"]["kind"] == "pairs"
    path.write_text("Question,Date\nWhat?,2026\n")
    assert "as pairs" not in CliRunner().invoke(app, ["data", str(path)]).output


@pytest.mark.parametrize(
    "words",
    [
        ("dpo", "-max_steps=5", "--model", "m", "--data", "d", "--out", "o"),
        ("dpo", "--model", "m", "--data", "d", "--out", "o", "-max_steps", "5"),
        ("ppo", "--model", "m", "--prompts", "p", "--reward", "r", "--out", "o", "-max_steps=5"),
        ("data", "pairs.jsonl", "-max_steps=5"),
        ("score", "rm", "--data", "d", "-max_steps=5"),
        ("estimate", "-max_steps=5", "--model", "m"),
        ("recipe", "validate", "recipe.yaml", "-max_steps=5"),
        ("probe", "-max_steps=5", "--model", "m"),
    ],
)
def test_a_setting_with_one_dash_is_no_short_option(words: tuple[str, ...], loop: list[SimpleNamespace]) -> None:
    """As the parser reads them: ``-m`` with the value ``ax_steps=5``."""
    done = run(*words)
    assert (done.exit_code, done.stdout, loop) == (2, "", [])
    (word,) = (w for w in words if w.startswith("-max"))
    said = " ".join(done.stderr.replace("│", " ").split())
    assert f"{word}: a long name has two dashes: -{word}." in said


def test_words_after_two_dashes_and_short_options_are_read_as_before(loop: list[SimpleNamespace]) -> None:
    assert run("dpo", "-m", "a", "-dd.jsonl", "-o", "o", "--", "seed=3").exit_code == 0
    (call,) = loop
    assert (call.settings.model, call.settings.data, call.settings.out, call.settings.seed) == ("a", "d.jsonl", "o", 3)


@pytest.mark.parametrize(("name", "said"), [("kto", "loss_type=kto"), ("orpo", "loss_type=orpo"), ("ktoo", "")])
def test_a_loss_that_is_a_command_elsewhere_is_said_to_be_one_of_dpo(name: str, said: str) -> None:
    done = run(name, "--data", "d.jsonl")
    assert done.exit_code == 2
    assert f"No such command '{name}'" in done.output
    assert ("prefiere dpo" in done.output, said in done.output) == (bool(said), True)
