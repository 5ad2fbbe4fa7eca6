"""GGUF metadata -> the config.json that Hugging Face would have written."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from whiflash_engine.checkpoints.fields import Fields
from whiflash_engine.errors import CheckpointError

_CLASSES = {
    "llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM",
}  # fmt: skip


class Decoded(Mapping[str, object]):
    """The key-value part, decoded when asked for: a vocabulary takes a while."""

    def __init__(self, contents: Mapping[str, Callable[[], object]]) -> None:
        self._contents = contents

    def __getitem__(self, key: str) -> object:
        return self._contents[key]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._contents)

    def __len__(self) -> int:
        return len(self._contents)


def architecture(metadata: Fields) -> str:
    value = metadata.get("general.architecture")
    if not isinstance(value, str) or value not in _CLASSES:
        known = ", ".join(_CLASSES)
        raise CheckpointError(metadata.path, f"architecture {value!r} is not one of {known}")
    return value


def config_json(
    metadata: Fields, *, tied: bool, vocab: int, rope_factors: Tensor | None
) -> dict[str, object]:
    """tied: the file has no output matrix. vocab: rows of the embedding.

    rope_factors: (head_dim / 2,) divisors of the frequencies, how Llama 3.1's long context
    is stored. Raises CheckpointError for a key that is missing or not supported.
    """
    kind = architecture(metadata)
    hidden = metadata.integer(f"{kind}.embedding_length")
    heads = metadata.integer(f"{kind}.attention.head_count")
    if heads < 1:
        raise CheckpointError(metadata.path, f"{kind}.attention.head_count is {heads}")
    head_dim = metadata.integer(f"{kind}.attention.key_length", hidden // heads)
    rotated = metadata.integer(f"{kind}.rope.dimension_count", head_dim)
    if rotated != head_dim:
        raise CheckpointError(metadata.path, f"rotates {rotated} of {head_dim} head dimensions")
    theta = metadata.number(f"{kind}.rope.freq_base", 10_000.0)
    config: dict[str, object] = {
        "architectures": [_CLASSES[kind]],
        "model_type": kind,
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": metadata.integer(f"{kind}.feed_forward_length"),
        "num_hidden_layers": metadata.integer(f"{kind}.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": metadata.integer(f"{kind}.attention.head_count_kv", heads),
        "head_dim": head_dim,
        "hidden_act": "silu",
        # stored in float32: 1e-5 comes back as 9.999999747e-06
        "rms_norm_eps": float(f"{metadata.number(f'{kind}.attention.layer_norm_rms_epsilon'):.6g}"),
        "max_position_embeddings": metadata.integer(f"{kind}.context_length"),
        "tie_word_embeddings": tied,
        "rope_theta": theta,
    }
    scaling = _rope_scaling(metadata, kind, theta, head_dim, rope_factors)
    if scaling is not None:
        config["rope_scaling"] = scaling
    for name in ("bos", "eos", "padding"):
        key = f"tokenizer.ggml.{name}_token_id"
        if metadata.has(key):
            config[f"{name.removesuffix('ding')}_token_id"] = metadata.integer(key)
    return config


def _rope_scaling(
    metadata: Fields, kind: str, theta: float, head_dim: int, factors: Tensor | None
) -> dict[str, object] | None:
    if factors is not None:
        return _llama3_scaling(metadata.path, theta, head_dim, factors)
    name = metadata.get(f"{kind}.rope.scaling.type")
    if name in (None, "none"):
        return None
    if name not in ("linear", "yarn"):
        raise CheckpointError(metadata.path, f"rope scaling {name!r} is not supported")
    scaling: dict[str, object] = {
        "rope_type": name,
        "factor": metadata.number(f"{kind}.rope.scaling.factor"),
    }
    original = f"{kind}.rope.scaling.original_context_length"
    if metadata.has(original):
        scaling["original_max_position_embeddings"] = metadata.integer(original)
    return scaling


def _llama3_scaling(path: Path, theta: float, head_dim: int, factors: Tensor) -> dict[str, object]:
    """Llama 3.1's four numbers, read back from the divisors that follow from them.

    Only the stretch varies between releases (8, 32); the result is compared with the file.
    """
    stretch, low, high, original = float(factors.max()), 1.0, 4.0, 8192
    wavelength = 2 * math.pi * theta ** (torch.arange(0, head_dim, 2).double() / head_dim)
    smooth = ((original / wavelength - low) / (high - low)).clamp(0, 1)
    expected = 1 / ((1 - smooth) / stretch + smooth)
    if factors.shape != expected.shape or not torch.allclose(factors.double(), expected, rtol=1e-3):
        raise CheckpointError(path, "tensor 'rope_freqs.weight' is not Llama 3.1's rope scaling")
    return {
        "rope_type": "llama3", "factor": stretch, "low_freq_factor": low,
        "high_freq_factor": high, "original_max_position_embeddings": original,
    }  # fmt: skip
