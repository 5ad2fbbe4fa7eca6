"""SHA-256 of files, the only proof of identity used here."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from whiflash_engine.errors import CheckpointError


def file_sha256(path: Path) -> str:
    """Hex digest of a file's bytes. Raises CheckpointError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(path, f"cannot be read ({error.strerror})") from error


def require_sha256(path: Path, expected: str) -> None:
    """Raise CheckpointError unless the file has the digest that was pinned for it."""
    found = file_sha256(path)
    if found != expected:
        raise CheckpointError(
            path,
            f"checksum mismatch: sha256 is {found[:12]}.., expected {expected[:12]}..; "
            "the file is damaged or not the one that was published",
        )


def short_sha256(parts: Iterable[str]) -> str:
    """12 hex digits that change when any part does."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()[:12]
