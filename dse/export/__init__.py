"""Exporters: a chosen design as files that another tool opens. Adding one: a module, and its line here.

    design.py     our own self-contained document
    weights/      formats of quantised weights, one module each over one table of layers

:func:`write_files` puts them on disk: inside the chosen folder, never over an existing file unless told to, each file
whole or not at all.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Final

from dse.errors import UserError
from dse.protocols import Exported

EXPORTERS: Final = {
    "design": "dse.export.design:DesignDocument",
    "compressed-tensors": "dse.export.weights.compressed_tensors:CompressedTensors",
    "llm-compressor": "dse.export.weights.compressed_tensors:LlmCompressor",
    "gptqmodel": "dse.export.weights.gptqmodel:GptqModel",
    "autoround": "dse.export.weights.autoround:AutoRound",
    "torchao": "dse.export.weights.torchao:TorchAo",
    "llama.cpp": "dse.export.weights.gguf:LlamaCpp",
    "modelopt": "dse.export.weights.modelopt:ModelOpt",
}


def write_files(exported: Exported, folder: str | Path, *, overwrite: bool = False) -> list[Path]:
    """Write the files of an export and return their paths.

    Raises:
        UserError: a name that leaves the folder, a file that exists, or a folder that cannot be written.
    """
    root = Path(folder)
    paths = [root / name for name in exported.files]
    for path in paths:
        if not path.resolve().is_relative_to(root.resolve()):
            raise UserError(f"export file {str(path)!r} would leave the folder {str(root)!r}")
        if path.exists() and not overwrite:
            raise UserError(f"{str(path)!r} exists", "--overwrite replaces it, --out names another folder")
    try:
        for path, content in zip(paths, exported.files.values(), strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(path, content)
    except OSError as error:
        raise UserError(f"{str(root)!r} cannot be written: {error.strerror}") from None
    return paths


def _write(path: Path, content: bytes) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".export-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
