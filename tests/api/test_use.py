"""Runs and models in Python: what the commands do, by the same code, and a run that shows itself."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import prefiere
import runs
from prefiere.api import training, use
from prefiere.cli.main import app
from prefiere.data.schema import Message
from prefiere.run import RunError

SHORT = {"batch_size": 8, "max_steps": 2, "learning_rate": 1e-2, "eval_size": 6}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, pairs, a DPO run and a reward model, without reports."""
    folder = tmp_path_factory.mktemp("place")
    runs.model_folder(folder / "model")
    runs.pairs_file(folder / "pairs.jsonl")
    (folder / "prompts.txt").write_text("What is a dog?\n¿Qué es una casa?\n", encoding="utf-8")
    given = {"model": folder / "model", "data": folder / "pairs.jsonl", **SHORT}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "_write_report", lambda run: None)
        prefiere.dpo(**given, out=folder / "run", lora=True, max_new_tokens=6, sample_prompts=4, guard=False)
        prefiere.reward(**given, out=folder / "reward")
    return folder


def command(*arguments: str | Path) -> dict[str, Any]:
    done = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


def test_an_opened_run_is_what_training_returned(place: Path) -> None:
    run = prefiere.Run.open(place / "run")
    assert type(run) is prefiere.Run
    assert type(run) is inspect.signature(prefiere.dpo, eval_str=True).return_annotation
    frame = run.to_frame()
    assert isinstance(frame, pd.DataFrame)
    assert frame["step"].tolist() == [row["step"] for row in run.metrics]
    assert len(run.to_frame("samples")) == len(run.samples) > 0
    assert run.stopped is None
    assert not run.already
    with pytest.raises(RunError, match="is not a run"):
        prefiere.Run.open(place / "model")


def test_answers_are_those_of_the_command(place: Path) -> None:
    told = command("sample", place / "run", "--prompts", place / "prompts.txt", "-n", "2", "--max-new-tokens", "5")
    options: dict[str, Any] = {"samples": 2, "max_new_tokens": 5}
    assert prefiere.sample(place / "run", place / "prompts.txt", **options) == told["answers"]
    texts = (place / "prompts.txt").read_text("utf-8").splitlines()
    run = prefiere.Run.open(place / "run")
    assert run.sample(texts, **options) == told["answers"]
    chats: list[Any] = [[{"role": "user", "content": texts[0]}], (Message("user", texts[0]),)]
    one, other = run.sample(chats, max_new_tokens=5)
    assert one["prompt"] == other["prompt"] == texts[0]
    for wrong in ([3], [[]], [[{"role": "user"}]]):
        with pytest.raises(ValueError, match=r"^prompts\[0\]"):
            prefiere.sample(place / "run", wrong)  # type: ignore[arg-type]


def test_prompts_of_a_table_are_its_prompts(place: Path) -> None:
    """Not the names of its columns."""
    texts = (place / "prompts.txt").read_text("utf-8").splitlines()
    rows = [{"prompt": text, "answer": str(i)} for i, text in enumerate(texts)]
    table, held = pd.DataFrame(rows), datasets.Dataset.from_list(rows)
    for given in (rows, table, held, datasets.DatasetDict(train=held)):
        assert use.texts_of(given) == texts
    assert use.texts_of(table, 1) == texts[:1]
    seen = []

    def judge(prompts: list[str], completions: list[str], answer: list[str]) -> list[float]:
        seen.extend(zip(prompts, answer, strict=True))
        return [0.0 for _ in completions]

    found = prefiere.compare(place / "model", place / "run", prompts=table, judge=judge, max_new_tokens=2)
    assert repr(found) == str(found)  # a cell of a notebook shows what print does
    assert [p.prompt for p in found.pairings] == texts
    assert set(seen) == set(zip(texts, "01", strict=True))


