"""Folders, stores and recipes from a stranger, given to every command that reads one.

Whatever they hold: nothing of theirs runs, nothing outside is written or shown, the outcome is a result or one line.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import runs
from prefiere.api.training import train
from prefiere.cli.main import app
from prefiere.files import seal
from prefiere.settings import Reward

ESCAPE = "\x1b]0;owned\x07"
SECRET = "the-private-key-of-the-user"
CANARY = "it_ran"


class Bomb:
    """What a pickle runs when it is read."""

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(Path(os.environ["HOSTILE_CANARY"])), "w")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, data, prompts, a LoRA run and a reward run."""
    folder = tmp_path_factory.mktemp("base")
    quiet = Console(quiet=True)
    train(runs.settings(folder, max_steps=2, lora=True, sample_steps=2), console=quiet)
    train(runs.settings(folder, Reward, max_steps=2, out=str(folder / "rm")), console=quiet)
    (folder / "prompts.txt").write_text("What is a dog?\n")
    return folder


@pytest.fixture
def place(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a copy of all that, and a secret beside it."""
    for name in ("run", "rm", "model"):
        shutil.copytree(base / name, tmp_path / "sent" / name)
    for name in ("pairs.jsonl", "prompts.txt"):
        shutil.copy(base / name, tmp_path / name)
    (tmp_path / "secret.json").write_text(json.dumps({"secret": SECRET}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOSTILE_CANARY", str(tmp_path / CANARY))
    return tmp_path


def outside(place: Path) -> dict[str, bytes]:
    """The user's own files."""
    return {n: (place / n).read_bytes() for n in ("pairs.jsonl", "prompts.txt", "secret.json")}


def harmless(place: Path, *command: str) -> str:
    """Run a command; hold what must hold of every outcome. Returns what it said."""
    before = outside(place)
    done = CliRunner().invoke(app, list(command))
    said = done.output + getattr(done, "stderr", "")
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code in (0, 2, 3, 4), f"{command}: {said[-3000:]}"
    if done.exit_code == 2:
        lines = done.stderr.strip().splitlines()
        first = next((i for i, line in enumerate(lines) if line.endswith("settings to put right:")), None)
        if first is None:
            assert lines[-1].startswith(("error", "│", "╰", "Error", "Try")), f"{command}: {said[-2000:]}"
        else:  # a line for each, bounded
            assert lines[first].startswith("error")
            assert 2 <= len(lines[first + 1 :]) <= 21, command
            assert all(line.startswith("  ") for line in lines[first + 1 :]), f"{command}: {said[-2000:]}"
        assert max(map(len, lines)) < 2000
    assert ESCAPE[:4] not in said, command
    assert "Traceback" not in said, f"{command}: {said[-3000:]}"
    assert not (place / CANARY).exists(), f"{command} ran what was sent"
    assert SECRET not in said, f"{command} showed what lies outside"
    assert outside(place) == before
    return said


def link_to_secret(place: Path, name: str) -> None:
    path = place / "sent" / name
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    path.symlink_to(place / "secret.json")


def rewrite(name: str, change: Callable[[dict[str, object]], object]) -> Callable[[Path], None]:
    def sent(place: Path) -> None:
        path = place / "sent" / name
        path.write_text(json.dumps(change(json.loads(path.read_text()))))

    return sent


def text(name: str, content: str) -> Callable[[Path], None]:
    return lambda place: (place / "sent" / name).write_text(content) and None


def pickled(folder: str, name: str, *gone: str) -> Callable[[Path], None]:
    def sent(place: Path) -> None:
        for one in gone:
            (place / "sent" / folder / one).unlink()
        (place / "sent" / folder / name).write_bytes(pickle.dumps({"a": Bomb()}))

    return sent


def weights(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    def sent(place: Path) -> None:
        path = place / "sent" / name
        save_file({k: change(v) for k, v in load_file(path).items()}, path, metadata={"format": "pt"})

    return sent


def cut_short(name: str) -> Callable[[Path], None]:
    def sent(place: Path) -> None:
        path = place / "sent" / name
        path.write_bytes(path.read_bytes()[:-50])

    return sent


def own_code(place: Path) -> None:
    """A model that brings its own code."""
    config = place / "sent" / "model" / "config.json"
    mapped = {
        "auto_map": {"AutoConfig": "theirs.Config", "AutoModelForCausalLM": "theirs.Model"},
        "model_type": "theirs",
    }
    config.write_text(json.dumps(json.loads(config.read_text()) | mapped))
    (place / "sent" / "model" / "theirs.py").write_text(f"open({str(place / CANARY)!r}, 'w')\nclass Config: pass\n")


def template(source: str) -> Callable[[Path], None]:
    def sent(place: Path) -> None:
        folder = place / "sent" / "model"
        (folder / "chat_template.jinja").write_text(source)

    return sent


MODELS: dict[str, Callable[[Path], None]] = {
    "own code": own_code,
    "a pickle for weights": pickled("model", "pytorch_model.bin", "model.safetensors"),
    "weights that are not finite": weights("model/model.safetensors", lambda t: t * float("nan")),
    "weights cut short": cut_short("model/model.safetensors"),
    "a configuration that is a list": text("model/config.json", "[]"),
    "a configuration nested deeply": text("model/config.json", "[" * 30_000),
    "a configuration cut short": cut_short("model/config.json"),
    "a model type that moves the cursor": rewrite("model/config.json", lambda c: c | {"model_type": ESCAPE}),
    "shards outside": text("model/model.safetensors.index.json",
                           json.dumps({"weight_map": {"a": "../../secret.json"}, "metadata": {}})),
    "a generation configuration that is a list": text("model/generation_config.json", "[]"),
    "a tokenizer that is no JSON": text("model/tokenizer.json", "{"),
    "a template that asks for the class of things": template("{{ ''.__class__.__mro__[1].__subclasses__() }}"),
    "a template that never ends": template("{% for i in range(10**9) %}{% endfor %}x"),
    "weights that are a link": lambda place: link_to_secret(place, "model/model.safetensors"),
}  # fmt: skip


@pytest.mark.parametrize("kind", MODELS)
def test_a_model_from_a_stranger(place: Path, kind: str) -> None:
    MODELS[kind](place)
    harmless(place, "sample", "sent/model", "-p", "prompts.txt", "--max-new-tokens", "2")
    harmless(place, "dpo", "-m", "sent/model", "-d", "pairs.jsonl", "-o", "out", "max_steps=1", "sample_steps=0")
    harmless(place, "data", "pairs.jsonl", "-m", "sent/model")


ADAPTERS: dict[str, Callable[[Path], None]] = {
    "a configuration that is a list": text("run/model/adapter_config.json", "[]"),
    "a configuration cut short": cut_short("run/model/adapter_config.json"),
    "no base": rewrite("run/model/adapter_config.json", lambda c: c | {"base_model_name_or_path": None}),
    "a base that moves the cursor": rewrite("run/model/adapter_config.json",
                                            lambda c: c | {"base_model_name_or_path": f"./{ESCAPE}"}),
    "a base that is a number": rewrite("run/model/adapter_config.json", lambda c: c | {"base_model_name_or_path": 5}),
    "a kind that there is not": rewrite("run/model/adapter_config.json", lambda c: c | {"peft_type": ESCAPE}),
    "a rank that is a text": rewrite("run/model/adapter_config.json", lambda c: c | {"r": "x"}),
    "a pickle for weights": pickled("run/model", "adapter_model.bin", "adapter_model.safetensors"),
    "weights cut short": cut_short("run/model/adapter_model.safetensors"),
    "weights that are not finite": weights("run/model/adapter_model.safetensors", lambda t: t * float("nan")),
    "weights that are a link": lambda place: link_to_secret(place, "run/model/adapter_model.safetensors"),
}  # fmt: skip


@pytest.mark.parametrize("kind", ADAPTERS)
def test_an_adapter_from_a_stranger(place: Path, kind: str) -> None:
    ADAPTERS[kind](place)
    harmless(place, "sample", "sent/run/model", "-p", "prompts.txt", "--max-new-tokens", "2")
    harmless(place, "export", "sent/run", "--out", "out", "-p", "prompts.txt")
    harmless(
        place, "dpo", "-m", "sent/run/model", "-d", "pairs.jsonl", "-o", "trained", "max_steps=1", "sample_steps=0"
    )


RUNS: dict[str, Callable[[Path], None]] = {
    **{f"{name} that is a link": (lambda place, name=name: link_to_secret(place, f"run/{name}")) for name in (
        "recipe.yaml", "environment.json", "data.json", "status.json", "metrics.jsonl", "samples.jsonl", "model")},
    **{f"{name} that is a list": text(f"run/{name}", "[]") for name in (
        "recipe.yaml", "environment.json", "data.json", "status.json", "metrics.jsonl", "samples.jsonl")},
    "tags in the recipe": text("run/recipe.yaml", "method: !!python/object/apply:os.system ['touch it_ran']\n"),
    "a judge that is code": text("run/recipe.yaml", "method: dpo\nmodel: m\ndata: pairs.jsonl\njudge: os:getcwd\n"),
    "a model that moves the cursor": text("run/recipe.yaml", f'method: dpo\nmodel: "./{ESCAPE}"\ndata: pairs.jsonl\n'
                                          .replace("\x1b", "\\e").replace("\x07", "\\a")),
    "choices that are numbers": rewrite("run/environment.json", lambda e: e | {"choices": 5}),
    "a choice without a name": rewrite("run/environment.json", lambda e: e | {"choices": [1, {}]}),
    "a plan that is a text": rewrite("run/environment.json", lambda e: e | {"plan": ESCAPE, "versions": 5}),
    "sources that are numbers": rewrite("run/data.json", lambda d: d | {"eval_sources": 5, "train": ESCAPE}),
    "an account that is a text": rewrite("run/data.json", lambda d: d | {"train": ESCAPE, "prompts": 5, "overlap": []}),
    "numbers that are texts": rewrite("run/data.json", lambda d: d | {"overlap": {"prompts": "x", "of": [1]}}),
    "a configuration that is a link": lambda place: link_to_secret(place, "run/model/adapter_config.json"),
    "a tokenizer that is a link": lambda place: link_to_secret(place, "run/model/tokenizer_config.json"),
    "sources elsewhere": rewrite("run/data.json", lambda d: d | {"eval_sources": ["secret.json:1"]}),
}  # fmt: skip


@pytest.mark.parametrize("kind", RUNS)
def test_a_run_from_a_stranger(place: Path, kind: str) -> None:
    RUNS[kind](place)
    for command in (
        ("report", "sent/run", "--out", "report.html"),
        ("compare", "sent/run", "--max-new-tokens", "2", "--limit", "2"),
        ("sample", "sent/run", "-p", "prompts.txt", "--max-new-tokens", "2"),
        ("export", "sent/run", "--out", "exported"),
    ):
        harmless(place, *command)
    made = [p for p in (place / "report.html", *(place / "exported").rglob("*")) if p.is_file()]
    assert not [p for p in made if SECRET.encode() in p.read_bytes()]


def resealed(folder: Path) -> None:
    """As whoever sends a checkpoint can make it look whole."""
    (folder / "manifest.json").unlink()
    seal(folder)


def odd(name: str, value: object) -> Callable[[Path], object]:
    """A state in which this stands under this name."""

    def write(step: Path) -> None:
        state = json.loads((step / "state.json").read_text())
        (step / "state.json").write_text(json.dumps(state | {name: value}))

    return write


ODD = {
    "step": "2", "owed": [1], "best": {}, "baseline": [1], "pending": {"loss": [1.0, 2.0]}, "rows": {"a": "b"},
    "waiting": [1], "method": {"noise": "loud"}, "budget": 0, "backoffs": ESCAPE, "seconds": "soon",
}  # fmt: skip
CHECKPOINTS: dict[str, Callable[[Path], object]] = {
    "a pickle for an optimizer": lambda p: (p / "optimizer.pt").write_bytes(pickle.dumps({"optimizer": Bomb()})),
    "a state that is a list": lambda p: (p / "state.json").write_text("[]"),
    "a state that is empty": lambda p: (p / "state.json").write_text("{}"),
    **{f"a state whose {name} is another kind of thing": odd(name, value) for name, value in ODD.items()},
    "random numbers that are a pickle": lambda p: (p / "rng-0.pt").write_bytes(pickle.dumps(Bomb())),
    "weights of another model": lambda p: save_file({"x": torch.zeros(2)}, p / "trained.safetensors"),
}


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_a_checkpoint_from_a_stranger_that_looks_whole(place: Path, base: Path, kind: str) -> None:
    """Somebody is sent a run and asked to go on with it."""
    run = place / "sent" / "run"
    newest = max((run / "checkpoints").glob("step-*"))
    CHECKPOINTS[kind](newest)
    resealed(newest)
    shutil.rmtree(run / "model")
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps(status | {"state": "stopped"}))
    said = harmless(place, "dpo", str(run / "recipe.yaml"), "--out", "sent/run")
    assert "error: " in said
    for name, content in {"status.json": '{"state": "finished"}', "environment.json": '{"rewards": [1]}'}.items():
        (run / name).write_text(content)
        harmless(place, "dpo", str(run / "recipe.yaml"), "--out", "sent/run")


REWARDS: dict[str, Callable[[Path], None]] = {
    "weights that are not finite": weights("rm/model/model.safetensors", lambda t: t * float("nan")),
    "a pickle for weights": pickled("rm/model", "pytorch_model.bin", "model.safetensors"),
    "no labels": rewrite("rm/model/config.json", lambda c: c | {"id2label": {}, "num_labels": 0}),
    "a normalisation that is a text": text("rm/model/reward.json", '{"mean": "x", "std": []}'),
    "a normalisation that is a list": text("rm/model/reward.json", "[]"),
}


@pytest.mark.parametrize("kind", REWARDS)
def test_a_reward_model_from_a_stranger(place: Path, kind: str) -> None:
    REWARDS[kind](place)
    harmless(place, "score", "sent/rm", "-d", "pairs.jsonl")


def no_database(path: Path) -> None:
    path.write_bytes(b"this is no database" * 100)


def other_tables(path: Path) -> None:
    with sqlite3.connect(path) as c:
        c.execute("CREATE TABLE alembic_version (version_num TEXT)")
        c.execute("INSERT INTO alembic_version VALUES (?)", (ESCAPE,))


def tables_of_other_shapes(path: Path) -> None:
    with sqlite3.connect(path) as c:
        c.execute("CREATE TABLE alembic_version (version_num TEXT)")
        c.execute("INSERT INTO alembic_version VALUES ('0001')")
        c.execute("CREATE TABLE person (id TEXT, pseudonym BLOB)")


def cut_database(path: Path) -> None:
    from prefiere.feedback.store import Store

    Store.open(path, create=True).close()
    path.write_bytes(path.read_bytes()[:6000])


STORES = {f.__name__: f for f in (no_database, other_tables, tables_of_other_shapes, cut_database)}


@pytest.mark.parametrize("kind", STORES)
def test_a_store_from_a_stranger(place: Path, kind: str) -> None:
    STORES[kind](place / "votes.db")
    held = (place / "votes.db").read_bytes()
    for command in (
        ("votes", "people", "votes.db"),
        ("votes", "agree", "votes.db"),
        ("votes", "why", "votes.db", "1"),
        ("votes", "export", "votes.db", "-o", "out.jsonl"),
        ("data", "votes.db"),
        ("dpo", "-m", "sent/model", "-d", "votes.db", "-o", "out"),
    ):
        harmless(place, *command)
    assert (place / "votes.db").read_bytes() == held, "a store that cannot be read is left as it is"


RECIPES = {
    "tags": "method: !!python/object/apply:os.system ['touch it_ran']\n",
    "a key that moves the cursor": 'method: dpo\nmodel: m\ndata: d\nout: o\n"\\e]0;owned\\a": 1\n',
    "a value that moves the cursor": 'method: dpo\nmodel: "\\e]0;owned\\a"\ndata: d\nout: o\nbeta: "\\e]0;owned\\a"\n',
    "aliases": "a: &a [1, 2]\n" + "".join(f"b{i}: &b{i} [*{'a' if i == 0 else f'b{i - 1}'}, *a]\n" for i in range(60)),
    "depth": "model: " + "{a: " * 3000,
    "a list": "- method: dpo\n",
    "not text": "\x00\x01\x02",
}


@pytest.mark.parametrize("kind", RECIPES)
def test_a_recipe_from_a_stranger(place: Path, kind: str) -> None:
    (place / "theirs.yaml").write_text(RECIPES[kind])
    for command in (
        ("recipe", "validate", "theirs.yaml"),
        ("dpo", "theirs.yaml"),
        ("estimate", "theirs.yaml"),
        ("loop", "theirs.yaml"),
    ):
        harmless(place, *command)
