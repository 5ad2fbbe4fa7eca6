"""What a model of `transformers` remembers of a sequence, and whether that can be rolled back."""

from __future__ import annotations

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, DynamicCache, PretrainedConfig

from whiflash_engine.config import require

# Layers that keep every key, or could, or read another layer's: rolling back is cutting the
# end off.
_CROPPABLE = ("DynamicLayer", "DynamicSlidingWindowLayer", "DummyLayer")

_STATE = "keeps a recurrent or compressed state: drafts that are rejected cannot be taken back"


class HFCache:
    """A `DynamicCache` of plain layers under our verbs.

    Sliding-window layers get plain layers as well: a window that forgets cannot be rolled
    back, and the model's own mask hides what lies outside of it.
    """

    def __init__(self) -> None:
        self.inner = DynamicCache()

    @property
    def length(self) -> int:
        return int(self.inner.get_seq_length())

    @property
    def nbytes(self) -> int:
        return sum(
            layer.keys.nbytes + layer.values.nbytes
            for layer in self.inner.layers
            if layer.is_initialized
        )

    def crop(self, length: int) -> None:
        """After a pass that broke off, layers differ in length, and keys from values: each
        is cut to what it shall have, where the library's crop takes as much from all."""
        for layer in self.inner.layers:
            if layer.is_initialized:
                layer.keys = layer.keys[..., :length, :]
                layer.values = layer.values[..., :length, :]


def refuse_stateful(config: PretrainedConfig) -> None:
    """ConfigError for a model whose past is more than keys and values, one a position."""
    # to look a model up imports it: only then are the kinds of layers known that are its alone
    model = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    layers = DynamicCache(config=config).layers
    kinds = getattr(config.get_text_config(decoder=True), "layer_types", None)
    uncroppable = sorted(
        {
            str(kind)
            for kind, layer in zip(kinds or [config.model_type] * len(layers), layers, strict=True)
            if type(layer).__name__ not in _CROPPABLE
        }
    )
    require(not uncroppable, "layer_types", uncroppable, f"{config.model_type} {_STATE}")
    # a few of the library's models do not tell it by their layers
    require(not getattr(model, "_is_stateful", False), "model_type", config.model_type, _STATE)
