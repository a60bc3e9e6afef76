"""A store of votes: one SQLite file or one PostgreSQL database, opened, migrated and written to with care.

What is acknowledged is on the disk: SQLite runs in WAL with ``synchronous=FULL``. Writers begin with BEGIN IMMEDIATE,
so that no transaction fails half-way for a lock, and wait for each other in this process on a lock of Python's, which
is fair where SQLite's own is not.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Self

import sqlalchemy as sa

from prefiere.data.sources import is_votes
from prefiere.feedback import schema

PRAGMAS = {"journal_mode": "WAL", "synchronous": "FULL", "busy_timeout": 10_000, "foreign_keys": "ON",
           "secure_delete": "ON"}  # fmt: skip
_SCHEMES = ("postgresql://", "postgres://")


class StoreError(ValueError):
    """A store that cannot be opened, or that does not hold what was asked for."""


class StoreFull(OSError):
    """The disk is full: what was to be stored was not."""


class Store:
    """An open store. Made by `Store.open`; `read` and `write` give a connection for one transaction."""

    def __init__(self, name: str, engine: sa.Engine):
        self.name, self.engine = name, engine
        self._writer = engine.execution_options(writer=True)
        self._lock = threading.Lock()

    @property
    def sqlite(self) -> bool:
        return self.engine.dialect.name == "sqlite"

    @classmethod
    def open(cls, name: str | Path, *, create: bool = False) -> Self:
        """Open a store, bring it up to this version's tables, and make it first where ``create`` says so.

        Raises StoreError where there is none, where it is none, or where it cannot be written to or is of a newer
        version.
        """
        where = str(name)
        store = cls(where, _postgres(where) if where.startswith(_SCHEMES) else _sqlite(where, create))
        try:
            store._up_to_date(create)
        except sa.exc.OperationalError as e:
            raise StoreError(f"{hidden(where)}: cannot open this store: {e.orig}.") from e
        return store

    def _up_to_date(self, create: bool) -> None:
        """Migrate to REVISION. Alembic is imported only where there is something to do."""
        found = self.revision()
        if found == schema.REVISION:
            return
        if found is None and not create:
            raise StoreError(f"{hidden(self.name)}: no store of votes here. `prefiere serve` or `collect` makes one.")
        from prefiere.feedback.migrations.run import migrate

        migrate(self)

    def revision(self) -> str | None:
        """The migration that this store has, or None for a database without our tables."""
        with self.engine.connect() as c:
            if not sa.inspect(c).has_table("alembic_version"):
                return None
            return c.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A connection in one transaction that sees one state of the store."""
        with self.engine.connect() as c, c.begin():
            yield c

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """A connection in one transaction that is stored whole or not at all. Raises StoreFull on a full disk."""
        try:
            if self.sqlite:
                with self._lock, self._writer.connect() as c, c.begin():
                    yield c
            else:
                with self._writer.connect() as c, c.begin():
                    yield c
        except sa.exc.OperationalError as e:
            if _full(e):
                raise StoreFull(f"{hidden(self.name)}: the disk is full; the last change was NOT stored.") from e
            raise

    def lock_person(self, c: sa.Connection, person_id: int) -> None:
        """Let one transaction at a time act for a person: two tabs of one person take turns."""
        if not self.sqlite:
            c.execute(sa.select(schema.person.c.id).where(schema.person.c.id == person_id).with_for_update())

    def vacate(self) -> None:
        """After a deletion: empty the write-ahead log, so that no copy of what was deleted stays in a file."""
        if self.sqlite:
            with self._lock, self.engine.connect() as c:
                c.connection.driver_connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # type: ignore[union-attr]

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()


def hidden(name: str) -> str:
    """A store's name without the password that a URL holds."""
    if not name.startswith(_SCHEMES):
        return name
    return sa.make_url(name.replace("postgres://", "postgresql://", 1)).render_as_string(hide_password=True)


def _full(error: sa.exc.OperationalError) -> bool:
    if isinstance(error.orig, sqlite3.OperationalError):
        return error.orig.sqlite_errorcode & 0xFF == sqlite3.SQLITE_FULL
    return getattr(error.orig, "sqlstate", None) == "53100"


def _sqlite(where: str, create: bool) -> sa.Engine:
    path = Path(where).expanduser()
    if path.is_dir():
        raise StoreError(f"{where} is a folder: a store is one file, as votes.db.")
    if not path.exists():
        if not create:
            raise StoreError(f"{where}: no such store. `prefiere serve {where}` or `collect` makes one.")
        if not path.parent.is_dir():
            raise StoreError(f"{where}: there is no folder {path.parent}.")
    else:
        _check_ours(path, where)
    engine = sa.create_engine(sa.URL.create("sqlite", database=str(path)), pool_size=8, max_overflow=32)

    @sa.event.listens_for(engine, "connect")
    def connect(connection: Any, record: Any) -> None:
        connection.isolation_level = None  # the driver begins nothing by itself
        if not connection.execute("PRAGMA application_id").fetchone()[0]:  # before WAL, so that it is in the file
            connection.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
        for pragma, value in PRAGMAS.items():
            connection.execute(f"PRAGMA {pragma} = {value}")

    @sa.event.listens_for(engine, "begin")
    def begin(c: sa.Connection) -> None:
        c.exec_driver_sql("BEGIN IMMEDIATE" if c.get_execution_options().get("writer") else "BEGIN")

    _check_writable(path, where)
    return engine


def _check_ours(path: Path, where: str) -> None:
    """Raise StoreError for a file that is no store, unless it is empty, or a SQLite file in which nothing is yet."""
    if is_votes(path) or not path.stat().st_size:
        return
    try:
        with closing(sqlite3.connect(path)) as c:
            c.execute("PRAGMA busy_timeout = 10000")
            if not c.execute("SELECT 1 FROM sqlite_master").fetchone():
                return
    except sqlite3.Error:
        pass
    raise StoreError(f"{where} is not a store of votes: name another file.")


def _check_writable(path: Path, where: str) -> None:
    """Raise StoreError for a file that cannot be written to: said here, not at the first vote."""
    try:
        with closing(sqlite3.connect(path, isolation_level=None)) as c:
            c.execute("PRAGMA busy_timeout = 10000")
            c.execute("BEGIN IMMEDIATE")
            c.execute("CREATE TABLE may_write (it)")  # BEGIN alone succeeds on a file that is read-only
            c.execute("ROLLBACK")
    except sqlite3.Error as e:
        raise StoreError(f"{where}: cannot write to this store: {e}. Choose a file that you may write to.") from e


def _postgres(where: str) -> sa.Engine:
    url = sa.make_url(where.replace("postgres://", "postgresql://", 1)).set(drivername="postgresql+psycopg")
    options = "-c idle_in_transaction_session_timeout=10s -c timezone=UTC"
    try:
        return sa.create_engine(url, pool_size=8, max_overflow=32, connect_args={"options": options})
    except ModuleNotFoundError as e:
        raise StoreError("a PostgreSQL store needs psycopg: install the extra, as in './prefiere[postgres]'.") from e
