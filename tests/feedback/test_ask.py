"""The Ask page: a person's own prompt, answered by a process that may fail without taking a vote with it."""

from __future__ import annotations

import sys
import textwrap

import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from feedback.conftest import fill, rows
from feedback.test_collect import BASE
from feedback.test_page import fields
from feedback.test_votes import valid
from prefiere.cli.feedback import _questions
from prefiere.cli.main import app
from prefiere.feedback import schema
from prefiere.feedback.collect import How
from prefiere.feedback.page import words
from prefiere.feedback.page.app import create
from prefiere.feedback.page.sampler import NoAnswer, Sampler

# A process that speaks as the sampler does: echoes, falls silent, errs and dies when it is told to.
ECHO = textwrap.dedent("""
    import json, os, sys
    def say(v): print(json.dumps(v), flush=True)
    names = sys.argv[1:]
    say({"models": [{"label": n, "path": n, "fingerprint": n, "run": None, "step": None} for n in names]})
    for line in sys.stdin:
        asked = json.loads(line)
        text = asked["prompt"]
        if "DIE" in text: os._exit(9)
        if "ERR" in text: say({"error": "out of memory"}); continue
        same = "SAME" in text
        who = names[asked["model"]]
        say({"answers": ["igual" if same else f"{who} {asked['how']['seed']} {i}" for i in range(asked["samples"])]})
""")


def echo(*names: str) -> Sampler:
    return Sampler([sys.executable, "-c", ECHO, *names])


@pytest.fixture
def one():
    made = echo("one")
    yield made
    made.close()


def browser(store, sampler) -> TestClient:
    return TestClient(create(store, sampler=sampler), base_url="http://127.0.0.1:8600")


def test_what_is_asked_is_answered_twice_and_voted_on(store, one):
    fill(store, 1)
    page = browser(store, one)
    waiting = fields(page.get("/").text)["lease"]
    assert 'href="/ask"' in page.get("/").text
    form = fields(page.get("/ask").text)
    after = page.post("/ask", data=form | {"prompt": "¿Qué es un perro? <b>"})
    assert "¿Qué es un perro? &lt;b&gt;" in after.text
    held = fields(after.text)
    assert held["lease"] != waiting
    page.post("/vote", data=held | {"score": "-2"})
    (vote,) = valid(store)
    assert vote.purpose == "ask"
    answers = [a for a in rows(store, schema.answer) if a["model_id"]]
    assert len({a["content"] for a in answers}) == 2
    assert {(a["sample"], a["max_new_tokens"]) for a in answers} == {(0, 256), (1, 256)}
    assert "¿Qué es 0?" in page.get("/").text  # what they held before comes back


def test_two_models_answer_once_each(sqlite_store):
    two = echo("before", "after")
    page = browser(sqlite_store, two)
    shown = page.post("/ask", data=fields(page.get("/ask").text) | {"prompt": "hola"})
    two.close()
    assert "before" in shown.text
    assert {m["label"] for m in rows(sqlite_store, schema.model)} == {"before", "after"}


@pytest.mark.parametrize(("prompt", "key"), [("SAME", "ask_same"), ("ERR", "ask_failed"), ("DIE", "ask_gone")])
def test_what_cannot_be_answered_is_said_and_leaves_nothing(sqlite_store, one, prompt, key):
    page = browser(sqlite_store, one)
    form = fields(page.get("/ask").text)
    failed = page.post("/ask", data=form | {"prompt": prompt})
    assert failed.status_code == 503
    assert words.EN[key].replace("'", "&#39;") in failed.text
    assert f">{prompt}</textarea>" in failed.text  # what they typed is not lost
    assert not rows(sqlite_store, schema.prompt)
    assert page.post("/ask", data=form | {"prompt": "again"}).status_code == 200  # started again if it died
    assert len(rows(sqlite_store, schema.pair)) == 1


def test_without_a_model_there_is_no_ask_page_and_forms_of_others_are_refused(sqlite_store, one):
    assert browser(sqlite_store, None).get("/ask").status_code == 404
    page = browser(sqlite_store, one)
    form = fields(page.get("/ask").text)
    assert page.post("/ask", data={"prompt": "x"}).status_code == 403
    assert page.post("/ask", data=form | {"prompt": "  "}).status_code == 422
    assert not rows(sqlite_store, schema.prompt)


def test_a_question_is_picked_with_one_click(sqlite_store, one):
    made = create(sqlite_store, sampler=one, questions=[f"¿{i} <b>?" for i in range(20)])
    page = TestClient(made, base_url="http://127.0.0.1:8600")
    shown = page.get("/ask").text
    assert shown.count('name="pick"') == 9
    assert 'value="¿0 &lt;b&gt;?" data-key="1" formnovalidate' in shown
    after = page.post("/ask", data=fields(shown) | {"prompt": "", "pick": "¿0 <b>?"})
    assert "¿0 &lt;b&gt;?" in after.text
    assert fields(after.text)["lease"]
    (asked,) = rows(sqlite_store, schema.prompt)
    assert asked["content"] == "¿0 <b>?"


def test_questions_come_from_a_file_and_need_a_model(tmp_path):
    (tmp_path / "q.txt").write_text("¿Qué es un perro?\n\n  ¿Y un gato?  \n" + "x\n" * 20)
    assert _questions(str(tmp_path / "q.txt")) == ["¿Qué es un perro?", "¿Y un gato?", *["x"] * 7]
    done = CliRunner().invoke(app, ["serve", str(tmp_path / "v.db"), "--prompts", str(tmp_path / "q.txt")])
    assert done.exit_code == 2
    assert "name it with --model" in done.stderr
    assert not (tmp_path / "v.db").exists()


@pytest.mark.long
def test_the_demos_model_answers_in_a_process_of_its_own():
    sampler = Sampler([sys.executable, "-m", "prefiere.cli.sampler", BASE])
    try:
        drawn = sampler.draw("¿Qué es un perro?", How(max_new_tokens=16, seed=3))
        again = sampler.draw("¿Qué es un perro?", How(max_new_tokens=16, seed=3))
    finally:
        sampler.close()
    assert [(m.label, n) for m, n, _ in drawn] == [(BASE, 0), (BASE, 1)]
    assert drawn == again
    assert all(text.strip() for _, _, text in drawn)
    missing = Sampler([sys.executable, "-m", "prefiere.cli.sampler", "/none/such/model"])
    with pytest.raises(NoAnswer, match="no model folder"):
        missing.draw("x", How())
    missing.close()
