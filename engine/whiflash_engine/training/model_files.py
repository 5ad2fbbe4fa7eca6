"""Reading and writing the files of a model folder, with errors that name the file."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from whiflash_engine.errors import CheckpointError

JsonValue = dict[str, "JsonValue"] | list["JsonValue"] | str | int | float | bool | None


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Write atomically: a reader sees the old file or the new one, never half of one.

    Yields the temporary path to write to. CheckpointError, naming `path`, where the disk is
    full or the folder cannot be written; what was there before stays.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or error
        raise CheckpointError(
            path, f"cannot be written ({why}); what was there before is intact"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_json(path: Path, values: Mapping[str, object]) -> None:
    with writing(path) as place:
        text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
        place.write_text(text, encoding="utf-8")


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a .safetensors file atomically."""
    contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    with writing(path) as place:
        save_file(contiguous, place, metadata={"format": "pt", **(metadata or {})})


def fingerprint(folder_or_file: Path) -> str:
    """sha256 over the model's weight files: which target a corpus or a drafter belongs to."""
    files = [folder_or_file]
    if folder_or_file.is_dir():
        files = sorted(folder_or_file.glob("*.safetensors"))
    if not files:
        raise CheckpointError(folder_or_file, "holds no .safetensors file")
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
