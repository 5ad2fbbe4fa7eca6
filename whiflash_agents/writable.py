"""Whether a result could be written, asked before it is worked for."""

from __future__ import annotations

import tempfile
from pathlib import Path

from whiflash_engine.errors import ConfigError


def require_writable(field: str, path: Path) -> None:
    """ConfigError, naming the field, where nothing can be written: into a folder, over a file
    that is there, or as a new file. Leaves no file behind, and changes none."""
    try:
        if path.exists() and not path.is_dir():
            path.open("ab").close()
        else:
            tempfile.TemporaryFile(dir=path if path.is_dir() else path.parent).close()
    except OSError as error:
        raise unwritable(field, path, error) from error


def unwritable(field: str, path: Path, error: OSError) -> ConfigError:
    return ConfigError(field, str(path), f"cannot be written ({error.strerror or error})")
