"""The run that a new one replaces comes back whole, wherever a kill falls, until the new one can be continued."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest

from prefiere.train import previous


class Killed(BaseException):
    """Nothing of ours catches it: what a kill leaves behind."""


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file of a folder with its bytes, and every subfolder."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def old_run(folder: Path) -> dict[str, bytes | None]:
    for name in ("checkpoints/step-00000004", "model"):
        (folder / name).mkdir(parents=True)
    for name in ("recipe.yaml", "metrics.jsonl", "status.json", "report.html", "model/model.safetensors",
                 "checkpoints/step-00000004/state.json"):  # fmt: skip
        (folder / name).write_text(f"old {name}")
    return contents(folder)


def new_run(folder: Path) -> None:
    """What a new run has written before its first checkpoint; the old one had no samples."""
    (folder / "checkpoints").mkdir()
    for name in ("recipe.yaml", "metrics.jsonl", "samples.jsonl", "environment.json"):
        (folder / name).write_text(f"new {name}")


def dying(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """The process dies at its operation ``after`` on files or folders from now on."""
    left = [after]

    def counted(real: Callable[..., object]) -> Callable[..., object]:
        def operation(*args: object, **kwargs: object) -> object:
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            return real(*args, **kwargs)

        return operation

    for name in ("rename", "unlink", "mkdir", "rmdir"):
        monkeypatch.setattr(Path, name, counted(getattr(Path, name)))
    monkeypatch.setattr(previous, "remove_folder", counted(previous.remove_folder))


@pytest.mark.parametrize("after", range(12))
def test_a_kill_while_the_old_run_moves_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    before = old_run(tmp_path)
    with monkeypatch.context() as m:
        dying(m, after)
        try:
            previous.put_aside(tmp_path)
            finished = True
        except Killed:
            finished = False
    assert finished == (after >= 8), "a folder made, six things moved, the folder renamed"
    previous.put_back(tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("after", range(20))
def test_a_kill_while_it_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    before = old_run(tmp_path)
    previous.put_aside(tmp_path)
    assert contents(tmp_path).keys() == {".previous", *(f".previous/{name}" for name in before)}
    new_run(tmp_path)
    with monkeypatch.context() as m:
        dying(m, after)
        with contextlib.suppress(Killed):
            previous.put_back(tmp_path)
    previous.put_back(tmp_path)
    assert contents(tmp_path) == before


def test_with_a_checkpoint_of_the_new_one_the_old_one_goes(tmp_path: Path) -> None:
    old_run(tmp_path)
    previous.put_aside(tmp_path)
    new_run(tmp_path)
    (tmp_path / "checkpoints" / "step-00000001").mkdir()
    now = {n: c for n, c in contents(tmp_path).items() if not n.startswith(".previous")}
    assert previous.put_back(tmp_path) is False
    assert contents(tmp_path) == now


def test_a_folder_without_a_run_has_nothing_to_put_aside(tmp_path: Path) -> None:
    previous.put_aside(tmp_path)
    assert previous.put_back(tmp_path) is False
    assert not list(tmp_path.iterdir())


def test_a_link_of_that_name_is_no_old_run(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "recipe.yaml").write_text("theirs")
    run = tmp_path / "run"
    run.mkdir()
    (run / ".previous").symlink_to(tmp_path / "elsewhere")
    assert previous.put_back(run) is False
    previous.drop(run)
    assert (tmp_path / "elsewhere" / "recipe.yaml").read_text() == "theirs"
