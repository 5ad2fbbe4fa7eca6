"""EAGLE-3 checkpoints of every published layout, brought into one form.

Sources: SafeAILab/EAGLE, SpecForge, AngelSlim and NVIDIA ModelOpt (flat config, `midlayer.*`)
and vllm-project/speculators (nested config, `layers.0.*`). EAGLE-3 itself: arXiv 2503.01840.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from whiflash_engine.checkpoints.draft_files import DraftFiles
from whiflash_engine.checkpoints.eagle3_config import Eagle3Config, eagle3_config
from whiflash_engine.checkpoints.fields import Fields
from whiflash_engine.checkpoints.tensors import Shape
from whiflash_engine.config import ModelConfig
from whiflash_engine.errors import CheckpointError

__all__ = ["Eagle3Config", "eagle3_shapes", "load_eagle3"]

_OLD_NORMS = {
    "aux_norm_low": "fc_norm.0",
    "aux_norm_mid": "fc_norm.1",
    "aux_norm_high": "fc_norm.2",
}


def load_eagle3(folder: Path, target: ModelConfig) -> tuple[Eagle3Config, dict[str, Tensor]]:
    """Read a head and check that it fits the target.

    Tensors come under canonical names, in their stored dtype: `fc.weight`, `midlayer.*`,
    `norm.weight`, where present `input_norm.weight`, `fc_norm.{i}.weight`,
    `embed_tokens.weight` and `lm_head.weight` (else the target's are meant), and
    `draft_ids`, absolute int64 target ids, where the vocabulary is reduced.
    Raises CheckpointError for a head of another hidden size or vocabulary, and for any
    tensor that is missing, misshapen or left over.
    """
    fields = Fields.read(folder / "config.json")
    files = DraftFiles.read(folder)
    files.require_kind("EAGLE-3")
    files = replace(files, weights=_canonical(folder, files.weights))
    config = eagle3_config(fields, target, files)
    return config, files.checked(
        eagle3_shapes(config), config.vocab_size, config.draft_vocab_size, target.vocab_size
    )


def eagle3_shapes(config: Eagle3Config) -> tuple[dict[str, Shape], dict[str, Shape]]:
    """(required, optional) tensors of a head by canonical name."""
    hidden, inner, aux = config.hidden_size, config.intermediate_size, len(config.aux)
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    required: dict[str, Shape] = {
        "fc.weight": (hidden, aux * config.target_hidden_size),
        "norm.weight": (hidden,),
        "midlayer.input_layernorm.weight": (hidden,),
        "midlayer.hidden_norm.weight": (hidden,),
        "midlayer.post_attention_layernorm.weight": (hidden,),
        "midlayer.self_attn.q_proj.weight": (q, 2 * hidden),
        "midlayer.self_attn.k_proj.weight": (kv, 2 * hidden),
        "midlayer.self_attn.v_proj.weight": (kv, 2 * hidden),
        "midlayer.self_attn.o_proj.weight": (hidden, q),
        "midlayer.mlp.gate_proj.weight": (inner, hidden),
        "midlayer.mlp.up_proj.weight": (inner, hidden),
        "midlayer.mlp.down_proj.weight": (hidden, inner),
    }
    shared: dict[str, Shape] = {
        "embed_tokens.weight": (config.vocab_size, hidden),
        "lm_head.weight": (config.draft_vocab_size, hidden),
    }
    if config.norm_before_fc:
        required["input_norm.weight"] = (aux * config.target_hidden_size,)
    if config.fc_norm:
        required |= {f"fc_norm.{i}.weight": (config.target_hidden_size,) for i in range(aux)}
    if config.qk_norm:
        required |= {f"midlayer.self_attn.{n}_norm.weight": (config.head_dim,) for n in "qk"}
    # The target's embedding and head have the target's width.
    if hidden != config.target_hidden_size:
        return required | shared, {}
    return required, shared


def _canonical(folder: Path, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if name.startswith("layers.0."):
            name = "midlayer." + name.removeprefix("layers.0.")
        stem, _, rest = name.partition(".")
        name = f"{_OLD_NORMS[stem]}.{rest}" if stem in _OLD_NORMS else name
        if name in renamed:
            raise CheckpointError(folder, f"holds tensor {name!r} under two names")
        renamed[name] = tensor
    return renamed
