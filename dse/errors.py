"""What can go wrong, sorted by who has to act.

    DseError
    |-- UserError              the input is at fault: message, place and remedy, no traceback, exit code 2
    |   |-- NameUnknown        a name that is in no catalogue, with the nearest known ones
    |   |-- SpaceError         a search space or a design that contradicts itself or the problem
    |   |-- ModelError         a model description that cannot be read
    |   |-- HardwareError      a hardware description that cannot be read
    |   |-- TableError         a table of measurements that cannot be used: exit code 1
    |   |-- StudyChanged       a study of that name exists with another definition
    |   `-- StoreRefused       a database that is not ours, newer than this code, damaged or held by another process
    |-- StoreError             the storage failed while it was in use (disk full, locked): exit code 1
    |   |-- StoreUnreachable   the connection was lost; trying again may help
    |   `-- AlreadyStored      rows with these keys are there
    |-- ExecutorError          no worker is left to evaluate with: exit code 1
    `-- Interrupted            Ctrl-C or SIGTERM, state saved: exit code 130

Everything else that is raised is a bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable
from types import TracebackType


class DseError(Exception):
    """Base of all errors that this package raises on purpose."""

    exit_code = 1


class UserError(DseError):
    """An input that cannot be used.

    Args:
        message: the law that was broken, the value and the place, in one sentence.
        hint: what to do about it; printed on its own line.
    """

    exit_code = 2

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[type[UserError], tuple[str, str]]:
        # Exceptions cross process borders (Ray); the default would drop the hint.
        return type(self), (self.message, self.hint)


class NameUnknown(UserError):
    """A name that is in none of the known ones."""


class SpaceError(UserError):
    """A search space, or a value in it, that cannot exist."""


class ModelError(UserError):
    """A model description that cannot be read."""


class HardwareError(UserError):
    """A hardware description that cannot be read."""


class TableError(UserError):
    """A table of measurements that cannot be used; names its line and column."""

    exit_code = 1


class StudyChanged(UserError):
    """A study of the same name is stored with another definition."""


class StoreRefused(UserError):
    """A database that this code must not touch."""


class StoreError(DseError):
    """The storage failed while in use; what was acknowledged before is kept."""


class StoreUnreachable(StoreError):
    """The connection to the database was lost, or it is starting up or shutting down."""


class AlreadyStored(StoreError):
    """Rows with these keys are there already."""


class ExecutorError(DseError):
    """No worker is left, and none can be started; what was acknowledged before is kept."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(f"{message}\n  {hint}" if hint else message)


class Interrupted(DseError):
    """The run was stopped by a signal; all finished work is stored."""

    exit_code = 130


def tell_in_words() -> None:
    """Let an error of ours that a script does not catch end it with the message and exit code, without a traceback.

    Leaves another hook alone (debuggers, notebooks and test runners have theirs).
    """
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = _tell


def _tell(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not isinstance(error, DseError):
        sys.__excepthook__(kind, error, trace)
        return
    place, script = "", getattr(sys.modules.get("__main__"), "__file__", None)
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == script:
            place = f"{script}:{trace.tb_lineno}: "
        trace = trace.tb_next
    print(f"{place}{error}", file=sys.stderr)  # noqa: T201  the interpreter's last word
    raise SystemExit(error.exit_code)


def did_you_mean(name: str, known: Iterable[str], n: int = 3) -> str:
    """Return ``"did you mean 'a' or 'b'?"`` for the known names nearest to ``name``, or ``""``."""
    folded = {k.lower(): k for k in known}
    near = difflib.get_close_matches(name.lower(), list(folded), n=n, cutoff=0.6)
    # A part of a long name ("orin" for "jetson-agx-orin") is no close match by edit distance, yet is what was meant.
    near += [k for k in folded if k not in near and len(name) >= 3 and name.lower() in k]
    near += [k for k in folded if k not in near and len(name) >= 4 and k.startswith(name.lower()[:-1])]
    return f"did you mean {' or '.join(repr(folded[k]) for k in near[:n])}?" if near else ""


def unknown(what: str, name: str, known: Iterable[str], listing: str = "") -> NameUnknown:
    """Return the error for a ``name`` that is not among the ``known`` ones.

    Args:
        what: the kind of thing, for the message ("metric", "device").
        name: what was asked for.
        known: what there is.
        listing: the command or place that lists all of them.
    """
    known = list(known)
    hints = [did_you_mean(name, known)]
    if not hints[0] and len(known) <= 12:
        hints = [f"known: {', '.join(known)}"] if known else []
    if listing:
        hints.append(listing)
    return NameUnknown(f"unknown {what} {name!r}", join_hints(hints))


def join_hints(hints: Iterable[str]) -> str:
    """Return those hints that say something as one line; a question ends with its own mark."""
    return "; ".join(h for h in hints if h).replace("?; ", "? ")
