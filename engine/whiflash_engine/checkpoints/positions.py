"""How many positions a decoder can be run at, by what its config.json says of its RoPE."""

from __future__ import annotations

from whiflash_engine.checkpoints.fields import Fields

_LONGROPE = ("longrope", "su")  # under its first name too
_ORIGINAL = "original_max_position_embeddings"


def positions(config: Fields, declared: int) -> int:
    """declared: the config's `max_position_embeddings`, which holds unless the RoPE is

    - yarn, whose factor stretches the original length, whether or not the config counts that in;
    - longrope, which turns every position by other factors once a text is longer than the
      original length. Keys that are kept, and drafts that reach past the switch, would be
      wrong, so the context ends there.

    Raises CheckpointError for a value of another type.
    """
    held = declared
    for rope in _ropes(config):
        kind = rope.text("rope_type", rope.text("type", "default"))
        if kind == "yarn":
            held = max(held, int(_original(config, rope, declared) * rope.number("factor", 1.0)))
        elif kind in _LONGROPE:
            held = min(held, _original(config, rope, declared))
    return held


def _original(config: Fields, rope: Fields, declared: int) -> int:
    """Phi-3 has it at the top, where it takes precedence."""
    return config.integer(_ORIGINAL, rope.integer(_ORIGINAL, declared))


def _ropes(config: Fields) -> list[Fields]:
    """One for all layers, or one for each kind of layer."""
    rope = config.sub("rope_scaling")
    if not rope.values:  # where a file has both, transformers takes the old spelling
        rope = config.sub("rope_parameters")
    kinds = [key for key, value in rope.values.items() if isinstance(value, dict)]
    return [rope.sub(key) for key in kinds] or [rope]
