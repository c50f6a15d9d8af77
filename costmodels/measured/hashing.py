"""Hashes of files and folders: what a measured profile remembers of the model that it is about."""

from __future__ import annotations

import hashlib
from pathlib import Path


def hash_of(path: Path) -> str:
    """Return a hash of a file, or of the files of a folder."""
    digest = hashlib.blake2b(digest_size=16)
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    for one in files:
        digest.update(f"{one.relative_to(path)}\0".encode())
        with one.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()
