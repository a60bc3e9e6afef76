"""Files and folders that are written whole or not at all, and text in which no character hides."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from prefiere import files
from prefiere.files import atomic, atomic_folder, clean, remove_folder, visible, write_text

NAME = "0123456789abcdef"


class Killed(BaseException):
    """Stands for a kill where it strikes."""


def contents(folder: Path) -> dict[str, str]:
    """The text of every file under a folder, hidden ones included."""
    return {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


def killed_in(writer: AbstractContextManager[Path], name: str = "") -> None:
    """Begin to write, and be killed on the way."""
    with writer as temporary:
        (temporary / name if name else temporary).write_text("half")
        raise Killed


def test_a_file_is_replaced_whole_or_stays_what_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(Killed):
        killed_in(atomic(path))
    assert contents(tmp_path) == {"a.txt": "old"}
    write_text(path, "new")
    assert contents(tmp_path) == {"a.txt": "new"}


def test_a_folder_is_replaced_whole_or_stays_what_it_was(tmp_path: Path) -> None:
    path = tmp_path / "model"
    with atomic_folder(path) as temporary:
        (temporary / "inner").mkdir()
        (temporary / "inner" / "a").write_text("old")
    with pytest.raises(Killed):
        killed_in(atomic_folder(path), "b")
    assert contents(tmp_path) == {"model/inner/a": "old"}
    with atomic_folder(path) as temporary:
        (temporary / "b").write_text("new")
    assert contents(tmp_path) == {"model/b": "new"}
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_nobody_can_foresee_the_temporary_name(tmp_path: Path) -> None:
    """A name that can be foreseen lets whoever may write there put a link under it, and the writer follow that."""
    seen = set()
    for _ in range(20):
        with atomic(tmp_path / "a") as temporary:
            seen.add(temporary.name)
        with atomic_folder(tmp_path / "b") as temporary:
            seen.add(temporary.name)
    assert len(seen) == 40


def test_what_is_written_has_the_permissions_of_ordinary_files(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "")
    with atomic_folder(tmp_path / "b"):
        pass
    (tmp_path / "c").write_text("")
    (tmp_path / "d").mkdir()
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "c").stat().st_mode
    assert (tmp_path / "b").stat().st_mode == (tmp_path / "d").stat().st_mode


def test_everything_is_synced_before_it_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def synced(descriptor: int) -> None:
        done.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def renamed(path: Path, target: Path) -> Path:
        done.append(f"rename to {target.name}")
        return rename(path, target)

    if not Path("/proc/self/fd").exists():
        pytest.skip("no /proc")
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "rename", renamed)
    with atomic_folder(tmp_path / "model") as temporary:
        (temporary / "inner").mkdir()
        (temporary / "inner" / "a").write_text("x")
        (temporary / "b").write_text("x")
    at = done.index("rename to model")
    assert set(done[:at]) == {"a", "b", "inner", temporary.name}
    assert done[at + 1 :] == [tmp_path.name]


@pytest.mark.parametrize("fatal", range(3))
def test_a_kill_at_any_rename_of_a_replacement_loses_nothing(tmp_path: Path, fatal: int) -> None:
    """The old one, or the new one, is there afterwards, whole, and nothing else is."""
    path = tmp_path / "model"
    with atomic_folder(path) as temporary:
        (temporary / "a").write_text("old")
    script = f"""
import os, signal
from pathlib import Path
from prefiere.files import atomic_folder
rename, done = Path.rename, []
def fatal(path, target):
    if len(done) == {fatal}:
        os.kill(os.getpid(), signal.SIGKILL)
    done.append(rename(path, target))
Path.rename = fatal
with atomic_folder(Path({str(path)!r})) as temporary:
    (temporary / "a").write_text("new")
"""
    ended = subprocess.run([sys.executable, "-c", script], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert [p for p in tmp_path.iterdir() if p.name[0] == "."], "it was not killed on the way"
    clean(tmp_path)
    assert contents(tmp_path) == {"model/a": "old" if fatal < 2 else "new"}
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_rename_that_fails_puts_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, rename = tmp_path / "model", Path.rename
    with atomic_folder(path) as temporary:
        (temporary / "a").write_text("old")

    def fails(one: Path, target: Path) -> Path:
        if one.suffix == ".tmp" and target == path:
            raise OSError(28, "No space left on device")
        return rename(one, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(OSError, match="No space left"), atomic_folder(path):
        pass
    assert contents(tmp_path) == {"model/a": "old"}


def test_the_next_writer_cleans_what_a_killed_one_left_and_nothing_else(tmp_path: Path) -> None:
    """Leftovers of the same name only: those of another may be what another process is writing just now."""
    others = [".a.txt.tmp", f"a.txt.{NAME}.tmp", f".b.txt.{NAME}.tmp", ".a.txt.swp", f".a.txt.{NAME[:-1]}g.tmp"]
    for name in (*others, f".a.txt.{NAME}.tmp"):
        (tmp_path / name).write_text("x")
    write_text(tmp_path / "a.txt", "new")
    assert contents(tmp_path) == {"a.txt": "new"} | dict.fromkeys(others, "x")


def test_a_folder_whose_deletion_is_killed_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "step"
    path.mkdir()
    (path / "a").write_text("x")

    def killed(folder: Path, **options: object) -> None:
        raise Killed

    monkeypatch.setattr(files.shutil, "rmtree", killed)
    with pytest.raises(Killed):
        remove_folder(path)
    monkeypatch.undo()
    assert not path.exists()
    clean(tmp_path)
    assert not list(tmp_path.iterdir())


def test_cleaning_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a").write_text("x")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / f".model.{NAME}.tmp").symlink_to(tmp_path / "mine")
    clean(tmp_path / "run")
    assert not list((tmp_path / "run").iterdir())
    assert contents(tmp_path) == {"mine/a": "x"}


def test_visible_keeps_ordinary_text() -> None:
    text = "¿Qué es un perro?\n\tעברית عربي 狗 👩‍👧"
    assert visible(text) == text


def test_visible_spells_out_what_hides_or_reorders() -> None:
    """By Unicode's own tables: controls (but tab and newline), bidirectional controls, separators, surrogates, BOM."""
    import unicodedata

    marked = {0x61C, 0x200E, 0x200F, 0xFEFF, *range(0x202A, 0x202F), *range(0x2066, 0x206A)}
    for code in range(0x11000):
        hides = unicodedata.category(chr(code)) in ("Cc", "Zl", "Zp", "Cs") and chr(code) not in "\n\t"
        expected = f"⟨U+{code:04X}⟩" if hides or code in marked else chr(code)
        assert visible(chr(code)) == expected, hex(code)
