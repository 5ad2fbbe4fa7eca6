"""Rotary settings as Hugging Face writes them, old (`rope_scaling`) and new spelling."""

from __future__ import annotations

import math
from typing import Literal

from whiflash_engine.checkpoints.fields import Fields
from whiflash_engine.config import RopeConfig
from whiflash_engine.errors import ConfigError

DEFAULT_THETA = 10_000.0

_KINDS: dict[str, Literal["default", "linear", "llama3", "yarn"]] = {
    "default": "default", "linear": "linear", "llama3": "llama3", "yarn": "yarn",
}  # fmt: skip


def rope_config(config: Fields, *, max_positions: int) -> RopeConfig:
    """The rotary settings of a config.json.

    transformers 5 keeps everything in `rope_parameters`; before it, `rope_theta` stood at
    the top and `rope_scaling` held the rest. The theta is the file's own: a drafter without
    one means 10000, whatever its target uses.
    Raises CheckpointError for a kind that none of our runners computes.
    """
    scaling = config.sub("rope_scaling")
    if not scaling.values:  # where a file has both, transformers takes the old spelling
        scaling = config.sub("rope_parameters")
    name = scaling.text("rope_type", scaling.text("type", "default"))
    kind = _KINDS.get(name)
    if kind is None:
        raise scaling.fail("rope_type", f"{name!r} is not one of {', '.join(_KINDS)}")
    for partial in (scaling, config):
        if partial.number("partial_rotary_factor", 1.0) != 1.0:
            raise partial.fail("partial_rotary_factor", "only the whole head can be rotated")
    theta = scaling.number("rope_theta", config.number("rope_theta", DEFAULT_THETA))
    original = scaling.integer("original_max_position_embeddings", max_positions)
    if original < 1:
        own = scaling.has("original_max_position_embeddings")
        place, key = (scaling, "original_") if own else (config, "")
        raise place.fail(f"{key}max_position_embeddings", f"{original} is less than 1")
    try:
        return RopeConfig(
            theta=theta,
            kind=kind,
            factor=_factor(scaling, kind, max_positions / original),
            low_freq_factor=scaling.number("low_freq_factor", 1.0),
            high_freq_factor=scaling.number("high_freq_factor", 4.0),
            original_max_position=original,
            beta_fast=scaling.number("beta_fast", 32.0),
            beta_slow=scaling.number("beta_slow", 1.0),
            attention_factor=_attention_factor(scaling),
            truncate=scaling.flag("truncate", True),
        )
    except ConfigError as error:
        raise scaling.fail("rope", str(error)) from error


def _factor(scaling: Fields, kind: str, ratio: float) -> float:
    """yarn without a factor stretches to the whole context; the others must name theirs."""
    if kind == "default":
        return 1.0
    return scaling.number("factor", ratio if kind == "yarn" else None)


def _attention_factor(scaling: Fields) -> float | None:
    """DeepSeek's spelling of yarn's temperature: mscale over mscale_all_dim.

    m(s, c) = 0.1 c ln s + 1 (YaRN, arXiv 2309.00071, eq. 22, with DeepSeek-V2's factor c).
    """
    if scaling.has("attention_factor"):
        return scaling.number("attention_factor")
    upper, lower = scaling.number("mscale", 0.0), scaling.number("mscale_all_dim", 0.0)
    factor = scaling.number("factor", 1.0)
    if not upper or not lower or factor <= 1:
        return None
    log = 0.1 * math.log(factor)
    return (log * upper + 1.0) / (log * lower + 1.0)
