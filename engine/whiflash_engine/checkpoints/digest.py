"""SHA-256 of files and weights, the only proof of identity used here."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from whiflash_engine.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

_END_BYTES = 1 << 16


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


def model_digest(folder: Path) -> str:
    """Tells a model from others of its name: of its configuration and the ends of its weights."""
    found = hashlib.sha256((folder / "config.json").read_bytes())
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _END_BYTES))
            found.update(file.read())
    return found.hexdigest()[:12]


def drafters_digest(drafters: Iterable[Mapping[str, Tensor]]) -> str:
    """Tells drafters from others: of what fuses the features, the first layer of each."""
    found = hashlib.sha256()
    for weights in drafters:
        found.update(weights["fc.weight"].float().numpy(force=True).tobytes())
    return found.hexdigest()[:12]
