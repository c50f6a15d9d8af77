"""Designs lose their batch number, which the batch's first design gives, and count lost attempts."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Move the data over; every row is kept."""
    op.add_column("batch", sa.Column("first", sa.Integer, nullable=False, server_default=sa.text("0")))
    batch = sa.table("batch", sa.column("study_id"), sa.column("number"), sa.column("n_designs"), sa.column("first"))
    before = batch.alias("before")
    # Designs are numbered in the order of their batches, so those of earlier batches come first.
    n_before = (
        sa.select(sa.func.coalesce(sa.func.sum(before.c.n_designs), 0))
        .where(before.c.study_id == batch.c.study_id, before.c.number < batch.c.number)
        .scalar_subquery()
    )
    op.execute(sa.update(batch).values(first=n_before))
    op.drop_column("design", "batch")
    op.add_column("design", sa.Column("attempts", sa.SmallInteger, nullable=False, server_default=sa.text("0")))
    op.add_column("design", sa.Column("last_error", sa.Text))
    meta = sa.table("meta", sa.column("key"), sa.column("value"))
    op.execute(sa.update(meta).where(meta.c.key == "schema_version").values(value="2"))
