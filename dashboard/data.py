"""What the pages read: studies and results, through short read-only connections.

A study that is open in the dashboard is kept in memory, once for all visitors, and read on from where it was: a look
costs what has changed since the last one.
"""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import streamlit as st

from dse.errors import DseError
from dse.pareto import ParetoArchive
from dse.results import Results
from dse.store import DEFAULT_URL, Store, StudyRow, open_store

_STUDIES_KEPT = 4


def database_url() -> str:
    """Return the database that the server was started for."""
    return os.environ.get("DSE_DB") or DEFAULT_URL


@contextmanager
def reading() -> Iterator[Store]:
    """Open the database for reading, for a moment."""
    store = open_store(database_url(), read_only=True)
    try:
        yield store
    finally:
        store.close()


def studies() -> list[StudyRow]:
    """Return all studies, newest first."""
    with reading() as store:
        return store.studies()


@dataclass(frozen=True)
class View:
    """A study as it was at one moment, at one combination of fidelities.

    Attributes:
        results: what is stored.
        front: numbers of the feasible designs that no other one dominates, by the first objective, shape (f,).
    """

    results: Results
    front: np.ndarray

    @property
    def version(self) -> tuple[int, float, int, int]:
        """Changes whenever anything shown may have changed."""
        row = self.results.row
        return row.id, row.updated_s, len(self.results), self.results.rung


@dataclass
class _Followed:
    """A study that is being followed, with the front of its settled designs.

    ``above`` holds the views of ``view``'s moment at the other fidelities that were asked for; few designs go up, so
    their fronts are found anew.
    """

    lock: threading.Lock = field(default_factory=threading.Lock)
    view: View | None = None
    above: dict[int, View] = field(default_factory=dict)
    archive: ParetoArchive | None = None
    n_archived: int = 0

    def look(self, store: Store, name: str, rung: int) -> View:
        with self.lock:
            view = self._look(store, name)
            if not 0 < rung < len(view.results.fidelities):
                return view
            if rung not in self.above:
                results = view.results.at(rung)
                self.above[rung] = View(results, results.front(rung).numbers)
            return self.above[rung]

    def _look(self, store: Store, name: str) -> View:
        before = self.view.results if self.view else None
        results = before.refreshed(store) if before else Results.load(store, name)
        if self.view is not None and results is before:
            return self.view
        if before is None or results.row.id != before.row.id or self.archive is None:
            self.archive, self.n_archived = ParetoArchive(results.goal.n_objectives), 0
        settled = results.stored.n_settled
        fresh = np.arange(self.n_archived, settled)
        if len(fresh):
            self.archive.add(fresh, results.objectives[fresh], results.violation[fresh])
            self.n_archived = settled
        self.view, self.above = View(results, _front(results, self.archive, settled)), {}
        return self.view


def _front(results: Results, archive: ParetoArchive, settled: int) -> np.ndarray:
    """Return the front of all designs: that of the settled ones, and what the last ones add or drive out."""
    rest = np.arange(settled, len(results))
    whole = copy.copy(archive)  # an archive replaces its arrays, it does not write into them
    whole.add(rest, results.objectives[rest], results.violation[rest])
    found = np.asarray(whole.ids, dtype=np.int64)
    return found[np.lexsort((found, results.objectives[found, 0]))] if len(found) else found


@st.cache_resource(max_entries=_STUDIES_KEPT, show_spinner=False)
def _followed(url: str, name: str) -> _Followed:  # noqa: ARG001  cache key
    return _Followed()


def look(name: str, rung: int = 0) -> View:
    """Return a study as it is now, with the metrics of one of its combinations of fidelities.

    Args:
        name: of the study.
        rung: number of the combination; 0 is the one that all designs are evaluated with.

    Raises:
        DseError: there is no such study, or the database cannot be read.
    """
    with reading() as store:
        return _followed(database_url(), name).look(store, name, rung)


def request(name: str, what: str) -> None:
    """Ask the coordinator of a study to "pause", "resume" or "stop", by a short connection of its own.

    Raises:
        DseError: nobody runs it, or the database cannot be written.
    """
    store = open_store(database_url(), must_exist=True)
    try:
        store.request(name, what)
    finally:
        store.close()


def explained(error: DseError, what: str = "This cannot be shown.") -> None:
    """Show an error with what to do about it.

    Args:
        error: what happened.
        what: did not work, in words of the page.
    """
    st.error(what, icon=":material/error:")
    st.text(str(error))
