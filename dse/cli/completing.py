"""What the tab key offers beside commands and options: studies of a database, formats, models, hardware.

A shell puts an offered word into the line as it is, and runs it with the line. A study's name may be any text, also of
another's making, so names are offered only if no shell gives any of their characters a meaning; the others can be
typed in quotes. Where there is no database, or it cannot be read, nothing is offered and nothing is said.
"""

from __future__ import annotations

import re
from typing import Any, Final

import click
from click.shell_completion import CompletionItem

from dse.errors import DseError

_PLAIN: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")
_DOCUMENTS: Final = "file"  # click's word for "what the shell knows of files"


def study_argument(command: Any) -> Any:
    """Add the argument STUDY, completed from the database of ``--db`` or DSE_DB."""
    return click.argument("study", shell_complete=study_names)(command)


def study_names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the stored studies whose names begin so, newest first."""
    del param
    from dse.store import open_store
    from dse.study import database

    try:
        store = open_store(database(ctx.params.get("db")), read_only=True)
    except DseError:
        return []
    try:
        names = [row.name for row in store.studies()]
    except DseError:
        return []
    finally:
        store.close()
    return _items(names, incomplete)


def studies_and_documents(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the stored studies, and files where none begins so."""
    return study_names(ctx, param, incomplete) or [CompletionItem(incomplete, type=_DOCUMENTS)]


def formats(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return what a design or a study can be exported as."""
    del ctx, param
    from dse import catalogue
    from dse.cli.exchanging import WHOLE

    return _items([*catalogue.listing("exporter"), *WHOLE], incomplete)


def models(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the models of the catalogue, and files where none begins so."""
    del ctx, param
    from dse.model import model_names

    return _items(model_names(), incomplete) or [CompletionItem(incomplete, type=_DOCUMENTS)]


def hardware(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the hardware of the catalogue, and files where none begins so."""
    del ctx, param
    from dse.hardware import hardware_names

    return _items(hardware_names(), incomplete) or [CompletionItem(incomplete, type=_DOCUMENTS)]


def _items(names: Any, incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(name) for name in names if name.startswith(incomplete) and _PLAIN.fullmatch(name)]
