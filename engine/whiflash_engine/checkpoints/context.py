"""How much a model's context holds, for whoever asks before it is loaded."""

from __future__ import annotations

import os
from pathlib import Path

from whiflash_engine.checkpoints.fields import Fields
from whiflash_engine.checkpoints.positions import positions
from whiflash_engine.checkpoints.shipped import DEFAULT_NAME, SMOLLM2_TOOLS, UNTOUCHED_NAME
from whiflash_engine.errors import CheckpointError

EMBEDDED = ("default", DEFAULT_NAME, UNTOUCHED_NAME)


def context_length(model: str | Path | None) -> int | None:
    """Tokens, as the model's config.json has them; None if that is not on this disk or does not
    say. `model` is as for `Engine.load`. Nothing is fetched, and no weights are read."""
    config = _config(model)
    if config is None:
        return None
    try:
        fields = Fields.read(config)
        return positions(fields, fields.integer("max_position_embeddings"))
    except CheckpointError:  # whoever loads the model is told, or has what is usual of its family
        return None


def _config(model: str | Path | None) -> Path | None:
    if model is None or str(model) in EMBEDDED:
        # made for the embedded model, and here before that is fetched
        return SMOLLM2_TOOLS.eagle3 / "config.json"
    folder = os.path.expanduser(model)
    config = os.path.join(folder, "config.json")
    if os.path.isfile(config):
        return Path(config)
    return None if os.path.lexists(folder) else _cached(str(model))


def _cached(hub_id: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache  # takes a while; few models need it

    try:
        found = try_to_load_from_cache(hub_id, "config.json")
    except ValueError:  # not what an id looks like
        return None
    return Path(found) if isinstance(found, str) else None
