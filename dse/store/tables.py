"""The schema. Codes and metrics are packed arrays: a space may have thousands of parameters, SQLite 2,000 columns.

    meta        application and schema version, by which a foreign or newer database is recognised
    study       one row per study: its definition as JSON, state, budget, hypervolume reference, the writer's lease
    evaluator   the cost models of a study, with version, fingerprint and rung, and the layout of their packed columns
    batch       what one ask returned: proposer, number of its first design, how many were new
    design      a paid design: hash, codes, and how often its evaluation was lost with its process
    promotion   designs chosen for an upper rung, in the order of their choice, before they are evaluated there
    evaluation  the metrics of a design by one evaluator; those of rung 0 answer every design
    control     what a user asks of a running study (pause, resume, stop)
    llm_session what a run of a study could spend on calls to language models, and why it stopped asking
    llm_call    one call: prompt, parameters, usage, raw answer, outcome
    llm_edit    one proposal of an answer: what it changes and predicts, the verdict, its design's hash
    alembic_version  the last migration, for Alembic

Facts are stored, states follow from them. A design is *done*, *infeasible* or *failed* by its evaluations. Without one
it is *leased* while a living coordinator holds its study, *stale* where the coordinator ended without giving the lease
back (whoever takes over counts one attempt more, and evaluates it again), else *proposed*. The random generator of
a batch is seeded by (the study's seed, its number); proposers keep no state that the history does not give back.

Packed columns are little-endian: codes unsigned 8-bit where every parameter has at most 256 levels, else 16-bit;
metrics float64 in the evaluator's layout, which only ever grows at its end; design numbers signed 64-bit.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    Boolean,
    Column,
    Float,
    ForeignKey,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

APPLICATION: Final = "mfm-dse"
SCHEMA_VERSION: Final = 4
REVISION: Final = f"{SCHEMA_VERSION:04d}"  # of the migrations; one per schema version

metadata = MetaData()

meta = Table(
    "meta",
    metadata,
    Column("key", String(64), primary_key=True),
    Column("value", Text, nullable=False),
)

study = Table(
    "study",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(200), nullable=False, unique=True),
    Column("spec", Text, nullable=False),
    Column("state", String(16), nullable=False),
    Column("stop_reason", Text, nullable=False, default=""),
    Column("target", Integer, nullable=False, default=0),
    Column("asked", Integer, nullable=False, default=0),
    Column("reference", Text),
    Column("created_s", Float, nullable=False),
    Column("updated_s", Float, nullable=False),
    Column("lease_owner", String(200)),
    Column("lease_until_s", Float),
)

evaluator = Table(
    "evaluator",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("study_id", ForeignKey("study.id", ondelete="CASCADE"), nullable=False),
    Column("metric_group", String(32), nullable=False),
    Column("fidelity", String(32), nullable=False),
    Column("cost_model", String(200), nullable=False),
    Column("version", String(64), nullable=False),
    Column("fingerprint", String(32), nullable=False),
    Column("layout", Text, nullable=False),
    Column("rung", SmallInteger, nullable=False, server_default=text("0")),
    UniqueConstraint("study_id", "metric_group", "fidelity", "fingerprint"),
)

batch = Table(
    "batch",
    metadata,
    Column("study_id", ForeignKey("study.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("proposer", String(200), nullable=False),
    Column("n_asked", Integer, nullable=False),
    Column("n_proposed", Integer, nullable=False),
    Column("first", Integer, nullable=False, server_default=text("0")),
    Column("n_designs", Integer, nullable=False),
    Column("is_done", Boolean, nullable=False, default=False),
    Column("created_s", Float, nullable=False),
    sqlite_with_rowid=False,
)

design = Table(
    "design",
    metadata,
    Column("study_id", ForeignKey("study.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("hash", LargeBinary(16), nullable=False),
    Column("codes", LargeBinary, nullable=False),
    Column("mark", Integer),
    Column("parents", Text),
    Column("attempts", SmallInteger, nullable=False, server_default=text("0")),
    Column("last_error", Text),
    UniqueConstraint("study_id", "hash"),
    sqlite_with_rowid=False,
)

evaluation = Table(
    "evaluation",
    metadata,
    Column("study_id", ForeignKey("study.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("evaluator_id", ForeignKey("evaluator.id", ondelete="CASCADE"), primary_key=True),
    Column("status", SmallInteger, nullable=False),
    Column("excess_ratio", Float, nullable=False),
    Column("metrics", LargeBinary, nullable=False),
    Column("reason", Text),
    sqlite_with_rowid=False,
)

promotion = Table(
    "promotion",
    metadata,
    Column("study_id", ForeignKey("study.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("rung", SmallInteger, nullable=False),
    Column("n_below", Integer, nullable=False),
    Column("n_within_reach", Integer, nullable=False),
    Column("designs", LargeBinary, nullable=False),
    Column("is_done", Boolean, nullable=False, default=False),
    Column("created_s", Float, nullable=False),
    sqlite_with_rowid=False,
)

control = Table(
    "control",
    metadata,
    Column("study_id", ForeignKey("study.id", ondelete="CASCADE"), primary_key=True),
    Column("request", String(16), nullable=False),
    Column("requested_s", Float, nullable=False),
)

llm_session = Table(
    "llm_session",
    metadata,
    Column("study_id", ForeignKey("study.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("settings", Text, nullable=False),
    Column("started_s", Float, nullable=False),
    Column("stop_reason", Text, nullable=False),
)

llm_call = Table(
    "llm_call",
    metadata,
    Column("study_id", ForeignKey("study.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("session", Integer, nullable=False),
    Column("round", Integer, nullable=False),
    Column("role", String(16), nullable=False),
    Column("batch", Integer, nullable=False),
    Column("template", String(64), nullable=False),
    Column("model", String(200), nullable=False),
    Column("parameters", Text, nullable=False),
    Column("messages", Text, nullable=False),
    Column("prompt_hash", String(32), nullable=False),
    Column("reserved_tokens", Integer, nullable=False),
    Column("reserved_usd", Float),
    Column("started_s", Float, nullable=False),
    Column("outcome", String(16), nullable=False),
    Column("detail", Text, nullable=False),
    Column("latency_s", Float),
    Column("n_tries", Integer, nullable=False),
    Column("n_prompt_tokens", Integer, nullable=False),
    Column("n_output_tokens", Integer, nullable=False),
    Column("usd", Float),
    Column("answer", Text, nullable=False),
)

llm_edit = Table(
    "llm_edit",
    metadata,
    Column("study_id", ForeignKey("study.id", ondelete="CASCADE"), primary_key=True),
    Column("call", Integer, primary_key=True, autoincrement=False),
    Column("place", Integer, primary_key=True, autoincrement=False),
    Column("parent", Integer, nullable=False),
    Column("changes", Text, nullable=False),
    Column("bottleneck", Text, nullable=False),
    Column("predicted", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("verdict", String(16), nullable=False),
    Column("detail", Text, nullable=False),
    Column("hash", LargeBinary(16), nullable=False),
    Column("codes", LargeBinary, nullable=False),
    Column("batch", Integer, nullable=False),
)

alembic_version = Table("alembic_version", metadata, Column("version_num", String(32), primary_key=True))
