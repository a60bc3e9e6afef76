"""A store opens, migrates, refuses what it must, and loses nothing."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import sqlalchemy as sa

from feedback.conftest import fill, rows
from prefiere.data.sources import is_votes
from prefiere.feedback import items, people, schema
from prefiere.feedback.migrations.run import migrate, tables_differ
from prefiere.feedback.store import Store, StoreError, StoreFull, hidden


def test_the_migrated_tables_are_those_of_the_schema(store):
    with store.read() as c:
        assert tables_differ(c) == []
    assert store.revision() == schema.REVISION


def test_sqlite_syncs_each_commit_and_keeps_references(sqlite_store):
    with sqlite_store.write() as c:
        found = {p: c.exec_driver_sql(f"PRAGMA {p}").scalar() for p in ("journal_mode", "synchronous", "foreign_keys")}
        assert found == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}  # 2 is FULL
        assert c.exec_driver_sql("PRAGMA secure_delete").scalar() == 1


def test_no_foreign_key_cascades():
    for table in schema.metadata.tables.values():
        for key in table.foreign_keys:
            assert key.ondelete is None
            assert key.onupdate is None


def test_a_log_cannot_be_changed_or_deleted(store):
    fill(store, 1)
    for statement in ("UPDATE prompt SET source = 'x'", "DELETE FROM answer", "DELETE FROM prompt"):
        with pytest.raises(sa.exc.DBAPIError, match="is a log"), store.write() as c:
            c.execute(sa.text(statement))
    assert len(rows(store, schema.answer)) == 2


def test_text_that_databases_refuse_is_kept(store):
    hard = ["\x00 NUL", "half \ud83d a character", "\ud800\udfff", "🐕", "'; DROP TABLE event; --", "\u202e"]
    with store.write() as c:
        ids = [items.add_prompt(c, text) for text in hard]
        people.add(c, hard[1])
    found = {r["id"]: r["content"] for r in rows(store, schema.prompt)}
    assert [found[i] for i in ids[:2] + ids[3:]] == hard[:2] + hard[3:]
    with store.read() as c:
        assert people.find_person(c, hard[1]) is not None


def test_a_prompt_without_text_is_refused(sqlite_store):
    with sqlite_store.write() as c:
        for empty in ("", " \n", ()):
            with pytest.raises(ValueError, match="without text"):
                items.add_prompt(c, empty)
    assert not rows(sqlite_store, schema.prompt)


def test_equal_answers_and_equal_pairs_are_not_asked_twice(sqlite_store):
    import random

    rng = random.Random(0)
    with sqlite_store.write() as c:
        p = items.add_prompt(c, "q")
        a, b = items.add_answer(c, p, "same"), items.add_answer(c, p, "other")
        assert items.add_answer(c, p, "same") == a
        assert items.add_pair(c, p, a, b, rng=rng)
        assert items.add_pair(c, p, b, a, rng=rng) is None
        assert items.add_pair(c, p, a, a, rng=rng) is None


@pytest.mark.parametrize("name", ["missing.db", "folder", "text.db", "other.db"])
def test_what_is_no_store_is_named(tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.db").write_text("prompt,chosen,rejected\n" * 10)
    with sqlite3.connect(tmp_path / "other.db") as c:
        c.execute("CREATE TABLE other (x)")
    c.close()
    before = {p: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
    with pytest.raises(StoreError, match=name):
        Store.open(tmp_path / name, create=name != "missing.db")
    assert {p: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()} == before
    assert not is_votes(tmp_path / name)


def test_a_new_file_is_recognised_by_its_header_at_once(tmp_path):
    store = Store.open(tmp_path / "votes", create=True)
    assert is_votes(tmp_path / "votes")
    assert is_votes(f"{tmp_path / 'votes'}#3")
    assert is_votes("postgresql://somebody@somewhere/votes")
    store.close()


def test_a_file_that_may_not_be_written_to_is_named(tmp_path, monkeypatch):
    """As root no file is read-only, so SQLite is told that it is."""
    from prefiere.feedback import store as module

    Store.open(tmp_path / "votes.db", create=True).close()
    before = (tmp_path / "votes.db").read_bytes()
    connect = sqlite3.connect
    monkeypatch.setattr(module.sqlite3, "connect", lambda p, **k: connect(f"file:{p}?mode=ro", uri=True, **k))
    with pytest.raises(StoreError, match=r"votes\.db: cannot write to this store.*readonly"):
        Store.open(tmp_path / "votes.db")
    assert (tmp_path / "votes.db").read_bytes() == before


def test_a_password_is_not_shown():
    assert hidden("postgresql://ana:secreta@host/votes") == "postgresql://ana:***@host/votes"


def test_a_store_of_a_newer_version_says_so_and_stays(store):
    with store.write() as c:
        c.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(ValueError, match="newer prefiere"):
        Store.open(store.name)
    assert store.revision() == "9999"


def test_a_full_disk_leaves_no_half_row(sqlite_store):
    fill(sqlite_store, 20)
    before = len(rows(sqlite_store, schema.answer))

    @sa.event.listens_for(sqlite_store.engine, "begin")
    def full(c):
        c.exec_driver_sql(f"PRAGMA max_page_count = {c.exec_driver_sql('PRAGMA page_count').scalar()}")

    with pytest.raises(StoreFull, match="NOT stored"):
        fill(sqlite_store, 2000, start=100)
    sa.event.remove(sqlite_store.engine, "begin", full)
    assert len(rows(sqlite_store, schema.answer)) == before
    assert len(rows(sqlite_store, schema.pair)) == 20
    with sqlite_store.write() as c:
        c.exec_driver_sql("PRAGMA max_page_count = 1000000")
    fill(sqlite_store, 5, start=5000)
    assert len(rows(sqlite_store, schema.pair)) == 25


REBUILD = """
import os
import sqlalchemy as sa
from alembic import op
revision, down_revision = "0002", "0001"

