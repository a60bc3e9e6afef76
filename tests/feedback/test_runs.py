"""The Runs page over HTTP: every run of a folder, also a stranger's, read as data."""

from __future__ import annotations

import html
import json
import re
import sys
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from feedback.test_page import joined
from prefiere.feedback.page import run_words
from prefiere.feedback.page import runs as runs_module
from prefiere.feedback.page.app import create
from prefiere.feedback.page.runs import RunFolder
from prefiere.feedback.store import Store
from prefiere.run import Run
from synthetic_runs import PERFECT, RUINED, make, make_policy, make_reward

PAGES = ("/runs", "/runs/part", "/run?name=a", "/run/part?name=a", "/run/report?name=a")


LOSS_ALONE = ("rewards/", "samples/", "logps/", "eval_rewards/", "eval_logps/")
"""What is left out of a run of which one figure is enough."""


def browser(store: Store, folder: Path | None) -> TestClient:
    app = create(store, runs=RunFolder(folder) if folder else None)
    return TestClient(app, base_url="http://127.0.0.1:8600", raise_server_exceptions=False)


def sampled(run: Run, steps: tuple[int, ...] = (0, 100), text: str = "Un perro") -> None:
    run.log_samples(
        [{"step": s, "prompt": "¿Qué es un perro?", "sample": 0, "completion": f"{text}, {s}."} for s in steps]
    )


@pytest.mark.long
def test_every_run_is_shown_with_progress_verdict_curves_and_answers(sqlite_store, tmp_path):
    folder = tmp_path / "runs"
    sampled(make(folder / "a"))
    make_reward(folder / "deeper" / "b")
    make_policy(folder / "c", status={"state": "running", "step": 25, "total_steps": 100, "seconds": 50.0}, steps=25)
    (folder / "empty").mkdir()
    (folder / "notes.txt").write_text("x")
    page = browser(sqlite_store, folder)
    listed = page.get("/runs").text
    assert re.findall(r'href="/run\?name=([^"]*)"', listed) == ["c", "deeper/b", "a"]
    assert "25 / 100 updates" in listed
    assert "2 min 30 s to go, at this pace" in listed  # 50 s for 25 updates: 150 s for the 75 that are left
    assert listed.count("✓ good") == 3
    shown = page.get("/run", params={"name": "a"}).text
    assert "The model learnt the preferences" in shown
    assert shown.count("<figure") == shown.count("<svg") >= 10
    assert 'style="' not in shown  # the page's policy would drop it
    assert "Un perro, <mark>0.</mark>" in shown
    assert "Un perro, <mark>100.</mark>" in shown
    assert page.get("/run", params={"name": "deeper/b"}).status_code == 200
    report = page.get("/run/report", params={"name": "a"})
    assert report.headers["content-security-policy"].startswith("sandbox; default-src 'none'")
    assert "What was run on what" in report.text
    assert ">Runs</a>" in page.get("/").text


def test_only_admins_see_runs_and_without_a_folder_nobody(sqlite_store, tmp_path):
    make(tmp_path / "runs" / "a", steps=10, drop=LOSS_ALONE)
    for path in PAGES:
        assert browser(sqlite_store, None).get(path).status_code == 404
    ana, boss = joined(sqlite_store, "ana"), joined(sqlite_store, "boss", role="admin")
    stranger = TestClient(
        create(sqlite_store, tokens=True, runs=RunFolder(tmp_path / "runs")), base_url="http://127.0.0.1"
    )
    for who, status in ((ana, 403), (boss, 200)):
        who.app.app.state.site.runs = RunFolder(tmp_path / "runs")
        for path in PAGES:
            assert who.get(path).status_code == status, path
    for path in PAGES:
        assert stranger.get(path).status_code == 401


def test_a_name_opens_nothing_but_a_run_of_the_folder(sqlite_store, tmp_path):
    make(tmp_path / "outside", steps=10)
    make(tmp_path / "runs" / "a", steps=10)
    (tmp_path / "runs" / "link").symlink_to(tmp_path / "outside")
    page = browser(sqlite_store, tmp_path / "runs")
    names = (
        "../outside",
        "a/../../outside",
        "..",
        ".",
        "",
        str(tmp_path / "outside"),
        "link",
        "a/checkpoints",
        "a\0",
        "%2e%2e/outside",
    )
    for name in names:
        for path in ("/run", "/run/part", "/run/report"):
            assert page.get(path, params={"name": name}).status_code == 404, name
    assert "outside" not in page.get("/runs").text
    assert "link" not in re.findall(r"name=([^\"]*)", page.get("/runs").text)


def test_parts_are_sent_again_only_when_a_run_has_grown(sqlite_store, tmp_path, monkeypatch):
    monkeypatch.setattr(runs_module, "IDLE", 0)
    run = make(tmp_path / "a", steps=20, drop=LOSS_ALONE, status={"state": "running", "step": 20, "total_steps": 40})
    page = browser(sqlite_store, tmp_path)
    for path in ("/runs/part", "/run/part?name=a"):
        tag = page.get(path).headers["etag"]
        assert page.get(path, headers={"If-None-Match": tag}).status_code == 304
        step = run.status["step"] + 1
        run.log({"step": step, "loss": 0.4})
        run.status = run.status | {"step": step}
        later = page.get(path, headers={"If-None-Match": tag})
        assert later.status_code == 200
        assert f"{step} / 40" in later.text


