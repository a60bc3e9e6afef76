"""A model's name that is no folder: the hub is asked once, and the answer says that there is no such folder."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

SRC = Path(__file__).parents[2] / "src"


class Hub(BaseHTTPRequestHandler):
    """Has org/model and org/gated; says of all others that they are not there, and keeps what it was asked."""

    asked: list[str] = []  # noqa: RUF012

    def do_HEAD(self) -> None:
        self.asked.append(self.path)
        there = self.path.startswith("/org/model/")
        self.send_response(200 if there else 403 if "gated" in self.path else 404)
        if there:
            self.send_header("ETag", '"abc"')
            self.send_header("X-Repo-Commit", "a" * 40)
            self.send_header("Content-Length", "2")
        else:
            self.send_header("X-Error-Code", "GatedRepo" if "gated" in self.path else "RepoNotFound")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def endpoint() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Hub.asked.clear()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def asked(
    name: str, tmp_path: Path, endpoint: str, question: str = "why_no_model(name)", **environment: str
) -> list[str]:
    """What is said of a name, and whether the process goes on offline; in a process of its own: the clients read the
    endpoint when they are imported."""
    code = (
        "import sys; from prefiere.asked.hub import *; from huggingface_hub import constants; name = sys.argv[1]; "
        f"print({question}); print(constants.HF_HUB_OFFLINE)"
    )
    env = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": str(SRC)}
    env = {k: v for k, v in env.items() if k != "HF_HUB_OFFLINE"} | environment
    done = subprocess.run([sys.executable, "-c", code, name], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def in_cache(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "hf" / "hub" / f"models--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "snapshots" / "abc" / "config.json").write_text("{}")


def test_a_model_that_is_there_is_asked_for_once(tmp_path: Path, endpoint: str) -> None:
    assert asked("org/model", tmp_path, endpoint) == ["None", "False"]
    assert asked("org/gated", tmp_path, endpoint) == ["None", "False"]
    assert Hub.asked == [f"/org/{name}/resolve/main/config.json" for name in ("model", "gated")]


def test_a_misspelt_folder_is_said_to_be_none_and_what_lies_beside_it(tmp_path: Path, endpoint: str) -> None:
    (tmp_path / "runs" / "first").mkdir(parents=True)
    (tmp_path / "runs" / "second").mkdir()
    said = asked("runs/frist", tmp_path, endpoint)[0]
    assert said.startswith("there is no folder runs/frist here (runs has first, second), and no such model on the hub.")
    assert len(Hub.asked) == 1


@pytest.mark.parametrize("name", ["runs/{x}", "my runs/first"])
def test_a_folder_whose_name_no_model_can_have(tmp_path: Path, endpoint: str, name: str) -> None:
    said = asked(name, tmp_path, endpoint)[0]
    assert said.startswith(f"there is no folder {name} here, and no such model on the hub.")
    offline = asked(name, tmp_path, endpoint, HF_HUB_OFFLINE="1")[0]
    assert offline.startswith(f"there is no folder {name} here, and no model {name} in the hub's cache")
    assert asked(name, tmp_path, endpoint, "commit_of(name)")[0] == "None"
    assert Hub.asked == []


def test_without_a_network_it_is_said_at_once(tmp_path: Path) -> None:
    nobody = "http://127.0.0.1:9"  # the discard port: nobody listens
    said, offline = asked("runs/frist", tmp_path, nobody)
    assert said.startswith("there is no folder runs/frist here, and the hub is out of reach (")
    assert said.endswith("Check the name and the network.")
    assert offline == "False"


def test_without_a_network_the_cache_is_all_there_is(tmp_path: Path) -> None:
    in_cache(tmp_path, "org/base")
    assert asked("org/base", tmp_path, "http://127.0.0.1:9") == ["None", "True"]


def test_data_are_asked_for_once_and_in_the_cache_of_their_own_library(tmp_path: Path, endpoint: str) -> None:
    (tmp_path / "sets").mkdir()
    (tmp_path / "sets" / "pairs.jsonl").touch()
    no, nobody = "why_no_data(name, held={})".format, "http://127.0.0.1:9"
    said = asked("sets/pears", tmp_path, endpoint, no(False))[0]
    assert said.startswith(
        "there is no file or folder sets/pears here (sets has pairs.jsonl), and no such data set on the hub."
    )
    assert Hub.asked == ["/datasets/sets/pears/resolve/main/README.md"]
    said, offline = asked("org/set", tmp_path, nobody, no(False))
    assert said.startswith("there is no file or folder org/set here, and the hub is out of reach (")
    assert offline == "False"
    assert asked("org/set", tmp_path, nobody, no(True)) == ["None", "True"]


def test_offline_by_choice(tmp_path: Path, endpoint: str) -> None:
    in_cache(tmp_path, "org/base")
    assert asked("org/base", tmp_path, endpoint, HF_HUB_OFFLINE="1") == ["None", "True"]
    said = asked("org/model", tmp_path, endpoint, HF_HUB_OFFLINE="1")[0]
    assert "no model org/model in the hub's cache; HF_HUB_OFFLINE forbids to ask the hub." in said
    assert Hub.asked == []
