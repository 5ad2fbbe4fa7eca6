"""What a model of `transformers` remembers a sequence by, and whether that can be rolled back."""

from __future__ import annotations

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, DynamicCache, PretrainedConfig

from whiflash_engine.config import require

# Layers that keep every key, or could, or read another layer's: rolling back is cutting the
# end off.
_CROPPABLE = ("DynamicLayer", "DynamicSlidingWindowLayer", "DummyLayer")
# Layers whose states can be copied, alone and beside keys and values.
_COPIED = ("LinearAttentionLayer", "LinearAttentionAndFullAttentionLayer")
# Families of which a pass of several tokens takes the states up where they stand. In the library's
# Mamba, Jamba, Zamba and RecurrentGemma every such pass begins anew.
_TAKEN_UP = (
    "bamba", "falcon_h1", "granitemoehybrid", "kimi_linear", "lfm2", "lfm2_moe", "lfm3",
    "nemotron_h", "olmo_hybrid", "qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text",
    "qwen3_next", "zaya",
)  # fmt: skip

_PAST = "remembers what drafts that are rejected cannot be taken back out of"


def is_state(layer: object) -> bool:
    """Whether a layer of a `Cache` has a state that only goes forward."""
    return type(layer).__name__ in _COPIED


def has_states(config: PretrainedConfig) -> bool:
    """Whether some of its past is a state that only goes forward; see `StateCache`.

    Raises ConfigError if it is neither that nor keys and values, one a position.
    """
    # to look a model up imports it: only then are the kinds of layers known that are its alone
    model = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    family, layers = str(config.model_type), DynamicCache(config=config).layers
    kinds = getattr(config.get_text_config(decoder=True), "layer_types", None)
    known = (*_CROPPABLE, *(_COPIED if family in _TAKEN_UP else ()))
    names = [type(layer).__name__ for layer in layers]
    told = zip(kinds or [family] * len(layers), names, strict=True)
    unknown = sorted({str(kind) for kind, name in told if name not in known})
    require(not unknown, "layer_types", unknown, f"{family} {_PAST}")
    found = any(name in _COPIED for name in names)
    # a few of the library's models do not tell it by their layers
    require(found or not getattr(model, "_is_stateful", False), "model_type", family, _PAST)
    # positions are counted by the keys
    counted = not names or any(name not in (*_COPIED[:1], "DummyLayer") for name in names)
    require(counted, "layer_types", sorted(set(kinds or [family])), f"{family} has no attention")
    return found
