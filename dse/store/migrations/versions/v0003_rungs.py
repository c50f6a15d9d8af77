"""Cost models stand on rungs, and designs are promoted to the upper ones."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Put every cost model there is on rung 0; every row is kept."""
    op.add_column("evaluator", sa.Column("rung", sa.SmallInteger, nullable=False, server_default=sa.text("0")))
    op.create_table(
        "promotion",
        sa.Column("study_id", sa.Integer, sa.ForeignKey("study.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("rung", sa.SmallInteger, nullable=False),
        sa.Column("n_below", sa.Integer, nullable=False),
        sa.Column("n_within_reach", sa.Integer, nullable=False),
        sa.Column("designs", sa.LargeBinary, nullable=False),
        sa.Column("is_done", sa.Boolean, nullable=False),
        sa.Column("created_s", sa.Float, nullable=False),
        sqlite_with_rowid=False,
    )
    meta = sa.table("meta", sa.column("key"), sa.column("value"))
    op.execute(sa.update(meta).where(meta.c.key == "schema_version").values(value="3"))
