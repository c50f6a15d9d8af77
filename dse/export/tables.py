"""All designs of a study as one table: CSV for spreadsheets, Parquet for data frames."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from dse.errors import UserError
from dse.results import Results

if TYPE_CHECKING:
    import pandas as pd

_FORMULA_STARTS: Final = ("=", "+", "-", "@", "\t", "\r")


def write_table(results: Results, path: Path, kind: str, *, overwrite: bool = False) -> int:
    """Write all designs, whole or not at all, and return how many.

    A spreadsheet reads a cell that begins with =, +, - or @ as a formula: in CSV such text gets an apostrophe in front.
    Numbers are written as they are, in full precision.

    Args:
        results: of the study.
        path: the file.
        kind: "csv" or "parquet".
        overwrite: replace a file that exists.

    Raises:
        UserError: the file exists, cannot be written, or Parquet has nobody to write it.
    """
    if path.exists() and not overwrite:
        raise UserError(f"{str(path)!r} exists", "--overwrite replaces it")
    if not path.parent.is_dir():
        raise UserError(f"the folder {str(path.parent)!r} does not exist", "create it first")
    frame = results.table()
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".export-")
    os.close(handle)
    try:
        if kind == "csv":
            _defused(frame).to_csv(temporary)
        else:
            frame.to_parquet(temporary)
        Path(temporary).replace(path)
    except ImportError:
        raise UserError("Parquet needs pyarrow, which is not installed", "pip install 'mfm-dse[dashboard]'") from None
    except OSError as error:
        raise UserError(f"{str(path)!r} cannot be written: {error.strerror}") from None
    finally:
        Path(temporary).unlink(missing_ok=True)
    return len(frame)


def _defused(frame: pd.DataFrame) -> pd.DataFrame:
    def safe(value: object) -> object:
        return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA_STARTS) else value

    safe_frame = frame.rename(columns=safe)
    for name in safe_frame:
        if safe_frame[name].dtype == object or str(safe_frame[name].dtype) == "str":
            safe_frame[name] = safe_frame[name].map(safe)
    return safe_frame