def upgrade():
    SQLITE = op.get_bind().dialect.name == "sqlite"
    with op.batch_alter_table("person", recreate="always" if SQLITE else "never") as batch:
        batch.add_column(sa.Column("motto", sa.Text()))
    if os.environ.get("DIE"):
        os.kill(os.getpid(), 9)
"""


def _versions(tmp_path: Path) -> list[Path]:
    from prefiere.feedback.migrations import run

    (tmp_path / "later").mkdir()
    (tmp_path / "later" / "v0002.py").write_text(REBUILD)
    return [run.HERE / "versions", tmp_path / "later"]


def test_rebuilding_a_parent_table_loses_no_child(store, tmp_path):
    """SQLite rebuilds a table to change it: with keys on and a cascade its children would be deleted in silence."""
    with store.write() as c:
        who = people.add(c, "ana")
        p = items.add_prompt(c, "q")
        items.add_answer(c, p, "hers", author_id=who)
    migrate(store, _versions(tmp_path))
    assert rows(store, schema.answer)[0]["author_id"] == who
    with store.write() as c:
        assert c.execute(sa.text("SELECT motto FROM person")).all() == [(None,)]
        if store.sqlite:
            assert c.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1


@pytest.mark.long
def test_a_killed_migration_leaves_the_store_as_it_was(store, tmp_path):
    with store.write() as c:
        people.add(c, "ana")
    program = textwrap.dedent(f"""
        from pathlib import Path
        from prefiere.feedback.store import Store
        from prefiere.feedback.migrations.run import migrate
        migrate(Store.open({store.name!r}), [Path(p) for p in {list(map(str, _versions(tmp_path)))!r}])
    """)
    done = subprocess.run([sys.executable, "-c", program], env=os.environ | {"DIE": "1"}, timeout=60)
    assert done.returncode == -signal.SIGKILL
    again = Store.open(store.name)
    assert again.revision() == "0001"
    assert rows(again, schema.person)[0]["pseudonym"] == "ana"
    with again.read() as c:
        assert tables_differ(c) == []
    again.close()
