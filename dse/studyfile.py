"""Study files: plain Python with a study at module level. To run one is to run its author's code."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from runpy import run_path
from typing import TYPE_CHECKING

from dse.errors import UserError, unknown

if TYPE_CHECKING:
    from dse.study import Study


def load_study(file: str | Path, name: str | None = None) -> Study:
    """Return the study that a file defines.

    The file is run with ``__name__`` set to "dse_study", so its ``if __name__ == "__main__":`` part is left out; its
    folder comes first on the import path, as when Python runs it.

    Args:
        file: path of the file.
        name: which study, where it has several.

    Raises:
        UserError: no such file, it raises, or it has no study, or several and none is named.
    """
    from dse.study import Study

    path = Path(file)
    if not path.is_file():
        raise UserError(f"there is no study file {str(file)!r}", "name a Python file that has a Study at module level")
    sys.path.insert(0, str(path.resolve().parent))
    try:
        names = run_path(str(path), run_name="dse_study")
    except UserError as error:
        raise type(error)(f"{_place(path)}: {error.message}", error.hint) from error
    except Exception as error:
        text = str(error) or "(no message)"
        raise UserError(f"{_place(path)}: {type(error).__name__}: {text}", "the study file itself failed") from error
    finally:
        sys.path.pop(0)
    studies = {value.name: value for value in names.values() if isinstance(value, Study)}
    if not studies:
        raise UserError(f"{path} has no Study at module level", "write study = Study(...)")
    if name is not None:
        if name not in studies:
            raise unknown(f"study in {path}", name, studies)
        return studies[name]
    if len(studies) > 1:
        raise UserError(f"{path} has {len(studies)} studies: {', '.join(studies)}", "choose one with --study NAME")
    return next(iter(studies.values()))


def _place(path: Path) -> str:
    """Return file and line of the innermost frame in the study file, for the exception being handled."""
    error = sys.exc_info()[1]
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f"{path}, line {error.lineno}"
    frames = traceback.extract_tb(sys.exc_info()[2])
    lines = [f.lineno for f in frames if f.filename == str(path)]
    return f"{path}, line {lines[-1]}" if lines else str(path)
