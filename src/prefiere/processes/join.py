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

PATIENCE = timedelta(minutes=10)
"""How long a process waits for the others."""


def open_group(*, cuda: bool) -> None:
    """Join the processes that a launcher started, if it did and this process has not joined them.

    cuda: processes compute on GPUs, one each. Raises ValueError where another process does not come within `PATIENCE`.
    """
    if dist.is_initialized() or int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return
    store, rank, size = next(dist.rendezvous("env://", timeout=PATIENCE))
    store.set_timeout(PATIENCE)
    own = dist.PrefixStore(f"prefiere/{_name(store, rank, size)}", store)
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    dist.init_process_group(backend, store=own, rank=rank, world_size=size, timeout=PATIENCE)


def _name(store: dist.Store, rank: int, size: int) -> str:
    """The name of this group. Each process asks under a word of its own, so that no answer to a dead one is for it."""
    if rank:
        word = uuid4().hex
        store.set(f"asks/{rank}", word)
        name = store.get(f"name/{word}").decode()
        store.set(f"{name}/knows/{rank}", "")
        return name
    name, last = uuid4().hex, time.monotonic() + PATIENCE.total_seconds()
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
                f"of {size} processes, number {late} did not come within {PATIENCE.total_seconds() / 60:g} minutes: "
                "look at its own output, and at the network between the machines"
            )
    return name
