"""Models of the Hugging Face hub: safetensors, configuration and tokenizer only."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import snapshot_download

from whiflash_engine.checkpoints.fields import Fields
from whiflash_engine.checkpoints.tensors import INDEX_NAME
from whiflash_engine.errors import CheckpointError, ModelNotFoundError

PATTERNS = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]
# Folders inside hold other programs' files; "consolidated" is the same weights once more.
IGNORED = ["*/*", "consolidated*"]
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_hub_id(spec: str) -> bool:
    return _HUB_ID.fullmatch(spec) is not None


def fetch_from_hub(spec: str, *, report: Callable[[str], None]) -> Path:
    """The snapshot's folder; no network is touched if a whole one is in the hub's cache.

    Raises ModelNotFoundError if it is not cached and cannot be fetched.
    """
    try:
        folder = _snapshot(spec, local=True)
        if has_weights(folder):
            return folder
    except Exception:  # not cached: the ways to say so differ between versions of the library
        pass
    report(f"fetching {spec} from the hub")
    try:
        return _snapshot(spec, local=False)
    except Exception as error:  # network stacks differ between versions as well
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelNotFoundError(
            f"{spec!r} is neither a local folder nor cached, and the hub did not deliver it "
            f"({why}); check the name and the network, or give the path of a local folder"
        ) from error


def has_weights(folder: Path) -> bool:
    """config.json and every safetensors file that there should be."""
    if not (folder / "config.json").is_file():
        return False
    index = folder / INDEX_NAME
    if not index.is_file():
        return any(folder.glob("*.safetensors"))
    try:
        shards = Fields.read(index).sub("weight_map").values.values()
    except CheckpointError:
        return False
    return all((folder / str(shard)).is_file() for shard in shards)


def _snapshot(spec: str, *, local: bool) -> Path:
    return Path(
        snapshot_download(
            spec, allow_patterns=PATTERNS, ignore_patterns=IGNORED, local_files_only=local
        )
    )
