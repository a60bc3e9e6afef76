"""Stores to test on: a SQLite file always, a PostgreSQL database where Debian's package is installed."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from prefiere.feedback import items
from prefiere.feedback.schema import Purpose
from prefiere.feedback.store import Store


class Postgres:
    """A server of our own on a socket in a folder, with one database for each test."""

    def __init__(self, folder: Path, bin_: Path):
        self.folder, self._bin = folder, bin_
        self._as = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []
        self._made = 0

    def run(self, tool: str, *arguments: str) -> None:
        done = subprocess.run([*self._as, str(self._bin / tool), *arguments], capture_output=True, text=True, cwd="/")
        assert done.returncode == 0, done.stderr

    def start(self) -> None:
        if self._as:
            shutil.chown(self.folder, "postgres")
        data = str(self.folder / "data")
        self.run("initdb", "-D", data, "-A", "trust", "-U", "postgres", "--no-sync", "-E", "UTF8")
        options = f"-k {self.folder} -c listen_addresses='' -c fsync=off"
        self.run("pg_ctl", "-D", data, "-w", "-o", options, "-l", str(self.folder / "log"), "start")

    def stop(self) -> None:
        self.run("pg_ctl", "-D", str(self.folder / "data"), "-m", "immediate", "stop")

    def database(self) -> str:
        """The URL of a new, empty database."""
        self._made += 1
        name = f"votes{self._made}"
        self.run("createdb", "-h", str(self.folder), "-U", "postgres", name)
        return f"postgresql://postgres@/{name}?host={self.folder}"


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    tools = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not tools or not (tools[-1] / "initdb").is_file():
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    folder = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))  # a socket's path is at most 107 characters
    server = Postgres(folder, tools[-1])
    try:
        server.start()
        yield server
        server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["sqlite", "postgresql"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A name under which a store can be made."""
    if request.param == "sqlite":
        return str(tmp_path / "votes.db")
    server: Postgres = request.getfixturevalue("postgres")
    return server.database()


@pytest.fixture
def store(where: str) -> Iterator[Store]:
    opened = Store.open(where, create=True)
    yield opened
    opened.close()


@pytest.fixture
def sqlite_store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(tmp_path / "votes.db", create=True)
    yield opened
    opened.close()


def fill(
    store: Store, pairs: int, *, overlap: int | None = 1, purpose: Purpose = "ask", seed: int = 0, start: int = 0
) -> list[int]:
    """Add so many pairs with prompts and answers of their own; their ids."""
    rng = random.Random(seed)
    made = []
    with store.write() as c:
        for i in range(start, start + pairs):
            prompt = items.add_prompt(c, f"¿Qué es {i}?")
            a, b = items.add_answer(c, prompt, f"a{i}"), items.add_answer(c, prompt, f"b{i}")
            pair = items.add_pair(c, prompt, a, b, overlap=overlap, purpose=purpose, rng=rng)
            assert pair is not None
            made.append(pair)
    return made


def rows(store: Store, table: sa.Table) -> list[sa.RowMapping]:
    """Everything in a table."""
    with store.read() as c:
        return list(c.execute(sa.select(table)).mappings().all())
