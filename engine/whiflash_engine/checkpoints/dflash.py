"""DFlash checkpoints (arXiv 2602.06036) of both published layouts, brought into one form.

z-lab: flat Qwen3-like config with `dflash_config`, no embedding and no head of its own.
speculators: nested `transformer_layer_config`, perhaps a reduced vocabulary with a head.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from whiflash_engine.checkpoints.dflash_config import DFlashConfig, dflash_config
from whiflash_engine.checkpoints.draft_files import DraftFiles
from whiflash_engine.checkpoints.fields import Fields
from whiflash_engine.checkpoints.tensors import Shape
from whiflash_engine.config import ModelConfig

__all__ = ["DFlashConfig", "dflash_shapes", "load_dflash"]


def load_dflash(folder: Path, target: ModelConfig) -> tuple[DFlashConfig, dict[str, Tensor]]:
    """Read a drafter and check that it fits the target.

    Tensors come in their stored dtype: `fc.weight`, `hidden_norm.weight`, `norm.weight`,
    `layers.{i}.*` as in Qwen3; where present `embed_tokens.weight` and `lm_head.weight`
    (else the target's are meant) and `draft_ids`, absolute int64 target ids, where the
    vocabulary is reduced.
    Raises CheckpointError for a drafter of another hidden size or vocabulary, and for any
    tensor that is missing, misshapen or left over.
    """
    fields = Fields.read(folder / "config.json")
    files = DraftFiles.read(folder)
    files.require_kind("DFlash")
    config = dflash_config(fields, target, files)
    return config, files.checked(
        dflash_shapes(config), config.vocab_size, config.draft_vocab_size, target.vocab_size
    )


def dflash_shapes(config: DFlashConfig) -> tuple[dict[str, Shape], dict[str, Shape]]:
    """(required, optional) tensors of a drafter."""
    hidden, inner = config.hidden_size, config.intermediate_size
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    required: dict[str, Shape] = {
        "fc.weight": (hidden, len(config.taps) * hidden),
        "hidden_norm.weight": (hidden,),
        "norm.weight": (hidden,),
    }
    layer: dict[str, Shape] = {
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
        "self_attn.q_proj": (q, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, q),
        "self_attn.q_norm": (config.head_dim,),
        "self_attn.k_norm": (config.head_dim,),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    for index in range(config.num_layers):
        required |= {f"layers.{index}.{name}.weight": shape for name, shape in layer.items()}
    return required, {
        "embed_tokens.weight": (config.vocab_size, hidden),
        "lm_head.weight": (config.draft_vocab_size, hidden),
    }
