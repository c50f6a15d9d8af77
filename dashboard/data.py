"""What the pages read: studies and results, through short read-only connections, cached by the last change."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import streamlit as st

from dse.errors import DseError
from dse.results import Results
from dse.store import DEFAULT_URL, Store, StudyRow, open_store


def database_url() -> str:
    """Return the database that the server was started for."""
    return os.environ.get("DSE_DB") or DEFAULT_URL


@contextmanager
def _reading() -> Iterator[Store]:
    store = open_store(database_url(), read_only=True)
    try:
        yield store
    finally:
        store.close()


def studies() -> list[StudyRow]:
    """Return all studies, newest first."""
    with _reading() as store:
        return store.studies()


def results(name: str) -> Results:
    """Return the results of a study, loaded again only when it has changed.

    Raises:
        DseError: there is no such study, or the database cannot be read.
    """
    with _reading() as store:
        row = store.study(name)
    return _cached_results(database_url(), name, row.updated_s, row.n_designs)


@st.cache_resource(max_entries=4, show_spinner="reading the study")
def _cached_results(url: str, name: str, updated_s: float, n_designs: int) -> Results:  # noqa: ARG001  cache key
    with _reading() as store:
        return Results.load(store, name)


def explained(error: DseError) -> None:
    """Show an error with what to do about it."""
    st.error("This cannot be shown.", icon=":material/error:")
    st.text(str(error))
