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

    Raises AttributeError, TypeError or ValueError for a config that does not say enough.
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
        intermediate_size=_widest(getattr(text, "intermediate_size", None)) or 4 * hidden,
        num_layers=int(text.num_hidden_layers),
        num_heads=heads,
        num_kv_heads=int(getattr(text, "num_key_value_heads", None) or heads),
        head_dim=int(getattr(text, "head_dim", None) or hidden // heads),
        rms_norm_eps=float(getattr(text, "rms_norm_eps", None) or 1e-5),
        rope=rope,
        max_positions=positions(fields, declared),
        tie_embeddings=bool(getattr(text, "tie_word_embeddings", False)),
    )


def _widest(size: int | list[int] | None) -> int:
    """Some write it layer by layer."""
    return max(size, default=0) if isinstance(size, list) else int(size or 0)
