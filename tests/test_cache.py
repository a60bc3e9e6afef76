"""Entries of the cache: whole, or made anew; one maker at a time; a key of all that counts and nothing else."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prefiere.cache import cache_folder, entry


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFIERE_CACHE", str(tmp_path / "cache"))


def kept(make: Callable[[Path], dict[str, Any]], key: dict[str, Any] | None = None) -> tuple[Path, dict[str, Any]]:
    """The entry of this key and what its making said of it; made where it is not there."""
    with entry("x", key or {}) as found:
        if not found.whole:
            with found.making() as (folder, about):
                about |= make(folder)
    return found.folder, found.about


class Maker:
    """Writes a file, and counts how often it was asked to."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, folder: Path) -> dict[str, Any]:
        self.times += 1
        (folder / "a.bin").write_bytes(b"whole" * 1000)
        return {"n": self.times}


def test_an_entry_is_made_once_for_a_key() -> None:
    make = Maker()
    first, about = kept(make, {"a": 1})
    again, same = kept(make, {"a": 1})
    other, _ = kept(make, {"a": 2})
    assert (first, about) == (again, same)
    assert first != other
    assert make.times == 2
    assert (first / "a.bin").read_bytes() == b"whole" * 1000


@pytest.mark.parametrize("damage", ["bit", "cut", "file", "manifest", "garbage", "foreign"])
def test_a_damaged_entry_is_made_anew(damage: str) -> None:
    make = Maker()
    folder, _ = kept(make)
    data, manifest = folder / "a.bin", folder / "manifest.json"
    if damage == "bit":
        data.write_bytes(b"Whole" + data.read_bytes()[5:])
    elif damage == "cut":
        data.write_bytes(data.read_bytes()[:-1])
    elif damage == "file":
        data.unlink()
    elif damage == "manifest":
        manifest.unlink()
    elif damage == "garbage":
        manifest.write_text(manifest.read_text()[:-3])
    else:
        manifest.write_text('{"files": []}')
    _, about = kept(make)
    assert about == {"n": 2}
    assert data.read_bytes() == b"whole" * 1000
    assert kept(make)[1] == {"n": 2}


def test_a_making_that_fails_leaves_nothing() -> None:
    def fails(folder: Path) -> dict[str, Any]:
        (folder / "a.bin").write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kept(fails)
    assert [p.suffix for p in cache_folder().iterdir()] == [".lock"]


def _slow(folder: Path) -> dict[str, Any]:
    import time

    time.sleep(0.3)
    with (cache_folder() / "made").open("a") as f:
        f.write("x")
    (folder / "a.bin").write_bytes(b"1")
    return {}


def _ask(_: int) -> bytes:
    return (kept(_slow)[0] / "a.bin").read_bytes()


def test_processes_wait_for_the_one_that_makes_it() -> None:
    with multiprocessing.get_context("fork").Pool(3) as pool:
        assert pool.map(_ask, range(3), chunksize=1) == [b"1"] * 3
    assert (cache_folder() / "made").read_text() == "x"


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PREFIERE_CACHE", str(tmp_path / "file" / "under"))
    with pytest.raises(ValueError, match=r"cannot write to .*under .*set PREFIERE_CACHE"):
        kept(Maker())


def test_it_lies_beside_the_caches_of_hugging_face(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.constants import HF_HOME

    monkeypatch.delenv("PREFIERE_CACHE")
    assert cache_folder() == Path(HF_HOME) / "prefiere"


def test_a_full_disk_is_the_caches_and_a_file_that_cannot_be_read_is_not(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PREFIERE_CACHE", str(tmp_path / "cache"))
    for error, told in (
        (
            OSError(28, "No space left on device"),
            r"cannot write to .*cache \(No space left on device\): set PREFIERE_CACHE",
        ),
        (PermissionError(13, "Permission denied", str(tmp_path / "cache" / "x")), r"cannot write to .*cache"),
    ):
        with pytest.raises(ValueError, match=told), entry("tokens", {"a": 1}) as kept, kept.making():
            raise error
    with pytest.raises(PermissionError), entry("tokens", {"a": 1}) as kept, kept.making():
        raise PermissionError(13, "Permission denied", "/data/pairs.jsonl")
    assert not [p for p in (tmp_path / "cache").iterdir() if p.suffix != ".lock"]


def test_a_drive_that_cannot_be_read_is_named(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PREFIERE_CACHE", str(tmp_path))
    kept(Maker())

    def gone(_: Path) -> str:
        raise OSError(116, "Stale file handle")  # as reads of a network drive fail: without a name

    monkeypatch.setattr("prefiere.files.hash_of", gone)
    with pytest.raises(ValueError, match=rf"cannot read {tmp_path}/.* \(Stale file handle\): set PREFIERE_CACHE"):
        kept(Maker())


def test_who_waits_for_another_process_is_told(tmp_path, monkeypatch, capsys) -> None:
    import threading

    monkeypatch.setenv("PREFIERE_CACHE", str(tmp_path))
    monkeypatch.setattr("prefiere.cache._SILENT", 0.05)
    held, leave = threading.Event(), threading.Event()

    def other() -> None:
        with entry("tokens", {"a": 1}):
            held.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    thread.start()
    held.wait(10)
    threading.Timer(0.3, leave.set).start()
    with entry("tokens", {"a": 1}):
        pass
    thread.join()
    assert "waiting for another process that makes the same tokens" in capsys.readouterr().err
