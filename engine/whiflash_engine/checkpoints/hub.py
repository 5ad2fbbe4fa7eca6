"""Models and their parts on the Hugging Face hub: safetensors, configuration, tokenizer only."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from huggingface_hub import snapshot_download

from whiflash_engine.checkpoints.fields import Fields
from whiflash_engine.checkpoints.tensors import INDEX_NAME, SINGLE_NAME
from whiflash_engine.errors import CheckpointError, ModelNotFoundError

Part = Literal["model", "drafter", "router"]
"""What is fetched. A drafter goes by its target's tokenizer, a router needs weights alone."""
PATTERNS = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]
# Any of them is a tokenizer that transformers can read, alone or with smaller files beside it.
TOKENIZERS = ("tokenizer.json", "*.model", "vocab.json", "vocab.txt", "tekken.json")
# Folders inside hold other programs' files; "consolidated" is the same weights once more.
IGNORED = ["*/*", "consolidated*"]
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_hub_id(spec: str) -> bool:
    return _HUB_ID.fullmatch(spec) is not None


def fetch_from_hub(spec: str, part: Part = "model", *, report: Callable[[str], None]) -> Path:
    """The snapshot's folder; no network is touched if a whole one is in the hub's cache.

    Raises ModelNotFoundError if it is not cached, or not all of it, and cannot be fetched.
    """
    cached = _cached(spec)
    missing = None if cached is None else _missing(cached, part)
    if cached is not None and missing is None:
        return cached
    report(f"fetching {spec} from the hub")
    try:
        folder = _snapshot(spec, local=False)
    except Exception as error:  # network stacks differ between versions as well
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        known = f"cached without {missing}" if missing else "neither a local folder nor cached"
        raise ModelNotFoundError(f"{spec!r} is {known}, and {_undelivered(why)}") from error
    if missing := _missing(folder, part):  # offline, the library returns whatever is cached
        said = _undelivered("it has no such file or was not asked")
        if missing == SINGLE_NAME:
            said += (
                f". If it has its weights as *.bin only: `hf download {spec} --local-dir FOLDER`, "
                "then name FOLDER, and the error tells how to convert them"
            )
        raise ModelNotFoundError(f"{spec!r} is cached without {missing}, and {said}")
    return folder


def _undelivered(why: str) -> str:
    return (
        f"the hub did not deliver it ({why}); "
        "check the name and the network, or give the path of a local folder"
    )


def missing_weights(folder: Path) -> str | None:
    """The first file that the weights of a folder lack, None if they are whole.

    Raises CheckpointError for an index that cannot be read.
    """
    index = folder / INDEX_NAME
    if not index.is_file():
        return None if any(folder.glob("*.safetensors")) else SINGLE_NAME
    shards = Fields.read(index).sub("weight_map").values.values()
    return next((str(name) for name in shards if not (folder / str(name)).is_file()), None)


def _missing(folder: Path, part: Part) -> str | None:
    """The first file that a snapshot lacks: other programs fetch only what they need of it."""
    if part != "router" and not (folder / "config.json").is_file():
        return "config.json"
    try:
        if missing := missing_weights(folder):
            return missing
    except CheckpointError:
        return INDEX_NAME
    if part != "model":
        return None
    has_tokenizer = any(any(folder.glob(pattern)) for pattern in TOKENIZERS)
    return None if has_tokenizer else TOKENIZERS[0]


def _cached(spec: str) -> Path | None:
    try:
        return _snapshot(spec, local=True)
    except Exception:  # not cached: the ways to say so differ between versions of the library
        return None


def _snapshot(spec: str, *, local: bool) -> Path:
    return Path(
        snapshot_download(
            spec, allow_patterns=PATTERNS, ignore_patterns=IGNORED, local_files_only=local
        )
    )
