"""Designs of a study as one table: CSV for spreadsheets, Parquet for data frames."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from dse.errors import UserError
from dse.export.files import write_whole
from dse.results import Results

if TYPE_CHECKING:
    import pandas as pd

# What spreadsheets begin a formula with, the full-width forms of these, and characters that some skip in front of them.
_FORMULA_STARTS: Final = ("=", "+", "-", "@", "＝", "＋", "－", "＠", "\t", "\r", "\n", "\0")


def write_table(results: Results, path: Path, kind: str, *, front_only: bool = False, overwrite: bool = False) -> int:
    """Write all designs, or those of the front, whole or not at all, and return how many.

    A spreadsheet reads a cell that begins with =, +, - or @ as a formula: in CSV such text gets an apostrophe in front.
    Numbers are written as they are, in full precision.

    Args:
        results: of the study.
        path: the file.
        kind: "csv" or "parquet".
        front_only: leave out what is not on the front.
        overwrite: replace a file that exists.

    Raises:
        UserError: the file exists, cannot be written, or Parquet has nobody to write it.
    """
    if front_only:
        front = results.front()
        frame = front.results.table().loc[front.numbers]
    else:
        frame = results.table()

    def write(temporary: Path) -> None:
        if kind == "csv":
            _defused(frame).to_csv(temporary)
        else:
            frame.to_parquet(temporary)

    try:
        write_whole(path, write, overwrite=overwrite)
    except ImportError:
        raise UserError("Parquet needs pyarrow, which is not installed", "pip install 'mfm-dse[dashboard]'") from None
    return len(frame)


def _defused(frame: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    def safe(value: object) -> object:
        return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA_STARTS) else value

    safe_frame = frame.rename(columns=safe)
    for name in safe_frame:
        if not pd.api.types.is_numeric_dtype(safe_frame[name]):
            safe_frame[name] = safe_frame[name].astype(object).map(safe)
    return safe_frame
