"""Make a model folder from a GGUF file, once, safely beside others who do the same."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer

from whiflash_engine.checkpoints.gguf_files import read_gguf
from whiflash_engine.checkpoints.lora import Lora, merge_lora
from whiflash_engine.errors import CheckpointError

# Part of every folder's name: raise it when the same inputs give another folder.
UNPACK_VERSION = "1"
MARKER = "whiflash.json"
TEMPLATE = "chat_template.jinja"


def is_whole(folder: Path) -> bool:
    """Whether the marker is there and every file has the size it was written with."""
    try:
        sizes = json.loads((folder / MARKER).read_text(encoding="utf-8"))["files"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def make_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Fill `folder` by `write(empty folder)`: all of it appears at once, or nothing.

    Two processes may do this at a time: both write aside, one of them comes first, and the
    other takes the first one's result. What was there but damaged is replaced.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        fresh = aside / "new"
        fresh.mkdir()
        write(fresh)
        sizes = {path.name: path.stat().st_size for path in sorted(fresh.iterdir())}
        (fresh / MARKER).write_text(json.dumps({"files": sizes}, indent=1), encoding="utf-8")
        for path in fresh.iterdir():
            with suppress(OSError):  # not every file system has modes
                path.chmod(0o644)  # safetensors keeps its files to their owner
        for attempt in range(3):
            try:
                os.replace(fresh, folder)
                return
            except OSError:
                # somebody else's folder is there
                if is_whole(folder):
                    return
                if attempt == 2:
                    raise
                _move_away(folder, aside / f"old{attempt}")
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _move_away(folder: Path, place: Path) -> None:
    with suppress(FileNotFoundError):  # the other process was faster
        os.replace(folder, place)


def write_model(gguf: Path, target: Path, *, lora: Lora | None, template: Path | None) -> None:
    """config.json, bfloat16 model.safetensors, tokenizer and chat template into `target`.

    lora: merged into the weights. template: used instead of the file's own.
    """
    model = read_gguf(gguf, torch.bfloat16)
    weights = model.weights if lora is None else merge_lora(lora, model.weights)
    config = {**model.config, "dtype": "bfloat16"}
    (target / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    save_file(
        {name: weight.contiguous() for name, weight in weights.items()},
        target / "model.safetensors",
        metadata={"format": "pt"},
    )
    _write_tokenizer(gguf, target)
    if template is not None:
        shutil.copyfile(template, target / TEMPLATE)


def _write_tokenizer(gguf: Path, target: Path) -> None:
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            gguf.parent, gguf_file=gguf.name, local_files_only=True, trust_remote_code=False
        )
    except (ValueError, KeyError, TypeError, IndexError, OSError, AttributeError) as error:
        raise CheckpointError(gguf, f"its tokenizer cannot be read ({error})") from error
    tokenizer.save_pretrained(target)
