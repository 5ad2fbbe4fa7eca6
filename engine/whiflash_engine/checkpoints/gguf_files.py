"""GGUF files of the llama, qwen2 and qwen3 architectures as Hugging Face names and config.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from gguf import GGUFReader, ReaderTensor
from gguf.quants import dequantize
from torch import Tensor

from whiflash_engine.checkpoints.fields import Fields
from whiflash_engine.checkpoints.gguf_config import Decoded, architecture, config_json
from whiflash_engine.checkpoints.tensors import check_tensors
from whiflash_engine.checkpoints.weights import decoder_shapes, model_config
from whiflash_engine.errors import CheckpointError

_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}  # fmt: skip
_BLOCK = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")


@dataclass(frozen=True, slots=True)
class GGUFModel:
    """config: what its config.json would say; weights: under Hugging Face names."""

    config: dict[str, object]
    weights: dict[str, Tensor]


def read_gguf(path: Path, dtype: torch.dtype) -> GGUFModel:
    """Dequantise a GGUF file.

    Raises CheckpointError if it is truncated, of another architecture or quantised in a
    way that cannot be read, or if its tensors do not fit its metadata.
    """
    try:
        reader = GGUFReader(path)
        contents = {key: field.contents for key, field in reader.fields.items()}
        stored = {tensor.name: tensor for tensor in reader.tensors}
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, OSError) as error:
        raise CheckpointError(path, f"is truncated or not a GGUF file ({error})") from error
    metadata = Fields(path, Decoded(contents))
    freqs = stored.pop("rope_freqs.weight", None)
    config = config_json(
        metadata,
        tied="output.weight" not in stored,
        vocab=_rows(path, stored),
        rope_factors=None if freqs is None else _dequantised(path, freqs),
    )
    geometry = model_config(Fields(path, config))
    heads = {"attn_q": geometry.num_heads, "attn_k": geometry.num_kv_heads}
    permuted = architecture(metadata) == "llama"
    weights: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        place = _BLOCK.fullmatch(name)
        value = _dequantised(path, tensor)
        if place is None:
            weights[_TOP.get(name, name)] = value.to(dtype)
            continue
        index, part, kind = place.groups()
        if permuted and part in heads:
            value = _half_rotation(path, name, value, heads[part])
        weights[f"model.layers.{index}.{_LAYER.get(part, part)}.{kind}"] = value.to(dtype)
    check_tensors(path, weights, decoder_shapes(geometry))
    return GGUFModel(config, weights)


def _half_rotation(path: Path, name: str, weight: Tensor, heads: int) -> Tensor:
    """Undo llama.cpp's reordering of q and k rows.

    It keeps the two halves of a rotated pair side by side (x0 x1 x0 x1); Hugging Face
    keeps them half a head apart (x0 x0 x1 x1).
    """
    if weight.shape[0] % (2 * heads):
        raise CheckpointError(path, f"tensor {name!r} does not hold {heads} heads")
    pairs = weight.view(heads, weight.shape[0] // heads // 2, 2, *weight.shape[1:])
    return pairs.transpose(1, 2).reshape(weight.shape)


def _dequantised(path: Path, tensor: ReaderTensor) -> Tensor:
    """One tensor as float32, rows first."""
    try:
        values: np.ndarray[tuple[int, ...], np.dtype[np.float32]] = dequantize(
            tensor.data, tensor.tensor_type
        )
    except (NotImplementedError, ValueError) as error:
        raise CheckpointError(path, f"tensor {tensor.name!r} cannot be read ({error})") from error
    return torch.from_numpy(np.array(values, dtype=np.float32))


def _rows(path: Path, stored: Mapping[str, ReaderTensor]) -> int:
    table = stored.get("token_embd.weight")
    if table is None:
        raise CheckpointError(path, "lacks tensor 'token_embd.weight'")
    # GGUF lists the fastest axis first.
    return int(table.shape[-1])
