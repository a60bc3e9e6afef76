"""The group of processes that a launcher started, opened by its own name.

torchrun keeps one store of keys over its restarts. The addresses of processes that died still stand in it, and a new
process that reads one waits for the dead. So each group lives under a name that its first process makes up and hands to
every other process that is alive.
"""

from __future__ import annotations

import os
import time
from datetime import timedelta
from uuid import uuid4

import torch
import torch.distributed as dist

from prefiere.processes.heartbeat import Heartbeat

TIMEOUT = "PREFIERE_TIMEOUT"
"""The variable that says for how many seconds a process waits for another one."""

_line: dist.Store | None = None  # to the launcher's store, for heartbeats alone
_worlds = 0


def patience() -> timedelta:
    """How long a process waits for another: ten minutes, or what `TIMEOUT` says. Raises ValueError for no number."""
    given = os.environ.get(TIMEOUT, "600")
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds <= 86400:
        raise ValueError(f"{TIMEOUT}={given}: a number of seconds from 1 to 86400")
    return timedelta(seconds=seconds)


def open_group(*, cuda: bool) -> None:
    """Join the processes that a launcher started, if it did and this process has not joined them.

    cuda: processes compute on GPUs, one each. Raises ValueError where another process does not come in time.
    """
    global _line
    if dist.is_initialized() or int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return
    store, rank, size = next(dist.rendezvous("env://", timeout=patience()))
    store.set_timeout(patience())
    name = f"prefiere/{_name(store, rank, size)}"
    own, _line = dist.PrefixStore(name, store), dist.PrefixStore(name, store.clone())
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    dist.init_process_group(backend, store=own, rank=rank, world_size=size, timeout=patience())


def heartbeat(rank: int, size: int) -> Heartbeat | None:
    """The heartbeat of this process for one run; None where it is alone, or somebody else opened the group."""
    global _worlds
    if size == 1 or _line is None:
        return None
    _worlds += 1
    return Heartbeat(dist.PrefixStore(f"run {_worlds}", _line), rank, size, patience().total_seconds())


def _name(store: dist.Store, rank: int, size: int) -> str:
    """The name of this group. Each process asks under a word of its own, so that no answer to a dead one is for it."""
    if rank:
        word = uuid4().hex
        store.set(f"asks/{rank}", word)
        name = store.get(f"name/{word}").decode()
        store.set(f"{name}/knows/{rank}", "")
        return name
    name, last = uuid4().hex, time.monotonic() + patience().total_seconds()
    missing = set(range(1, size))
    while missing:
        for other in missing:
            if store.check([f"asks/{other}"]):
                store.set(f"name/{store.get(f'asks/{other}').decode()}", name)
        time.sleep(0.02)
        missing = {other for other in missing if not store.check([f"{name}/knows/{other}"])}
        if missing and time.monotonic() > last:
            late = ", ".join(str(n) for n in sorted(missing))
            raise ValueError(
                f"of {size} processes, number {late} did not come within {patience().total_seconds():g} seconds: "
                "look at its own output, and at the network between the machines"
            )
    return name
