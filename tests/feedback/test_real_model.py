"""The whole journey with a real model: it answers, somebody votes, it learns, and is compared with its former self."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from feedback.test_votes import Desk
from prefiere.feedback.leases import Nothing
from prefiere.feedback.page import desk
from prefiere.feedback.store import Store
from prefiere.feedback.votes import Said

MAKE = Path(__file__).parents[3] / "shared" / "real" / "make"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not MAKE.is_file(), reason="../shared/real/make, which writes a real model, is not here"),
]
ASKED = ("What is a dog?", "Why is the sky blue?", "Name a fruit.", "What is rain?", "What is the moon?",
         "How do birds fly?", "What is bread?", "What is a river?", "Why do we sleep?", "What is snow?")  # fmt: skip
LATER = ("What is a cat?", "Why is grass green?", "Name a tree.", "What is wind?", "What is the sun?",
         "How do fish swim?", "What is cheese?", "What is a lake?", "Why do we eat?", "What is ice?")  # fmt: skip


def command(*arguments: str | Path) -> dict:
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "prefiere", *map(str, arguments), "--json"], capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "src")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    print(f"{arguments[0]}: {time.monotonic() - began:.0f} s")
    return json.loads(done.stdout)


def prefer_the_shorter(where: Path) -> int:
    """Vote on all that waits as somebody who likes it short."""
    store = Store.open(where)
    ana, given = Desk(store, "ana"), 0
    while True:
        held = ana.look(time.time())
        if isinstance(held, Nothing):
            store.close()
            return given
        with store.read() as c:
            texts = desk.texts_of(c, held)
        a, b = len(texts["a"]), len(texts["b"])
        score = -2 if a < b else 2 if b < a else 0
        ana.say(held, held.seq, Said(score=-score if held.swapped else score, ms=4000, input="key"), time.time())
        given += 1


def test_votes_change_a_real_model(tmp_path):
    model, votes, run = tmp_path / "model", tmp_path / "votes.db", tmp_path / "run"
    subprocess.run([MAKE, sys.executable, model], check=True)
    for name, prompts in (("asked.txt", ASKED), ("later.txt", LATER)):
        (tmp_path / name).write_text("\n".join(prompts) + "\n")
    made = command("collect", votes, "--model", model, "--prompts", tmp_path / "asked.txt", "--max-new-tokens", "48")
    assert made["counts"]["pairs queued"] >= 8
    assert prefer_the_shorter(votes) == made["counts"]["pairs queued"]
    command(
        "dpo", "--model", model, "--data", votes, "--out", run, "lora=true", "eval_size=0", "batch_size=10",
        "max_steps=8", "learning_rate=2e-4", "sample_prompts=2", "max_new_tokens=48",
    )  # fmt: skip
    command("compare", model, run, "--ask", votes, "--prompts", tmp_path / "later.txt", "--max-new-tokens", "48")
    compared = prefer_the_shorter(votes)
    assert compared >= 5
    command("report", run, "--ask", votes, "--out", run / "report.html")
    blind = json.loads((run / "blind.json").read_text())
    print({k: blind[k] for k in ("won", "lost", "tied", "share", "low", "high", "p")})
    assert blind["won"] + blind["lost"] + blind["tied"] == compared
    assert json.loads((run / "data.json").read_text())["train"]["votes"]["votes"] == made["counts"]["pairs queued"]
    assert "Who said so" in (run / "report.html").read_text()
