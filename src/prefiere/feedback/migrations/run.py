"""Bring a store's tables up to date: Alembic without an ini file, in one transaction, whole or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

from prefiere.feedback import schema

HERE = Path(__file__).parent


class Database(Protocol):
    """What a migration needs to know of a store."""

    name: str
    engine: sa.Engine

    @property
    def sqlite(self) -> bool:
        """Whether it is one SQLite file."""

    def revision(self) -> str | None:
        """The migration that it has."""


def migrate(store: Database, versions: Sequence[Path] = (HERE / "versions",), to: str = "head") -> None:
    """Run the migrations that this store lacks. Raises ValueError for a store of a newer version of prefiere.

    SQLite rebuilds a table to change it. Foreign keys are off meanwhile, which must happen outside the transaction,
    and are checked before it is committed.
    """
    config = Config()
    config.set_main_option("script_location", str(HERE))
    config.set_main_option("path_separator", "newline")
    config.set_main_option("version_locations", "\n".join(map(str, versions)))
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    found = store.revision()
    if found is not None and found not in known:
        raise ValueError(
            f"{store.name}: this store was made by a newer prefiere (its tables have version {found}). Update prefiere."
        )
    engine = store.engine.execution_options(writer=True)
    with engine.connect() as c:
        if store.sqlite:
            raw: Any = c.connection.driver_connection
            raw.execute("PRAGMA foreign_keys = OFF")
        try:
            with c.begin():
                config.attributes["connection"] = c
                command.upgrade(config, to)
                if store.sqlite and (broken := c.exec_driver_sql("PRAGMA foreign_key_check").first()):
                    raise RuntimeError(f"a migration would break a reference of table {broken[0]}; nothing was changed")
        finally:
            if store.sqlite:
                raw.execute("PRAGMA foreign_keys = ON")


def tables_differ(c: sa.Connection) -> list[object]:
    """What a migrated database lacks or has too much, against `schema.metadata`; for the test that keeps them equal."""
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    return list(compare_metadata(MigrationContext.configure(c), schema.metadata))