@pytest.mark.long
def test_a_strangers_folder_takes_one_line_and_nothing_else(sqlite_store, tmp_path, monkeypatch):
    """Links, bombs, code that is named, wrong shapes: the sound run beside them is shown, and nothing is imported."""
    folder, private = tmp_path / "runs", tmp_path / "private.json"
    private.write_text(json.dumps({"secret": "not yours", "step": 1}))
    make(folder / "sound", steps=10)
    hostile = {
        "linked": lambda r: (r.folder / "status.json").unlink() or (r.folder / "status.json").symlink_to(private),
        "data": lambda r: (r.folder / "data.json").symlink_to(private),
        "log": lambda r: (r.folder / "metrics.jsonl").unlink() or (r.folder / "metrics.jsonl").symlink_to(private),
        "bomb": lambda r: (r.folder / "recipe.yaml").write_text("a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
            f"{k}: &{k} [{','.join(['*' + up] * 9)}]\n" for up, k in zip("abcdefgh", "bcdefghi", strict=True))),
        "shape": lambda r: (r.folder / "status.json").write_text('{"state": ["x"], "step": {}, "total_steps": "many"}'),
        "recipe": lambda r: (r.folder / "recipe.yaml").write_text("{learning_rate: [], method: {a: 1}, beta: x}"),
        "huge": lambda r: (r.folder / "metrics.jsonl").write_text('{"step": 1, "loss": 1' + "0" * 400 + "}\n"),
        "strings": lambda r: (r.folder / "metrics.jsonl").write_text('{"step": 1, "loss": "x", "eval_loss": [1]}\n'),
    }  # fmt: skip
    for name, spoil in hostile.items():
        spoil(make(folder / name, steps=10, drop=LOSS_ALONE))
    payload = make(
        folder / "code",
        steps=10,
        drop=LOSS_ALONE,
        recipe={"judge": "payload_of_a_stranger:score", "reward": "payload_of_a_stranger:score"},
    )
    for where in (payload.folder, tmp_path):
        (where / "payload_of_a_stranger.py").write_text("raise SystemExit('imported')")
    monkeypatch.chdir(payload.folder)
    monkeypatch.syspath_prepend(str(tmp_path))
    (payload.folder / "report.html").write_text("<script>their own page</script>")
    page = browser(sqlite_store, folder)
    listed = page.get("/runs").text
    assert len(re.findall(r'<article class="run"', listed)) == len(hostile) + 2
    broken = re.findall(r'<bdi>(\w+)</bdi></a></h2>\s*<p class="problem">', listed)
    assert {"linked", "log", "bomb"} <= set(broken)
    assert not {"sound", "code"} & set(broken)
    for name in (*hostile, "code"):
        for path in ("/run", "/run/part", "/run/report"):
            shown = page.get(path, params={"name": name})
            assert shown.status_code == 200, (name, path)
            assert "not yours" not in shown.text
            assert "their own page" not in shown.text
    assert "payload_of_a_stranger" not in sys.modules
    assert "learnt the preferences" in page.get("/run", params={"name": "sound"}).text


@pytest.mark.long
def test_a_hundred_thousand_rows_make_a_page_of_ordinary_size(sqlite_store, tmp_path):
    run = make(tmp_path / "a", steps=5, drop=LOSS_ALONE)
    row = {"loss": 0.5, "eval_loss": 0.5}
    with open(run.folder / "metrics.jsonl", "a") as f:
        f.writelines(json.dumps({"step": s, **row}) + "\n" for s in range(6, 100_006))
    page = browser(sqlite_store, tmp_path)
    assert len(page.get("/run", params={"name": "a"}).content) < 400_000


def test_text_of_a_run_is_text(sqlite_store, tmp_path):
    evil = '<img src=x onerror="alert(1)">\u202e'
    run = make(tmp_path / "<b>n'&quot;", recipe={"model": evil}, status={"state": "stopped", "reason": evil}, steps=10,
               drop=LOSS_ALONE)  # fmt: skip
    sampled(run, (0, 10), evil)
    page = browser(sqlite_store, tmp_path)
    for path in ("/runs", "/run?name=%3Cb%3En%27%26quot%3B", "/run/report?name=%3Cb%3En%27%26quot%3B"):
        shown = page.get(path)
        assert shown.status_code == 200
        assert "<img" not in shown.text
        assert "<b>n" not in shown.text
        assert "⟨U+202E⟩" in html.unescape(shown.text)


@pytest.mark.long
def test_what_a_run_shows_is_said_in_the_readers_language(sqlite_store, tmp_path):
    """Each browser in its own, whoever looked first."""
    make(tmp_path / "runs" / "a", train=PERFECT, answers=RUINED)
    page = browser(sqlite_store, tmp_path / "runs")
    english, spanish = {"Accept-Language": "en"}, {"Accept-Language": "es"}
    assert "The answers fell apart" in page.get("/runs", headers=english).text
    listed, shown = (page.get(at, params={"name": "a"}, headers=spanish).text for at in ("/runs", "/run"))
    for text in (listed, shown):
        assert "El modelo quedó arruinado" in text
        assert "fell apart" not in text
    for text in ("pon rpo_alpha en 1", "Optimización de preferencias (DPO)", "Exactitud"):
        assert text in shown
    assert "The answers fell apart" in page.get("/run", params={"name": "a"}, headers=english).text


def test_a_folder_without_runs_says_so_in_both_languages(sqlite_store, tmp_path):
    page = browser(sqlite_store, tmp_path)
    assert run_words.RUNS_EN["no_runs"] in page.get("/runs").text
    assert run_words.RUNS_ES["no_runs"] in page.get("/runs", headers={"Accept-Language": "es"}).text
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "recipe.yaml").write_text("method: dpo")
    assert run_words.RUNS_EN["state_"] in page.get("/runs").text
