"""``prefiere demo --ask`` by a scripted annotator in a real browser: ten votes, training, blind before and after."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from browser import CHROMIUM, MISSING
from feedback.test_browser import page_at, playwright, press
from prefiere.demo import judge
from prefiere.feedback import schema
from prefiere.feedback.store import Store

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason=MISSING),
]


def test_ten_votes_make_the_model_what_the_annotator_prefers(chromium, tmp_path, request):
    source = str(Path(__file__).parents[2] / "src")
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "prefiere", "demo", "--ask", "--out", str(tmp_path), "--json"],
        env=os.environ | {"PYTHONPATH": source}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    said: list[str] = []

    def listen() -> None:
        for line in iter(process.stderr.readline, ""):
            print(f"{time.monotonic() - began:6.1f} s  {line.rstrip()}")
            said.append(line)

    reader = threading.Thread(target=listen)
    reader.start()
    request.addfinalizer(process.terminate)  # it would ask for as long as nobody answers
    address = None
    while address is None and process.poll() is None:
        found = re.search(r"http://localhost:\d+/ask", "".join(said))
        address = found[0] if found else None
        time.sleep(0.2)
    assert address, "".join(said)
    with page_at(chromium, address) as page:
        assert page.inner_text('[data-key="1"] span') == "¿Qué es un perro?"
        page.wait_for_timeout(330)
        page.keyboard.press("1")
        page.wait_for_selector("#vote, .problem", timeout=120_000)  # a busy machine loads the model slowly
        page.goto(address.removesuffix("/ask"))
        while process.poll() is None:
            if page.query_selector("#vote"):
                left, right = (e.inner_text() for e in page.query_selector_all(".answer .said"))
                a, b = judge.encyclopedic(["", ""], [left, right])
                press(page, "2" if a > b else "6" if b > a else "t")
            else:
                time.sleep(0.5)
                try:
                    page.reload()
                except playwright.Error:  # the page ends with the demo
                    break
    out = process.stdout.read()
    process.wait(60)
    reader.join()
    assert process.returncode == 0, "".join(said)
    result = json.loads(out)
    print(result, f"{time.monotonic() - began:.0f} s")
    assert result["won"] > result["lost"]
    assert result["won"] + result["lost"] + result["tied"] >= 10
    store = Store.open(result["votes"])
    with store.read() as c:
        assert c.execute(schema.snapshot.select()).first() is not None
        assert [r.state for r in c.execute(schema.round_.select())] == ["closed"]
    store.close()
    files = json.loads((Path(result["run"]) / "data.json").read_text())
    assert "votes.db#1@" in json.dumps(files)
    assert files["train"]["votes"]["people"][0]["name"] == "local"
    assert "Before and after, blind" in (Path(result["run"]) / "report.html").read_text()
