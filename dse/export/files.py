"""Puts files on disk: inside the chosen folder, never over an existing one unless told to, each whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from dse.errors import UserError
from dse.protocols import Exported


def write_files(exported: Exported, folder: str | Path, *, overwrite: bool = False) -> list[Path]:
    """Write the files of an export and return their paths. Nothing is written unless all names can be.

    Raises:
        UserError: a name that leaves the folder, a file that exists, or a folder that cannot be written.
    """
    root = Path(folder)
    paths = [root / name for name in exported.files]
    for path in paths:
        if not _resolved(path).is_relative_to(_resolved(root)):
            raise UserError(f"export file {str(path)!r} would leave the folder {str(root)!r}")
        _check_free(path, overwrite)
    try:
        for path, content in zip(paths, exported.files.values(), strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(path, lambda temporary, content=content: temporary.write_bytes(content))  # type: ignore[misc]
    except OSError as error:
        raise UserError(f"{str(root)!r} cannot be written: {error.strerror}") from None
    return paths


def write_whole(path: Path, write: Callable[[Path], object], *, overwrite: bool = False) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then put it in its place at once.

    Raises:
        UserError: the file exists, its folder does not, or it cannot be written.
    """
    _check_free(path, overwrite)
    if not path.parent.is_dir():
        raise UserError(f"the folder {str(path.parent)!r} does not exist", "create it first")
    try:
        _write(path, write)
    except OSError as error:
        raise UserError(f"{str(path)!r} cannot be written: {error.strerror}") from None


def _check_free(path: Path, overwrite: bool) -> None:
    try:
        if path.is_dir():
            raise UserError(f"{str(path)!r} is a folder", "name a file")
        if (path.exists() or path.is_symlink()) and not overwrite:
            raise UserError(f"{str(path)!r} exists", "--overwrite replaces it, another name or --out leaves it alone")
    except (OSError, ValueError) as error:
        raise UserError(f"{str(path)[:200]!r} is no name for a file: {error}") from None


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{str(path)[:200]!r} is no name for a file: {error}") from None


def _write(path: Path, write: Callable[[Path], object]) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".export-")
    temporary = Path(name)
    try:
        # Whoever may read files made here may read this one: a temporary file is for its owner alone.
        os.fchmod(handle, 0o666 & ~_umask())
        os.close(handle)
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
