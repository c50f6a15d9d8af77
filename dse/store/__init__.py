"""The SQL store: the truth about every study. Only this package imports SQLAlchemy.

    tables.py    the schema
    database.py  opening: URLs, pragmas, refusal of what is not ours
    failures.py  errors of the driver, told in words
    store.py     what the coordinator writes and readers read

One process writes a study (it holds the lease); readers open read-only. A batch is committed twice: when it is
proposed, and when its metrics are there. What is committed is acknowledged and survives ``kill -9``.
"""

from dse.store.database import DEFAULT_URL, open_store
from dse.store.store import HEARTBEAT_S, EvaluatorRow, Store, StoredStudy, StudyRow

__all__ = ["DEFAULT_URL", "HEARTBEAT_S", "EvaluatorRow", "Store", "StoredStudy", "StudyRow", "open_store"]
