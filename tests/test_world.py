"""World: what several processes make of a sum, a list, an object, against the same worked out by hand; trackers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from typer.testing import CliRunner

import runs
from prefiere.cli.main import app
from prefiere.models.shard.spread import mesh_of
from prefiere.processes.errors import PeerError
from prefiere.train.interrupt import Ending, Interrupt
from prefiere.world import World, leave_group


def told() -> dict[str, object]:
    """What every process says of its world."""
    world = World.open(cpu=True)
    mine = torch.tensor([1.5, float(world.rank)], dtype=torch.float64)
    total = world.sum(mine)
    if not world.main:
        time.sleep(0.5)  # the others are late: the first process must wait for them
        (Path(os.environ["WHERE"]) / f"late-{world.rank}").touch()
    world.barrier()
    late = sorted(p.name for p in Path(os.environ["WHERE"]).glob("late-*"))
    world.finish_trackers()  # and the group stands as before
    return {
        "rank": world.rank, "size": world.size, "main": world.main, "device": world.device.type, "late": late,
        "sum": total.tolist(), "mine": mine.tolist(), "dtype": str(total.dtype),
        "gathered": world.gather([f"{world.rank}{i}" for i in range(world.rank + 1)]),
        "told": world.broadcast({"from": world.rank}),
    }  # fmt: skip


def kept_waiting() -> None:
    """The first process waits for the second, which lives and does something else, among all and among the nodes of a
    hybrid run; it writes down what each raises, and why it then fails."""
    os.environ["PREFIERE_TIMEOUT"] = "10"
    world = World.open(cpu=True)
    nodes = mesh_of(world.device, 2, 2, "hybrid").get_group("replicate")
    world.barrier()
    if not world.main:
        time.sleep(600)
    for wait in (lambda: dist.all_reduce(torch.ones(1), group=nodes), lambda: world.sum(torch.ones(1))):
        with pytest.raises(RuntimeError, match=r"(?i)timed? ?out") as e:
            wait()
    (Path(os.environ["WHERE"]) / "why").write_text(str(world.failed(e.value)))
    os._exit(3)


def in_processes(tmp_path: Path, count: int, *words: str) -> list[dict[str, object]]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "WHERE": str(tmp_path)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count), __file__]
    done = subprocess.run([*command, *words], env=env, capture_output=True, text=True, timeout=150, check=False)
    assert (done.returncode == 0) == (not words), done.stderr[-3000:]
    return [] if words else [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(count)]


@pytest.mark.long
def test_two_processes_know_of_each_other(tmp_path: Path) -> None:
    found = in_processes(tmp_path, 2)
    assert [(f["rank"], f["size"], f["main"], f["device"]) for f in found] == [
        (0, 2, True, "cpu"),
        (1, 2, False, "cpu"),
    ]
    for rank, f in enumerate(found):
        assert f["sum"] == [3.0, 1.0]
        assert f["dtype"] == "torch.float64"
        assert f["mine"] == [1.5, rank], "what a process gives to a sum stays as it was"
        assert f["gathered"] == ["00", "10", "11"]
        assert f["told"] == {"from": 0}
        assert f["late"] == ["late-1"]


@pytest.mark.long
def test_nobody_waits_longer_than_asked_for_a_process_that_lives(tmp_path: Path) -> None:
    """Groups have timeouts of their own, of 30 minutes where nobody sets them."""
    in_processes(tmp_path, 2, "waits")
    why = (tmp_path / "why").read_text()
    assert why.startswith("another process lives, and had more than 10 seconds to do"), why
    assert "set PREFIERE_TIMEOUT to more seconds" in why


def test_one_process_is_a_world() -> None:
    world = World.open(cpu=True)
    value = torch.ones(2)
    assert (world.rank, world.size, world.main) == (0, 1, True)
    assert world.sum(value) is value
    assert world.gather([1, 2]) == [1, 2]
    assert world.broadcast("x") == "x"
    world.barrier()


class Asked:
    """A heartbeat that knows who is missing."""

    def __init__(self) -> None:
        self.missing = PeerError("process 1 is not heard of any more")

    def cause(self) -> ValueError:
        return self.missing

    def stop(self, error: BaseException) -> None:
        self.told = error


@pytest.mark.parametrize("broke", [True, False])
def test_an_interrupt_over_a_broken_connection_is_no_wish_to_stop(broke) -> None:
    """The launcher sends it to every process when one is gone, and it comes while this one is failing already."""

    def fails() -> None:
        try:
            with Interrupt(print):
                if broke:
                    raise RuntimeError("Connection closed by peer")
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    world = World.open(cpu=True)
    heart = world._heart = Asked()  # type: ignore[assignment]
    with Ending(), pytest.raises(KeyboardInterrupt) as e:
        fails()
    assert world.failed(e.value) is heart.told is (heart.missing if broke else e.value)


def test_a_tracker_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match="report_to: excel is not installed"):
        World.open(report_to=["excel"])


def test_a_command_leaves_its_group_of_processes(tmp_path) -> None:
    """A group of one is left by the command itself; without a group there is nothing to leave."""
    leave_group()
    s = runs.settings(tmp_path, max_steps=1)
    given = [f"{k}={v}" for k, v in s.model_dump(exclude_unset=True).items() if k != "method"]
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    done = CliRunner().invoke(app, ["dpo", *given])
    assert done.exit_code == 0, done.output
    assert not dist.is_initialized()


def _in_a_process_group() -> None:
    if sys.argv[1:]:
        kept_waiting()
    found = told()
    (Path(os.environ["WHERE"]) / f"{found['rank']}.json").write_text(json.dumps(found))
    leave_group()


if __name__ == "__main__":
    _in_a_process_group()
