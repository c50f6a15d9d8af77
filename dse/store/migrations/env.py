"""Runs the migrations on the connection that it is given, inside its transaction."""

from alembic import context

from dse.store.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, transactional_ddl=True)
context.run_migrations()
