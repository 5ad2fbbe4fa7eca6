"""Causal models of `transformers`, from a local folder: weights and geometry, or what is wrong.

Code that comes with a model is never run.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from whiflash_engine.checkpoints.fields import Fields
from whiflash_engine.checkpoints.rope import rope_config
from whiflash_engine.checkpoints.tensors import safetensors_files
from whiflash_engine.config import ModelConfig, RopeConfig
from whiflash_engine.errors import CheckpointError, ConfigError


def causal_config(folder: Path) -> ModelConfig:
    """The geometry that `HFTarget` would have, from config.json alone.

    Raises ConfigError for a family that the library does not know without code of the
    folder's own, and for a model that is no decoder.
    """
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (ValueError, KeyError, OSError, RuntimeError, ImportError, TypeError) as error:
        raise _cannot_load(folder, error) from error
    return geometry(folder, config)


def load_causal(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Weights that are missing are an error here; the library would invent them."""
    safetensors_files(folder)
    try:
        loaded: object = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            trust_remote_code=False,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    except SafetensorError as error:
        raise CheckpointError(folder, f"a safetensors file is damaged ({error})") from error
    except (ValueError, KeyError, OSError, RuntimeError, ImportError) as error:
        raise _cannot_load(folder, error) from error
    assert isinstance(loaded, tuple)
    model, info = loaded
    for problem in ("missing_keys", "mismatched_keys"):
        names = sorted(str(name) for name in info.get(problem, ()))
        if names:
            raise CheckpointError(folder, f"{problem.replace('_', ' ')}: {', '.join(names[:4])}")
    assert isinstance(model, PreTrainedModel)
    return model


def _cannot_load(folder: Path, error: Exception) -> ConfigError:
    why = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return ConfigError("model", str(folder), f"transformers cannot load it: {why}")


def geometry(folder: Path, config: PretrainedConfig) -> ModelConfig:
    """What the library calls by one name in all architectures, the rest as far as it goes."""
    try:
        return _told(folder, config)
    except (AttributeError, TypeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        why = f"its config says no usable geometry ({error})"
        raise ConfigError("model", str(folder), why) from error


def _told(folder: Path, config: PretrainedConfig) -> ModelConfig:
    text = config.get_text_config(decoder=True)
    hidden, heads = int(text.hidden_size), int(text.num_attention_heads)
    positions = int(getattr(text, "max_position_embeddings", None) or 2048)
    try:
        fields = Fields(folder / "config.json", text.to_dict())
        rope = rope_config(fields, max_positions=positions)
    except CheckpointError:
        rope = RopeConfig()
    return ModelConfig(
        vocab_size=int(text.vocab_size),
        hidden_size=hidden,
        intermediate_size=int(getattr(text, "intermediate_size", None) or 4 * hidden),
        num_layers=int(text.num_hidden_layers),
        num_heads=heads,
        num_kv_heads=int(getattr(text, "num_key_value_heads", None) or heads),
        head_dim=int(getattr(text, "head_dim", None) or hidden // heads),
        rms_norm_eps=float(getattr(text, "rms_norm_eps", None) or 1e-5),
        rope=rope,
        max_positions=positions,
        tie_embeddings=bool(getattr(text, "tie_word_embeddings", False)),
    )
