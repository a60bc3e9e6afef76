"""A process that is gone or stuck is named: against others that a test plays, and with two real ones."""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.distributed as dist

import runs
from prefiere.processes.errors import PeerError, SaidOnce
from prefiere.processes.heartbeat import Heartbeat


class Played:
    """Two processes of a run in one: each with a heartbeat of its own on one store, and what ended each."""

    def __init__(self, patience: float):
        store, self.ended = dist.HashStore(), (queue.Queue[ValueError](), queue.Queue[ValueError]())
        self.hearts = [Heartbeat(store, n, 2, patience, end=self.ended[n].put) for n in (0, 1)]

    def silence(self, n: int) -> None:
        """As SIGSTOP or SIGKILL do: it says nothing more, not even why."""
        self.hearts[n]._over.set()
        self.hearts[n]._thread.join()  # a beat may be on its way


@pytest.fixture
def played() -> Iterator[Played]:
    both = Played(patience=1.0)
    yield both
    for heart in both.hearts:
        heart.stop()


def test_a_silent_process_is_named_by_the_first(played) -> None:
    played.silence(1)
    error = played.ended[0].get(timeout=30)
    assert isinstance(error, PeerError)
    assert f"process 1 (pid {os.getpid()} on {socket.gethostname()})" in str(error)
    assert "the same torchrun command again continues the run" in str(error)


def test_who_is_asked_to_end_names_a_silent_one_soon() -> None:
    """Ten minutes without a word are no loss yet; the launcher kills everybody after half one."""
    both = Played(patience=600)
    both.hearts[0].pause = 0.02
    both.silence(1)
    both.hearts[0].hurry()
    assert isinstance(both.ended[0].get(timeout=30), PeerError)
    both.hearts[0].stop()


def test_a_silent_first_process_is_named_by_the_others(played) -> None:
    played.silence(0)
    error = played.ended[1].get(timeout=30)
    assert isinstance(error, PeerError)
    assert str(error).startswith("process 0 (pid")


def test_nobody_is_named_while_all_live(played) -> None:
    time.sleep(1.5)  # longer than its patience
    assert all(q.empty() for q in played.ended)
    for heart in played.hearts:
        heart.stop()
    time.sleep(1.5)
    assert all(q.empty() for q in played.ended), "both are done"


def test_what_a_process_ended_by_is_said_by_the_first_one_alone(played) -> None:
    played.hearts[1].stop(MemoryError("no room\nat all"))
    error = played.ended[0].get(timeout=30)
    assert isinstance(error, PeerError)
    assert str(error) == "process 1 ended: MemoryError no room"
    played.hearts[0].stop(error)
    both = Played(patience=1.0)
    both.hearts[0].stop(ValueError("bad data"))
    assert isinstance(both.ended[1].get(timeout=30), SaidOnce)
    both.hearts[1].stop()


def test_a_broken_connection_has_a_cause(played) -> None:
    assert played.hearts[0].cause() is None, "all live"
    played.silence(1)
    assert str(played.hearts[0].cause()).startswith("process 1 (pid")


@pytest.mark.long
@pytest.mark.parametrize("stopped", [True, False])
def test_a_process_ends_well_while_its_heartbeat_is_in_the_store(stopped) -> None:
    """A thread that comes out of a library without the interpreter's lock, and finds no interpreter, aborts it all."""
    program = f"""
import sys, threading, time
from contextlib import suppress
from datetime import timedelta
from torch.distributed import DistStoreError, HashStore
from prefiere.processes.heartbeat import Heartbeat

class Slow(HashStore):
    def add(self, key, n):
        inside.set()
        with suppress(DistStoreError):
            self.wait(["never"], timedelta(seconds=0.5))
        return super().add(key, n)

class EndsSlowly:
    def __del__(self, sleep=time.sleep):
        sleep(1.5)

inside = threading.Event()
sys.ends = EndsSlowly()
heart = Heartbeat(Slow(), 0, 2, patience=10.0)
inside.wait()
if {stopped}:
    heart.stop()
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.long
def test_a_process_ends_where_nobody_is_left_to_read_why() -> None:
    """The launcher was killed: what it held of the output is closed, and writing to it fails."""
    program = """
import os, time
from torch.distributed import HashStore
from prefiere.processes.heartbeat import Heartbeat

read, write = os.pipe()
os.close(read)
os.dup2(write, 2)
heart = Heartbeat(HashStore(), 0, 2, patience=1.0)
time.sleep(600)
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", program], env=env, check=False, timeout=100).returncode == 2


def test_they_meet_however_late_one_is(played) -> None:
    order = list[str]()

    def late() -> None:
        time.sleep(1.5)  # longer than its patience, and alive
        order.append("late")
        played.hearts[1].meet()

    thread = threading.Thread(target=late)
    thread.start()
    played.hearts[0].meet()
    order.append("met")
    thread.join()
    assert order == ["late", "met"]
    assert all(q.empty() for q in played.ended)


@pytest.mark.long
def test_a_stopped_process_is_named_in_the_status_and_the_run_ends(tmp_path: Path) -> None:
    """SIGSTOP, as a debugger or a machine out of memory stops a process. No launcher is there to notice."""
    s = runs.settings(tmp_path, max_steps=100_000, save_steps=1, sample_steps=0, eval_size=0)
    words = [f"{k}={v}" for k, v in s.model_dump(exclude_unset=True).items() if k != "method"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PREFIERE_TIMEOUT": "20", "WORLD_SIZE": "2"}
    env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    both = []
    for n in ("0", "1"):
        env |= {"RANK": n, "LOCAL_RANK": n}
        command = [sys.executable, "-m", "prefiere", "dpo", *words]
        both.append(subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True))
    try:
        checkpoints, last = Path(s.out, "checkpoints"), time.monotonic() + 500
        while not any(checkpoints.glob("step-*")):
            assert both[0].poll() is None, both[0].stderr and both[0].stderr.read()
            assert time.monotonic() < last
            time.sleep(0.1)
        both[1].send_signal(signal.SIGSTOP)
        said = both[0].communicate(timeout=300)[1]
        assert both[0].returncode == 2
    finally:
        for process in both:
            process.kill()
            process.communicate()
    status = json.loads(Path(s.out, "status.json").read_text())
    assert status["state"] == "failed"
    assert status["reason"].startswith(f"process 1 (pid {both[1].pid} on {socket.gethostname()})")
    assert [line for line in said.splitlines() if line.startswith("error")] == [f"error: {status['reason']}"]
    assert "Traceback" not in said
    assert Path(s.out, "report.html").is_file()
