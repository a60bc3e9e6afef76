"""A power cut forgets what was not synced. Wherever it falls, the resumed run equals an uninterrupted one.

The disk of these tests remembers a file's contents as they were when it was last synced, and a folder's names as they
were when the folder was. All else is lost: names point to what they pointed to before, contents are zeros.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

import runs
from prefiere import files
from prefiere.console import Display
from prefiere.launch import launch
from prefiere.run import Run
from prefiere.settings import DPO
from prefiere.train import logs, previous

QUIET = Display(quiet=True)


class PowerCut(BaseException):
    """Nothing of ours catches it."""


class Disk:
    """What is on the disk of ``root``, by inode. The power goes before sync number ``cut``; None: never."""

    def __init__(self, root: Path, cut: int | None) -> None:
        self.root, self.cut, self.synced = root, cut, 0
        self.contents: dict[int, bytes] = {}
        self.names: dict[int, dict[str, int]] = {}
        self._held: list[int] = []  # descriptors: an inode that is held is not given to another file

    def _inode(self, path: Path) -> int:
        self._held.append(os.open(path, os.O_RDONLY))
        return os.fstat(self._held[-1]).st_ino

    def sync(self, path: Path) -> None:
        if not path.resolve().is_relative_to(self.root.resolve()):
            return
        if self.synced == self.cut:
            raise PowerCut
        self.synced += 1
        if path.is_dir():
            self.names[self._inode(path)] = {p.name: self._inode(p) for p in path.iterdir() if not p.is_symlink()}
            for p in path.iterdir():
                if p.is_dir():
                    self.names.setdefault(self._inode(p), {})
        else:
            self.contents[self._inode(path)] = path.read_bytes()

    def after_the_cut(self, to: Path) -> None:
        """Write what the disk holds to a new folder."""
        to.mkdir()
        self._write(self._inode(self.root), to)
        for descriptor in self._held:
            os.close(descriptor)

    def _write(self, inode: int, to: Path) -> None:
        for name, child in self.names.get(inode, {}).items():
            if child in self.names:
                (to / name).mkdir()
                self._write(child, to / name)
            else:
                (to / name).write_bytes(self.contents.get(child, b"\0" * 700))


def settings(tmp: Path, base: Path, out: Path) -> DPO:
    given = {"model": str(base / "model"), "data": str(base / "pairs.jsonl"), "out": str(out)}
    found = runs.settings(tmp, max_steps=4, save_steps=1, save_total_limit=2, **given)
    assert isinstance(found, DPO)
    return found


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A folder with the whole run, and how often it synced."""
    folder = tmp_path_factory.mktemp("power")
    disk = Disk(folder / "whole", None)
    with pytest.MonkeyPatch.context() as m:
        m.setattr(files, "sync", disk.sync)
        m.setattr(logs, "sync", disk.sync)
        launch(runs.settings(folder, max_steps=4, save_steps=1, save_total_limit=2, out=str(folder / "whole")),
               display=QUIET)  # fmt: skip
    disk.after_the_cut(folder / "durable")
    assert disk.synced > 60
    return folder, disk.synced


def cut_and_go_on(tmp_path: Path, base: Path, at: int) -> None:
    disk = Disk(tmp_path / "run", at)
    with pytest.MonkeyPatch.context() as m:
        m.setattr(files, "sync", disk.sync)
        m.setattr(logs, "sync", disk.sync)
        with pytest.raises(PowerCut):
            launch(settings(tmp_path, base, tmp_path / "run"), display=QUIET)
    disk.after_the_cut(tmp_path / "after")
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "after").rename(tmp_path / "run")
    runs.assert_same_run(
        Run.open(base / "whole"), launch(settings(tmp_path, base, tmp_path / "run"), display=QUIET).run
    )


def test_a_finished_run_is_on_the_disk(uninterrupted: tuple[Path, int]) -> None:
    """All that it wrote, but for the report's like that nothing depends on."""
    folder, _ = uninterrupted
    runs.assert_same_run(Run.open(folder / "whole"), Run.open(folder / "durable"))
    assert Run.open(folder / "durable").status == Run.open(folder / "whole").status


@pytest.mark.parametrize("share", [0.05, 0.35, 0.6, 0.9])
def test_a_power_cut_loses_nothing_that_counts(tmp_path: Path, uninterrupted: tuple[Path, int], share: float) -> None:
    base, syncs = uninterrupted
    cut_and_go_on(tmp_path, base, int(share * syncs))


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3])
def test_a_power_cut_in_a_fresh_start_leaves_the_old_run_or_the_new_one(
    tmp_path: Path, uninterrupted: tuple[Path, int], share: float
) -> None:
    base, syncs = uninterrupted
    shutil.copytree(base / "whole", tmp_path / "run")
    disk = Disk(tmp_path / "run", None)
    for path in sorted((tmp_path / "run").rglob("*"), reverse=True):
        disk.sync(path)
    disk.sync(tmp_path / "run")
    disk.cut = disk.synced + int(share * syncs)
    new = settings(tmp_path, base, tmp_path / "run").model_copy(update={"beta": 0.7})
    with pytest.MonkeyPatch.context() as m:
        for module in (files, logs, previous):
            m.setattr(module, "sync", disk.sync)
        with pytest.raises(PowerCut):
            launch(new, fresh=True, display=QUIET)
    disk.after_the_cut(tmp_path / "after")
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "after").rename(tmp_path / "run")
    if any(p.name == ".previous" for p in (tmp_path / "run").iterdir()) or Run(tmp_path / "run").recipe["beta"] != 0.7:
        assert launch(settings(tmp_path, base, tmp_path / "run"), display=QUIET).already
        runs.assert_same_run(Run.open(base / "whole"), Run.open(tmp_path / "run"))
    else:
        assert any((tmp_path / "run" / "checkpoints").glob("step-*")), "the old run went before the new one had any"


@pytest.mark.slow
def test_a_power_cut_at_every_sync(tmp_path: Path, uninterrupted: tuple[Path, int]) -> None:
    base, syncs = uninterrupted
    for at in range(syncs):
        (tmp_path / str(at)).mkdir()
        cut_and_go_on(tmp_path / str(at), base, at)
        shutil.rmtree(tmp_path / str(at))
