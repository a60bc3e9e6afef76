"""The commands against a hub on this machine, through the real clients."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

import hub
import runs

CARD = """---
configs:
- config_name: plain
  default: true
  data_files:
  - split: train_prefs
    path: plain/train.jsonl
  - split: test_prefs
    path: plain/test.jsonl
- config_name: other
  data_files: other/*.jsonl
---
"""


@dataclass
class Place:
    """A hub with a model and a data set, and a home of its own for what is downloaded."""

    hub: hub.Hub
    folder: Path
    home: str = "hf"

    def run(self, *words: str, token: bool = False, offline: bool = False) -> subprocess.CompletedProcess[str]:
        """A command of prefiere as somebody would type it."""
        env = {
            **os.environ,
            "HF_ENDPOINT": self.hub.url,
            "HF_HOME": str(self.folder / self.home),
            "OMP_NUM_THREADS": "1",
        }
        env["PYTHONPATH"] = str(Path(__file__).parents[1] / "src")
        env |= {"HF_TOKEN": hub.TOKEN} if token else {}
        env |= dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"), str(int(offline)))
        command = [sys.executable, "-m", "prefiere", *words]
        return subprocess.run(command, capture_output=True, text=True, env=env, cwd=self.folder, check=False)

    def json(self, *words: str, **how: bool) -> dict[str, Any]:
        """What it prints for programs."""
        done = self.run(*words, "--json", **how)
        assert done.returncode == 0, done.stderr
        told: dict[str, Any] = json.loads(done.stdout)
        return told


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("hub")
    model, pairs = runs.model_folder(folder / "model"), runs.pairs_file(folder / "pairs.jsonl").read_text()
    with hub.running() as there:
        there.model("org/tiny", model)
        there.model("org/gated", model, gated=True)
        there.model("org/secret", model, private=True)
        lines = pairs.splitlines(keepends=True)
        files = {"README.md": CARD, "plain/train.jsonl": "".join(lines[:18]), "plain/test.jsonl": "".join(lines[18:]),
                 "other/a.jsonl": lines[0]}  # fmt: skip
        there.put("datasets", "org/pairs", files)
        there.put("datasets", "org/pairs", {**files, "plain/train.jsonl": "".join(lines[:4])}, "v1")
        yield Place(there, folder)


SHORT = ("batch_size=4", "max_steps=2", "sample_steps=0", "eval_size=0")


@pytest.mark.long
def test_what_is_not_there_is_said_in_a_line(place: Place) -> None:
    for data, said in {
        "org/nothing": "there is no file or folder org/nothing here, and no such data set on the hub",
        "org/pairs[nowhere]": "train_prefs, test_prefs",
        "org/pairs@v9": "v9",
    }.items():
        done = place.run("data", data)
        assert done.returncode != 0
        assert said in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
    assert len([path for _, path in place.hub.asked if "org/nothing" in path]) == 1
    without = replace(place, hub=hub.Hub(url="http://127.0.0.1:9"))  # the discard port: nobody listens
    assert "org/other here, and the hub is out of reach" in without.run("data", "org/other").stderr
    known = without.json("data", "org/pairs[train_prefs]")  # downloaded above
    assert any(r.startswith("offline: org/pairs as it was downloaded last") for r in known["read"]["remarks"])


@pytest.mark.long
def test_splits_configurations_and_revisions_are_named(place: Place) -> None:
    def kept(name: str) -> int:
        return int(place.json("data", name)["read"]["kept"])

    assert kept("org/pairs[test_prefs]") == 6
    assert kept("org/pairs[train_prefs]@v1") == 4


@pytest.mark.long
def test_a_run_from_the_hub_then_without_it(place: Place) -> None:
    place = replace(place, home="another")
    given = ("dpo", "--model", "org/tiny", "--data", "org/pairs:plain[train_prefs]@main", *SHORT)
    place.json(*given, "--out", "run")
    account = json.loads((place.folder / "run/data.json").read_text())
    assert account["train"]["read"]["commit"] == place.hub.repositories["datasets", "org/pairs"].sha("main")
    place.hub.asked.clear()
    again = place.json(*given, "--out", "again", offline=True)
    assert not place.hub.asked
    assert again["state"] == "finished"
    one, two = ((place.folder / out / "model/model.safetensors").read_bytes() for out in ("run", "again"))
    assert one == two
    said = json.loads((place.folder / "again/data.json").read_text())["train"]["read"]["remarks"]
    assert said == [
        f"offline: org/pairs:plain as it was downloaded last, commit {account['train']['read']['commit'][:12]}"
    ]
    place.run("data", "org/pairs[train_prefs]@v1")  # from now on, another version is the last
    other = place.run("data", "org/pairs:plain[train_prefs]@main", offline=True)
    assert other.returncode != 0
    assert "only the version that was downloaded last can be read" in other.stderr


@pytest.mark.long
def test_gated_private_and_missing_models(place: Place) -> None:
    for name, said in {
        "org/gated": "org/gated is gated: accept its licence on its page, then run `hf auth login`",
        "org/secret": "org/secret",
        "org/missing": "org/missing",
    }.items():
        done = place.run("sample", name, "--prompts", "pairs.jsonl", "--limit", "1")
        assert done.returncode != 0
        assert said in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
    told = place.json("sample", "org/secret", "--prompts", "pairs.jsonl", "--limit", "1", token=True)
    assert len(told["answers"]) == 1


@pytest.mark.long
def test_a_run_is_uploaded_and_loaded_by_its_name(place: Place) -> None:
    place.json("dpo", "--model", "org/tiny", "--data", "pairs.jsonl", *SHORT, "--lora", "true", "--out", "lora")
    wanted = ("export", "lora", "--prompts", "pairs.jsonl")
    refused = place.run(*wanted, "--out", "not-pushed", "--push", "org/mine")
    assert refused.returncode != 0
    assert "hf auth login" in refused.stderr
    odd = place.run(*wanted, "--out", "odd", "--push", "a/b/c", token=True)
    assert "ORG/NAME" in odd.stderr
    assert not (place.folder / "odd").exists()
    told = place.json(*wanted, "--out", "mine", "--push", "org/mine", token=True)
    assert told["pushed"] == f"{place.hub.url}/org/mine"
    there = place.hub.repositories["models", "org/mine"]
    assert there.private
    assert there.revisions["main"].keys() >= {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    card = there.revisions["main"]["README.md"].decode()
    assert "base_model: org/tiny" in card
    assert str(place.folder) not in card
    answer = place.json("sample", "org/mine", "--prompts", "pairs.jsonl", "--limit", "1", token=True)
    assert answer["answers"] == place.json("sample", "lora", "--prompts", "pairs.jsonl", "--limit", "1")["answers"]


@pytest.mark.long
def test_a_revision_of_a_model_is_the_one_that_is_trained_and_found_again(place: Place) -> None:
    other = runs.model_folder(place.folder / "other-weights", seed=9)
    place.hub.model("org/tiny", other, "v1")
    given = ("dpo", "--data", "pairs.jsonl", *SHORT, "--lora", "true")
    place.json(*given, "--model", "org/tiny@v1", "--out", "named")
    place.json(*given, "--model", str(other), "--out", "local")
    known = json.loads((place.folder / "named/environment.json").read_text())
    assert known["model_commit"] == place.hub.repositories["models", "org/tiny"].sha("v1")
    told = json.loads((place.folder / "named/model/adapter_config.json").read_text())
    assert (told["base_model_name_or_path"], told["revision"]) == ("org/tiny", "v1")
    one, two = ((place.folder / out / "model/adapter_model.safetensors").read_bytes() for out in ("named", "local"))
    assert one == two
    asked = ("--prompts", "pairs.jsonl", "--limit", "1")
    assert place.json("sample", "named", *asked)["answers"] == place.json("sample", "local", *asked)["answers"]
    done = place.run(*given, "--model", "org/tiny@v7", "--out", "unknown-revision")
    assert "org/tiny has no revision v7 on the hub" in done.stderr
    assert not (place.folder / "unknown-revision").exists()
