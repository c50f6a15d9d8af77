"""Calls to language models: sessions, calls, proposals."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Create their tables; every row that is there is kept."""
    op.create_table(
        "llm_session",
        sa.Column("study_id", sa.Integer, sa.ForeignKey("study.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("settings", sa.Text, nullable=False),
        sa.Column("started_s", sa.Float, nullable=False),
        sa.Column("stop_reason", sa.Text, nullable=False),
    )
    op.create_table(
        "llm_call",
        sa.Column("study_id", sa.Integer, sa.ForeignKey("study.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("session", sa.Integer, nullable=False),
        sa.Column("round", sa.Integer, nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("batch", sa.Integer, nullable=False),
        sa.Column("template", sa.String(64), nullable=False),
        sa.Column("model", sa.String(200), nullable=False),
        sa.Column("parameters", sa.Text, nullable=False),
        sa.Column("messages", sa.Text, nullable=False),
        sa.Column("prompt_hash", sa.String(32), nullable=False),
        sa.Column("reserved_tokens", sa.Integer, nullable=False),
        sa.Column("reserved_usd", sa.Float),
        sa.Column("started_s", sa.Float, nullable=False),
        sa.Column("outcome", sa.String(16), nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sa.Column("latency_s", sa.Float),
        sa.Column("n_tries", sa.Integer, nullable=False),
        sa.Column("n_prompt_tokens", sa.Integer, nullable=False),
        sa.Column("n_output_tokens", sa.Integer, nullable=False),
        sa.Column("usd", sa.Float),
        sa.Column("answer", sa.Text, nullable=False),
    )
    op.create_table(
        "llm_edit",
        sa.Column("study_id", sa.Integer, sa.ForeignKey("study.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("call", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("place", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("parent", sa.Integer, nullable=False),
        sa.Column("changes", sa.Text, nullable=False),
        sa.Column("bottleneck", sa.Text, nullable=False),
        sa.Column("predicted", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("verdict", sa.String(16), nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sa.Column("hash", sa.LargeBinary(16), nullable=False),
        sa.Column("codes", sa.LargeBinary, nullable=False),
        sa.Column("batch", sa.Integer, nullable=False),
    )
    meta = sa.table("meta", sa.column("key"), sa.column("value"))
    op.execute(sa.update(meta).where(meta.c.key == "schema_version").values(value=str(int(revision))))
