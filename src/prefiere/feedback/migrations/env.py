"""What Alembic runs: the migrations, on the connection and in the transaction that it is given."""

from alembic import context

from prefiere.feedback.schema import metadata

connection = context.config.attributes["connection"]
context.configure(
    connection=connection, target_metadata=metadata, render_as_batch=connection.dialect.name == "sqlite",
    transactional_ddl=False,  # the caller's transaction holds all of it
)  # fmt: skip
context.run_migrations()
