"""The server as a process: killed again and again while many people vote, it loses nothing and doubles nothing."""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx2
import pytest

from feedback.conftest import fill, rows
from feedback.test_votes import valid
from prefiere.feedback import people, schema
from prefiere.feedback.page.desk import CONSENT
from prefiere.feedback.store import Store


class Server:
    """``prefiere serve`` in a process of its own."""

    def __init__(self, store: str, *options: str, port: int | None = None):
        if port is None:
            with socket.socket() as s:
                s.bind(("127.0.0.1", 0))
                port = s.getsockname()[1]
        self.store, self.options, self.port = store, options, port
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        source = str(Path(__file__).parents[2] / "src")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "prefiere", "serve", self.store, "--port", str(self.port), *self.options],
            env=os.environ | {"PYTHONPATH": source}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        for _ in range(600):
            if self.process.poll() is not None:
                raise AssertionError(self.process.stdout.read() if self.process.stdout else "")
            try:
                httpx2.get(f"{self.url}/health", timeout=2)
                return
            except httpx2.TransportError:
                time.sleep(0.1)
        raise AssertionError("the server did not come up")

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> str:
        self.process.send_signal(signal.SIGINT)
        return self.process.communicate(timeout=120)[0]


def annotator(url: str, token: str, votes: int, sent: list[tuple[str, int, int]], took: list[float], seed: int) -> None:
    """Vote until so many are acknowledged or nothing is left, sending again whatever got no answer."""
    rng = random.Random(seed)
    cookies = {"prefiere": token}

    def ask(method: str, path: str, **more: object) -> httpx2.Response:
        for _ in range(600):
            try:
                answer = browser.request(method, url + path, **more)  # type: ignore[arg-type]
                if answer.status_code != 503:
                    return answer
            except httpx2.TransportError:
                pass
            time.sleep(0.1)
        raise AssertionError("no answer in a minute")

    with httpx2.Client(cookies=cookies, timeout=20) as browser:
        done = 0
        while done < votes:
            page = ask("GET", "/").text
            form = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', page))
            if "lease" not in form:
                if "all_done" in page or "Thank you" in page:
                    return
                time.sleep(0.2)
                continue
            score = rng.randint(-3, 3)
            began = time.monotonic()
            answer = ask("POST", "/vote", data=form | {"score": str(score)}, headers={"X-Part": "1"})
            took.append(time.monotonic() - began)
            assert answer.status_code == 200, answer.text
            sent.append((form["lease"], int(form["seq"]), score))
            done += 1


def storm(where: str, *, who: int, votes: int, kills: int, overlap: int) -> tuple[int, float, list[float]]:
    """Many people vote while the server is killed; checks that what was acknowledged is there once. Votes, seconds."""
    store = Store.open(where, create=True)
    fill(store, who * votes // overlap + 10 * who, overlap=overlap)  # nobody waits for what others have left open
    tokens = []
    with store.write() as c:
        for i in range(who):
            person = people.add(c, f"p{i}")
            people.consent(c, person, CONSENT, "en")
            tokens.append(people.new_token(c, person))
    server = Server(where, "--token")
    sent: list[list[tuple[str, int, int]]] = [[] for _ in range(who)]
    took: list[float] = []
    try:
        began = time.monotonic()
        threads = [
            threading.Thread(target=annotator, args=(server.url, t, votes, sent[i], took, i))
            for i, t in enumerate(tokens)
        ]
        [t.start() for t in threads]
        rng = random.Random(0)
        for n in range(1, kills + 1):
            while sum(map(len, sent)) < n * who * votes // (kills + 1) and any(t.is_alive() for t in threads):
                time.sleep(0.02)
            time.sleep(rng.random() * 0.1)
            server.kill()
            server.start()
        [t.join() for t in threads]
        seconds = time.monotonic() - began
    finally:
        server.kill()
    everything = [s for of in sent for s in of]
    kept = {(e["lease_id"], e["seq"]): e["score"] for e in rows(store, schema.event)}
    assert len(everything) == len(set(everything)) == who * votes
    assert all(kept.get((lease, seq)) == score for lease, seq, score in everything)  # lost: none
    in_force = valid(store)
    assert len(in_force) == len({(v.pair_id, v.person_id) for v in in_force}) == len(everything)  # doubled: none
    assert all(p["overlap"] == overlap for p in rows(store, schema.pair))  # over their overlap: none
    store.close()
    return len(everything), seconds, sorted(took)


@pytest.mark.long
def test_votes_survive_a_killed_server(where):
    storm(where, who=4, votes=6, kills=1, overlap=2)


@pytest.mark.slow
def test_ten_thousand_votes_of_twenty_people_survive_ten_kills(where, capsys):
    n, seconds, took = storm(where, who=20, votes=500, kills=10, overlap=2)
    with capsys.disabled():
        p50, p95 = took[len(took) // 2], took[int(0.95 * len(took))]
        rate = f"{n / seconds:.0f}/s, p50 {p50 * 1e3:.0f} ms, p95 {p95 * 1e3:.0f} ms"
        print(f"\n{where[:10]}: {n} votes, {rate}")


@pytest.mark.long
def test_links_and_addresses_are_said_once(tmp_path):
    where = str(tmp_path / "votes.db")
    server = Server(where, "--token", "--host", "127.0.0.1")
    said = server.stop()
    link = re.search(r"shown once: (http\S+)", said)
    assert link
    again = Server(where, "--token", port=server.port)
    try:
        with httpx2.Client(follow_redirects=True) as browser:
            assert browser.get(link[1].replace("localhost", "127.0.0.1")).status_code == 200
        taken = subprocess.run(
            [sys.executable, "-m", "prefiere", "serve", where, "--port", str(again.port)],
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "src")}, capture_output=True, text=True,
        )  # fmt: skip
        assert taken.returncode == 2
        assert "Choose another --port" in taken.stderr
        assert taken.stderr.count("\n") == 1
    finally:
        assert "shown once" not in again.stop()