def test_what_is_no_prompt_and_no_model_is_one_line(place: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(place / "model")
    rows = [{"prompt": "a", "chosen": "b", "rejected": "c"}]
    wrong: list[tuple[Callable[[], Any], str]] = [
        (lambda: use.texts_of({"prompt": ["a"]}), r"^prompts must be a name .*Give pandas\.DataFrame\(it\)"),
        (lambda: use.texts_of(pd.Series([3])), r"^prompts\[0\] must be a text"),
        (lambda: use.texts_of(7), r"^prompts must be a name .*, not int 7\."),  # type: ignore[arg-type]
        (lambda: use.texts_of(None), r"^prompts must be a name .*, not None\."),  # type: ignore[arg-type]
        (lambda: prefiere.compare(place / "model", place / "run", prompts=[]), "^prompts: there are none to ask"),
        (lambda: prefiere.score(place / "reward", None), r"^data must be a name .*, not None\."),
        (lambda: prefiere.estimate("kto", model="m", data=rows), "^method must be one of sft, dpo, .*, not 'kto'"),
        (lambda: prefiere.estimate("recipe.yaml"), r"A recipe is given as recipe=\.\.\."),
        *((lambda f=f: f(model), "^a hub id, a folder or a run is wanted, not LlamaForCausalLM") for f in (
            lambda m: prefiere.sample(m, ["a"]), lambda m: prefiere.compare(m, m, prompts=["a"]), prefiere.chat,
            lambda m: prefiere.score(m, rows), lambda m: prefiere.export(m, "out"), prefiere.diagnose,
        )),
    ]  # fmt: skip
    for call, said in wrong:
        with pytest.raises(ValueError, match=said):
            call()


def test_comparisons_are_those_of_the_command(place: Path) -> None:
    told = command("compare", place / "run", "--limit", "2", "--max-new-tokens", "5")
    run = prefiere.Run.open(place / "run")
    assert json.loads(json.dumps(run.compare(limit=2, max_new_tokens=5).to_dict())) == told
    judged = run.compare(
        limit=2, max_new_tokens=5, judge=lambda prompts, completions: [float(len(c)) for c in completions]
    )
    assert judged.judge == "<lambda>"
    assert judged.wins + judged.losses + judged.ties == 2
    assert judged.pairings[0].score_after == len(judged.pairings[0].after)
    by_column = run.compare(
        limit=2, max_new_tokens=5, judge=lambda completions, chosen, **_: [float(len(c)) for c in chosen]
    )
    assert by_column.ties == 2
    assert by_column.pairings[0].score_after > 5  # the data's column reached it


def test_scores_are_those_of_the_command(place: Path, tmp_path: Path) -> None:
    told = command("score", place / "reward", "--data", place / "pairs.jsonl", "--out", tmp_path / "scores.jsonl")
    found = prefiere.score(place / "reward", place / "pairs.jsonl", quiet=True)
    assert json.loads(json.dumps(found.to_dict()["models"])) == told["models"]
    assert found.rows == [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    pairs = [json.loads(line) for line in (place / "pairs.jsonl").read_text().splitlines()]
    held = prefiere.Run.open(place / "reward").score(pairs, quiet=True).to_frame()
    assert held["chosen"].tolist() == [row["chosen"] for row in found.rows]
    assert held["source"].tolist()[:2] == ["data[0]", "data[1]"]
    told_held = prefiere.score(place / "reward", pairs[:4], quiet=True).to_dict()
    assert told_held["data"] == "data"
    assert "inputs" not in json.dumps(told_held)


@pytest.mark.long
def test_export_chat_estimate_and_diagnose(place: Path, tmp_path: Path) -> None:
    run = prefiere.Run.open(place / "run")
    made = run.export(tmp_path / "adapter", quiet=True)
    assert (made["out"], made["merged"], made["answers"] > 0) == (tmp_path / "adapter", False, True)
    assert (tmp_path / "adapter" / "adapter_config.json").is_file()
    talk = run.chat(max_new_tokens=4)
    assert isinstance(talk("Hello"), str)
    assert [turn.role for turn in talk.turns] == ["user", "assistant"]
    told = command("estimate", "--gpu", "t4", "-m", place / "model", "-d", place / "pairs.jsonl", "batch_size=8")
    pairs = [json.loads(line) for line in (place / "pairs.jsonl").read_text().splitlines()]
    found = prefiere.estimate("dpo", model=place / "model", data=pairs, batch_size=8, gpu="t4", quiet=True)
    assert repr(found) == str(found)
    assert (found.estimate.memory.peak, found.fits) == (told["peak"], told["fits"])
    assert prefiere.diagnose(place / "run") == run.diagnose()
    assert run.diagnose().headline


@pytest.mark.long
def test_rooms_that_are_called_like_functions_are_both(place: Path) -> None:
    code = (
        "import prefiere; from prefiere import sample, estimate\n"
        "import prefiere.sample.local, prefiere.estimate.cards\n"
        "assert prefiere.sample.local.generate and prefiere.estimate.cards.card_of('t4')\n"
        "import prefiere.sample.local as local\n"
        "from prefiere.api import use\n"
        "import inspect; assert inspect.signature(prefiere.sample) == inspect.signature(use.sample)\n"
        "assert prefiere.estimate.__doc__ == use.estimate.__doc__\n"
        f"from prefiere import sample as again; print(len(again({str(place / 'run')!r}, ['hi'], max_new_tokens=2)))\n"
        f"print(len(sample({str(place / 'run')!r}, ['hi'], max_new_tokens=2)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["1", "1"]


def test_all_that_is_public_has_a_docstring_and_stands_in_the_package() -> None:
    for name in prefiere.__all__:
        if name != "__version__":
            assert inspect.getdoc(getattr(prefiere, name)), name
    assert set(prefiere._USES) == {
        n for n, f in vars(use).items() if inspect.isfunction(f) and f.__module__ == use.__name__ and n[0] != "_"
    } - {"texts_of"}
    assert importlib.import_module("prefiere.api.use") is use


class Seen(HTMLParser):
    """Tags and attributes of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags, self.attributes, self.open = list[str](), list[tuple[str, str | None]](), list[str]()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("path", "use", "rect", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            assert self.open.pop() == tag


def test_a_run_shows_its_verdict_and_curves_and_nothing_runs(place: Path, tmp_path: Path) -> None:
    run = prefiere.Run.open(place / "run")
    html = run._repr_html_()
    seen = Seen(html)
    assert seen.open == []
    assert seen.tags.count("svg") >= 3
    assert run.diagnose().headline[:20] in html.replace("&#39;", "'")
    hostile = prefiere.Run.create(tmp_path / "<script>alert(1)\u202e")
    hostile.recipe = run.recipe
    hostile.status = {**run.status, "state": "failed", "reason": "<img src=x onerror=alert(1)>\x1b[2J"}
    for row in run.metrics:
        hostile.log(row)
    shown = hostile._repr_html_()
    assert "&lt;script&gt;" in shown
    assert "\u202e" not in shown
    for page in (html, shown):
        of = Seen(page)
        assert not {"script", "img", "iframe", "link", "style", "object"} & set(of.tags)
        assert not [a for a, _ in of.attributes if a.startswith("on")]
        urls = [v for a, v in of.attributes if a in ("href", "xlink:href", "src") and v]
        assert all(v.startswith("#") for v in urls)
        assert not re.search(r"url\((?!#)", page)
