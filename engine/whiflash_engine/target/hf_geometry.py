"""The geometry of a model of `transformers`: what the library calls by one name in all
architectures, the rest as far as it goes."""

from __future__ import annotations

from pathlib import Path

from transformers import PretrainedConfig

from whiflash_engine.checkpoints.fields import Fields
from whiflash_engine.checkpoints.positions import positions
from whiflash_engine.checkpoints.rope import rope_config
from whiflash_engine.config import ModelConfig, RopeConfig
from whiflash_engine.errors import CheckpointError


def geometry(folder: Path, config: PretrainedConfig) -> ModelConfig:
    """max_positions is what the RoPE allows; see `positions`.

    Raises AttributeError, TypeError, ValueError or CheckpointError for a config that does not say
    enough.
    """
    text = config.get_text_config(decoder=True)
    hidden, heads = int(text.hidden_size), int(text.num_attention_heads)
    declared = int(getattr(text, "max_position_embeddings", None) or 2048)
    fields = Fields(folder / "config.json", text.to_dict())
    try:
        rope = rope_config(fields, max_positions=declared)
    except CheckpointError:
        rope = RopeConfig()
    return ModelConfig(
        vocab_size=int(text.vocab_size),
        hidden_size=hidden,
        intermediate_size=_widest(text, "intermediate_size") or 4 * hidden,
        num_layers=int(text.num_hidden_layers),
        num_heads=heads,
        num_kv_heads=_widest(text, "num_key_value_heads") or heads,
        head_dim=_widest(text, "head_dim") or hidden // heads,
        rms_norm_eps=float(getattr(text, "rms_norm_eps", None) or 1e-5),
        rope=rope,
        max_positions=positions(fields, declared),
        tie_embeddings=bool(getattr(text, "tie_word_embeddings", False)),
    )


def _widest(config: PretrainedConfig, name: str) -> int:
    """Of the layers, where they differ; 0 if it is not told."""
    try:
        told = getattr(config, name, None)
    except RuntimeError:  # the library's word for a number that differs between layers
        layers = range(config.num_hidden_layers)
        told = [getattr(config.per_layer_config[i], name, None) for i in layers]
    return (
        max((int(one or 0) for one in told), default=0)
        if isinstance(told, list)
        else int(told or 0)
    )
