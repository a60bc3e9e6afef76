"""The first tables of a store. A later migration that rebuilds a table in SQLite makes its triggers anew."""

import sqlalchemy as sa
from alembic import op

from prefiere.feedback.schema import triggers

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make every table, index and trigger."""
    for make in (_people_and_models, _prompts_and_rounds, _answers, _pairs, _leases, _events):
        make()
    for statement in triggers(op.get_bind().dialect.name):
        op.execute(statement)


def _people_and_models() -> None:
    op.create_table(
        "forgetting",
        sa.Column("person_id", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("person_id", name="pk_forgetting"),
    )
    op.create_table(
        "model",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("label", sa.UnicodeText(), nullable=False),
        sa.Column("path", sa.UnicodeText(), nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("run", sa.UnicodeText(), nullable=True),
        sa.Column("step", sa.Integer(), nullable=True),
        sa.Column("round_id", sa.Integer(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_model"),
        sa.UniqueConstraint("fingerprint", name="uq_model_fingerprint"),
    )
    op.create_table(
        "person",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("pseudonym", sa.UnicodeText(), nullable=False),
        sa.Column("name", sa.UnicodeText(), nullable=True),
        sa.Column("token_hash", sa.Text(), nullable=True),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("lang", sa.Text(), nullable=True),
        sa.Column("consent_version", sa.Text(), nullable=True),
        sa.Column("consent_at", sa.Float(precision=53), nullable=True),
        sa.Column("set_aside_at", sa.Float(precision=53), nullable=True),
        sa.Column("left_out_at", sa.Float(precision=53), nullable=True),
        sa.Column("forgotten_at", sa.Float(precision=53), nullable=True),
        sa.Column("forgotten_votes", sa.Integer(), nullable=True),
        sa.CheckConstraint("kind IN ('person', 'judge')", name="ck_person_kind"),
        sa.CheckConstraint("role IN ('annotate', 'admin')", name="ck_person_role"),
        sa.PrimaryKeyConstraint("id", name="pk_person"),
        sa.UniqueConstraint("pseudonym", name="uq_person_pseudonym"),
        sa.UniqueConstraint("token_hash", name="uq_person_token_hash"),
    )


def _prompts_and_rounds() -> None:
    op.create_table(
        "prompt",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("content", sa.UnicodeText(), nullable=False),
        sa.Column("tools", sa.UnicodeText(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("source", sa.UnicodeText(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_prompt"),
        sa.UniqueConstraint("digest", name="uq_prompt_digest"),
    )
    op.create_table(
        "round",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("n", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("recipe_digest", sa.Text(), nullable=False),
        sa.Column("before_model", sa.UnicodeText(), nullable=True),
        sa.Column("after_model", sa.UnicodeText(), nullable=True),
        sa.Column("snapshot_id", sa.Integer(), nullable=True),
        sa.Column("run", sa.UnicodeText(), nullable=True),
        sa.Column("started", sa.Float(precision=53), nullable=False),
        sa.Column("ended", sa.Float(precision=53), nullable=True),
        sa.Column("reason", sa.UnicodeText(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_round"),
        sa.UniqueConstraint("recipe_digest", "n", name="uq_round_recipe_digest_n"),
    )
    op.create_table(
        "snapshot",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("last_event", sa.Integer(), nullable=True),
        sa.Column("formula", sa.Text(), nullable=False),
        sa.Column("left_out", sa.UnicodeText(), nullable=False),
        sa.Column("at", sa.Float(precision=53), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_snapshot"),
    )


def _answers() -> None:
    op.create_table(
        "answer",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("prompt_id", sa.Integer(), nullable=False),
        sa.Column("model_id", sa.Integer(), nullable=True),
        sa.Column("author_id", sa.Integer(), nullable=True),
        sa.Column("content", sa.UnicodeText(), nullable=False),
        sa.Column("seed", sa.Integer(), nullable=True),
        sa.Column("sample", sa.Integer(), nullable=True),
        sa.Column("temperature", sa.Float(precision=53), nullable=True),
        sa.Column("top_p", sa.Float(precision=53), nullable=True),
        sa.Column("max_new_tokens", sa.Integer(), nullable=True),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["author_id"], ["person.id"], name="fk_answer_author_id"),
        sa.ForeignKeyConstraint(["model_id"], ["model.id"], name="fk_answer_model_id"),
        sa.ForeignKeyConstraint(["prompt_id"], ["prompt.id"], name="fk_answer_prompt_id"),
        sa.PrimaryKeyConstraint("id", name="pk_answer"),
        sa.UniqueConstraint("prompt_id", "model_id", "seed", "sample", name="uq_answer_prompt_id_model_id_seed_sample"),
    )
    op.create_index("ix_answer_prompt_id_digest", "answer", ["prompt_id", "digest"], unique=False)
    op.create_table(
        "export",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("snapshot_id", sa.Integer(), nullable=False),
        sa.Column("path", sa.UnicodeText(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("at", sa.Float(precision=53), nullable=False),
        sa.ForeignKeyConstraint(["snapshot_id"], ["snapshot.id"], name="fk_export_snapshot_id"),
        sa.PrimaryKeyConstraint("id", name="pk_export"),
    )


def _pairs() -> None:
    op.create_table(
        "pair",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("prompt_id", sa.Integer(), nullable=False),
        sa.Column("a_id", sa.Integer(), nullable=False),
        sa.Column("b_id", sa.Integer(), nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("round_id", sa.Integer(), nullable=True),
        sa.Column("overlap", sa.Integer(), nullable=False),
        sa.Column("open", sa.Integer(), nullable=False),
        sa.Column("draw", sa.Float(precision=53), nullable=False),
        sa.Column("priority", sa.Float(precision=53), server_default="0", nullable=False),
        sa.Column("scored_by", sa.Text(), nullable=True),
        sa.CheckConstraint("purpose IN ('ask', 'eval', 'gold', 'compare')", name="ck_pair_purpose"),
        sa.CheckConstraint("open >= 0", name="ck_pair_open"),
        sa.ForeignKeyConstraint(["a_id"], ["answer.id"], name="fk_pair_a_id"),
        sa.ForeignKeyConstraint(["b_id"], ["answer.id"], name="fk_pair_b_id"),
        sa.ForeignKeyConstraint(["prompt_id"], ["prompt.id"], name="fk_pair_prompt_id"),
        sa.PrimaryKeyConstraint("id", name="pk_pair"),
        sa.UniqueConstraint("a_id", "b_id", name="uq_pair_a_id_b_id"),
    )
    op.create_index(
        "ix_pair_queue",
        "pair",
        [sa.literal_column("priority DESC"), "draw"],
        unique=False,
        sqlite_where=sa.text("open > 0"),
        postgresql_where=sa.text("open > 0"),
    )
    op.create_table(
        "gold",
        sa.Column("pair_id", sa.Integer(), nullable=False),
        sa.Column("side", sa.Text(), nullable=False),
        sa.Column("set_by", sa.UnicodeText(), nullable=True),
        sa.Column("at", sa.Float(precision=53), nullable=False),
        sa.CheckConstraint("side IN ('a', 'b', 'tie')", name="ck_gold_side"),
        sa.ForeignKeyConstraint(["pair_id"], ["pair.id"], name="fk_gold_pair_id"),
        sa.PrimaryKeyConstraint("pair_id", name="pk_gold"),
    )


def _leases() -> None:
    op.create_table(
        "lease",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("pair_id", sa.Integer(), nullable=False),
        sa.Column("person_id", sa.Integer(), nullable=False),
        sa.Column("swapped", sa.Boolean(), nullable=False),
        sa.Column("random", sa.Boolean(), nullable=False),
        sa.Column("guidelines_version", sa.Text(), nullable=True),
        sa.Column("issued", sa.Float(precision=53), nullable=False),
        sa.Column("expires", sa.Float(precision=53), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.CheckConstraint("state IN ('open', 'done', 'skipped', 'expired')", name="ck_lease_state"),
        sa.ForeignKeyConstraint(["pair_id"], ["pair.id"], name="fk_lease_pair_id"),
        sa.ForeignKeyConstraint(["person_id"], ["person.id"], name="fk_lease_person_id"),
        sa.PrimaryKeyConstraint("id", name="pk_lease"),
    )
    op.create_index(
        "ix_lease_expires",
        "lease",
        ["expires"],
        unique=False,
        sqlite_where=sa.text("state = 'open'"),
        postgresql_where=sa.text("state = 'open'"),
    )
    op.create_index("ix_lease_person_id", "lease", ["person_id"], unique=False)
    op.create_index(
        "uq_lease_pair_person",
        "lease",
        ["pair_id", "person_id"],
        unique=True,
        sqlite_where=sa.text("state <> 'expired'"),
        postgresql_where=sa.text("state <> 'expired'"),
    )
    op.create_index(
        "uq_lease_person_open",
        "lease",
        ["person_id"],
        unique=True,
        sqlite_where=sa.text("state = 'open'"),
        postgresql_where=sa.text("state = 'open'"),
    )


def _events() -> None:
    op.create_table(
        "snapshot_row",
        sa.Column("snapshot_id", sa.Integer(), nullable=False),
        sa.Column("n", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("pair_id", sa.Integer(), nullable=False),
        sa.Column("chosen_id", sa.Integer(), nullable=False),
        sa.Column("rejected_id", sa.Integer(), nullable=False),
        sa.Column("label", sa.Float(precision=53), nullable=True),
        sa.Column("weight", sa.Float(precision=53), nullable=False),
        sa.Column("ideal", sa.Boolean(), nullable=False),
        sa.Column("event_ids", sa.UnicodeText(), nullable=False),
        sa.ForeignKeyConstraint(["chosen_id"], ["answer.id"], name="fk_snapshot_row_chosen_id"),
        sa.ForeignKeyConstraint(["pair_id"], ["pair.id"], name="fk_snapshot_row_pair_id"),
        sa.ForeignKeyConstraint(["rejected_id"], ["answer.id"], name="fk_snapshot_row_rejected_id"),
        sa.ForeignKeyConstraint(["snapshot_id"], ["snapshot.id"], name="fk_snapshot_row_snapshot_id"),
        sa.PrimaryKeyConstraint("snapshot_id", "n", name="pk_snapshot_row"),
    )
    op.create_table(
        "event",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("lease_id", sa.Text(), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("score", sa.Integer(), nullable=True),
        sa.Column("both_bad", sa.Boolean(), nullable=False),
        sa.Column("reason_code", sa.Text(), nullable=True),
        sa.Column("ms", sa.Integer(), nullable=True),
        sa.Column("input", sa.Text(), nullable=True),
        sa.Column("at", sa.Float(precision=53), nullable=False),
        sa.CheckConstraint("kind IN ('vote', 'undo', 'skip')", name="ck_event_kind"),
        sa.CheckConstraint("score BETWEEN -3 AND 3", name="ck_event_score"),
        sa.ForeignKeyConstraint(["lease_id"], ["lease.id"], name="fk_event_lease_id"),
        sa.PrimaryKeyConstraint("id", name="pk_event"),
        sa.UniqueConstraint("lease_id", "seq", name="uq_event_lease_id_seq"),
    )
    op.create_table(
        "note",
        sa.Column("event_id", sa.Integer(), nullable=False),
        sa.Column("text", sa.UnicodeText(), nullable=True),
        sa.Column("ideal_answer_id", sa.Integer(), nullable=True),
        sa.ForeignKeyConstraint(["event_id"], ["event.id"], name="fk_note_event_id"),
        sa.ForeignKeyConstraint(["ideal_answer_id"], ["answer.id"], name="fk_note_ideal_answer_id"),
        sa.PrimaryKeyConstraint("event_id", name="pk_note"),
    )
    # ### end Alembic commands ###
