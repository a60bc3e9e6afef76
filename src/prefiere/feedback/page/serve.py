"""Listen: check what can be checked before, say where the page is, and serve it until somebody stops it."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
import uvicorn

from prefiere.asked.language import count_of
from prefiere.feedback import people, schema
from prefiere.feedback.page.app import create
from prefiere.feedback.page.desk import LOCAL, waiting
from prefiere.feedback.page.sampler import Sampler
from prefiere.feedback.page.security import loopback
from prefiere.feedback.store import Store, StoreError

if TYPE_CHECKING:
    from prefiere.feedback.page.runs import RunFolder

ADMIN = "admin"


def serve(
    store: Store,
    *,
    guidelines: Path | None,
    host: str,
    port: int,
    tokens: bool,
    say: Callable[[str], None],
    sampler: Sequence[str] = (),
    runs: Path | None = None,
    questions: Sequence[str] = (),
) -> dict[str, Any]:
    """Serve a store until it is interrupted. ``tokens``: ask for a link on this machine, too; elsewhere it always is.

    ``sampler`` is the command of a process that answers what people ask, for the Ask page (see `sampler.Sampler`).
    ``questions`` are offered there to pick from. ``runs`` is a folder of runs, for the Runs page.
    ``say`` shows the address, and the link of the first admin once. No access log is kept: it would hold addresses.
    Raises StoreError for guidelines that cannot be read, a port that is taken, and a folder of runs that is none.
    """
    told, shown_runs = read_guidelines(guidelines), _runs(runs)
    tokens = tokens or not loopback(host)
    listening = _bind(host, port)
    asked = Sampler(sampler) if sampler else None
    app = create(store, host=host, guidelines=told, tokens=tokens, sampler=asked, runs=shown_runs, questions=questions)
    if asked is not None:
        asked.warm_up()
    bound = listening.getsockname()[1]
    shown = "localhost" if loopback(host) else socket.gethostname() if host in ("0.0.0.0", "::") else host
    address = f"http://{shown}:{bound}"
    with store.read() as c:
        open_slots = waiting(c)
    say(f"Asking at {address}  ({count_of(open_slots, 'vote')} wanted). Ctrl-C stops.")
    if tokens:
        say(_admin_link(store, address))
    server = uvicorn.Server(
        uvicorn.Config(app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=5)
    )
    try:
        server.run(sockets=[listening])
    finally:
        listening.close()
        if asked is not None:
            asked.close()
    return {"address": address}


def read_guidelines(guidelines: Path | None) -> str | None:
    """What people are told before they vote. Raises StoreError for a file that cannot be read."""
    if guidelines is None:
        return None
    try:
        return guidelines.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise StoreError(f"{guidelines}: cannot read these guidelines: {e}.") from e


def _runs(folder: Path | None) -> RunFolder | None:
    if folder is None:
        return None
    if not folder.is_dir():
        raise StoreError(f"{folder}: there is no such folder of runs. Name the one that holds what --out named.")
    from prefiere.feedback.page.runs import RunFolder

    return RunFolder(folder)


def _bind(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(family, socket.SOCK_STREAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(where)
    except OSError as e:
        raise StoreError(f"cannot listen at {host}:{port}: {e.strerror or e}. Choose another --port or --host.") from e
    return made


def _admin_link(store: Store, address: str) -> str:
    """The first admin's link, once; later, how to get a new one."""
    with store.write() as c:
        admins = sa.select(schema.person.c.pseudonym).where(
            schema.person.c.role == "admin",
            schema.person.c.token_hash.is_not(None),
            schema.person.c.pseudonym != LOCAL,
        )
        if (name := c.execute(admins.limit(1)).scalar()) is not None:
            return f"Everybody needs a link: `prefiere votes people {store.name} --add NAME` (or --link {name})."
        made = people.find_person(c, ADMIN) or people.add(c, ADMIN, role="admin")
        return f"Your link, shown once: {address}/join/{people.new_token(c, made)}"
