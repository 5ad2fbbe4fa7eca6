"""What a model of `transformers` remembers a sequence by, and whether that can be rolled back."""

from __future__ import annotations

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, DynamicCache, PretrainedConfig

from whiflash_engine.config import require

# Layers that keep every key, or could, or read another layer's: rolling back is cutting the
# end off.
_CROPPABLE = ("DynamicLayer", "DynamicSlidingWindowLayer", "DummyLayer")
# Layers whose states can be copied, alone and beside keys and values.
_COPIED = ("LinearAttentionLayer", "LinearAttentionAndFullAttentionLayer")

_PAST = "remembers what drafts that are rejected cannot be taken back out of"


def has_states(config: PretrainedConfig) -> bool:
    """Whether some of its past is a state that only goes forward; see `StateCache`.

    Raises ConfigError if it is neither that nor keys and values, one a position.
    """
    # to look a model up imports it: only then are the kinds of layers known that are its alone
    model = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    layers = DynamicCache(config=config).layers
    kinds = getattr(config.get_text_config(decoder=True), "layer_types", None)
    kinds = kinds or [config.model_type] * len(layers)
    names = [type(layer).__name__ for layer in layers]
    unknown = sorted(
        {
            str(kind)
            for kind, name in zip(kinds, names, strict=True)
            if name not in _CROPPABLE + _COPIED
        }
    )
    require(not unknown, "layer_types", unknown, f"{config.model_type} {_PAST}")
    found = any(name in _COPIED for name in names)
    # A few of the library's models do not tell it by their layers. And those with states alone
    # ignore them as soon as they are given several tokens.
    told = found or not getattr(model, "_is_stateful", False)
    alone = bool(names) and all(name == "LinearAttentionLayer" for name in names)
    require(told and not alone, "model_type", config.model_type, _PAST)
    return found
