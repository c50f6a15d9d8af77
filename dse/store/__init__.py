"""The SQL store: the truth about every study. Only this package imports SQLAlchemy.

    tables.py      the schema
    database.py    opening: URLs, pragmas, refusal of what is not ours
    upkeep.py      upgrading by the migrations, checking, compacting
    migrations/    from each schema version to the next (Alembic)
    connection.py  a checked database, statements compiled once
    failures.py    errors of the driver, told in words
    studies.py     studies as rows
    leases.py      who writes a study, and what users ask of it
    writing.py     batches and metrics
    calling.py     calls to language models
    store.py       all of these, and reading back
    rows.py        what is given back

One process writes a study (it holds the lease); readers open read-only. A batch is committed twice: when it is
proposed, and when its metrics are there. What is committed is acknowledged and survives ``kill -9``.
"""

from dse.store.database import DEFAULT_URL, open_store, table_names
from dse.store.leases import HEARTBEAT_S
from dse.store.rows import EvaluatorRow, Promotion, StoredStudy, StudyRow
from dse.store.store import Store

__all__ = [
    "DEFAULT_URL",
    "HEARTBEAT_S",
    "EvaluatorRow",
    "Promotion",
    "Store",
    "StoredStudy",
    "StudyRow",
    "open_store",
    "table_names",
]
