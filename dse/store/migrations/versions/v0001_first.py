"""The first schema, as it was."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create the tables of an empty database."""
    op.create_table(
        "meta",
        sa.Column("key", sa.String(64), primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
    )
    op.create_table(
        "study",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.String(200), nullable=False, unique=True),
        sa.Column("spec", sa.Text, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("stop_reason", sa.Text, nullable=False),
        sa.Column("target", sa.Integer, nullable=False),
        sa.Column("asked", sa.Integer, nullable=False),
        sa.Column("reference", sa.Text),
        sa.Column("created_s", sa.Float, nullable=False),
        sa.Column("updated_s", sa.Float, nullable=False),
        sa.Column("lease_owner", sa.String(200)),
        sa.Column("lease_until_s", sa.Float),
    )
    op.create_table(
        "evaluator",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("study_id", sa.ForeignKey("study.id", ondelete="CASCADE"), nullable=False),
        sa.Column("metric_group", sa.String(32), nullable=False),
        sa.Column("fidelity", sa.String(32), nullable=False),
        sa.Column("cost_model", sa.String(200), nullable=False),
        sa.Column("version", sa.String(64), nullable=False),
        sa.Column("fingerprint", sa.String(32), nullable=False),
        sa.Column("layout", sa.Text, nullable=False),
        sa.UniqueConstraint("study_id", "metric_group", "fidelity", "fingerprint"),
    )
    op.create_table(
        "batch",
        sa.Column("study_id", sa.ForeignKey("study.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("proposer", sa.String(200), nullable=False),
        sa.Column("n_asked", sa.Integer, nullable=False),
        sa.Column("n_proposed", sa.Integer, nullable=False),
        sa.Column("n_designs", sa.Integer, nullable=False),
        sa.Column("is_done", sa.Boolean, nullable=False),
        sa.Column("created_s", sa.Float, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "design",
        sa.Column("study_id", sa.ForeignKey("study.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("batch", sa.Integer, nullable=False),
        sa.Column("hash", sa.LargeBinary(16), nullable=False),
        sa.Column("codes", sa.LargeBinary, nullable=False),
        sa.Column("mark", sa.Integer),
        sa.Column("parents", sa.Text),
        sa.UniqueConstraint("study_id", "hash"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "evaluation",
        sa.Column("study_id", sa.ForeignKey("study.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("evaluator_id", sa.ForeignKey("evaluator.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("status", sa.SmallInteger, nullable=False),
        sa.Column("excess_ratio", sa.Float, nullable=False),
        sa.Column("metrics", sa.LargeBinary, nullable=False),
        sa.Column("reason", sa.Text),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "control",
        sa.Column("study_id", sa.ForeignKey("study.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("request", sa.String(16), nullable=False),
        sa.Column("requested_s", sa.Float, nullable=False),
    )
    meta = sa.table("meta", sa.column("key"), sa.column("value"))
    op.bulk_insert(meta, [{"key": "application", "value": "mfm-dse"}, {"key": "schema_version", "value": "1"}])
