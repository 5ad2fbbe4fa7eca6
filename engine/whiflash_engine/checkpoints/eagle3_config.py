"""The configuration of an EAGLE-3 head, in each spelling that was published."""

from __future__ import annotations

from dataclasses import dataclass

from whiflash_engine.checkpoints.draft_files import (
    DraftFiles,
    at_least,
    head_counts,
    require_width,
)
from whiflash_engine.checkpoints.fields import Fields
from whiflash_engine.checkpoints.rope import rope_config
from whiflash_engine.checkpoints.weights import require_silu
from whiflash_engine.config import ModelConfig, RopeConfig


@dataclass(frozen=True, slots=True)
class Eagle3Config:
    """Geometry and variant of one EAGLE-3 head.

    aux: boundary indices (`Target.taps` numbering) whose features are fused, low to high.
    vocab_size: of the target that it was made for, whose ids it speaks.
    target_hidden_size: width of each feature; `hidden_size` is the head's own width.
    norm_before_residual: the residual is hidden_norm(g) instead of g.
    norm_before_fc: one RMSNorm (`input_norm`) over the concatenated features.
    fc_norm: one RMSNorm (`fc_norm.i`) per feature, before they are concatenated.
    norm_output: later draft steps are fed norm(y) (EAGLE-3.1) instead of y.
    qk_norm: RMSNorm on the heads of q and k (Qwen3-style heads).
    """

    hidden_size: int
    target_hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope: RopeConfig
    vocab_size: int
    draft_vocab_size: int
    aux: tuple[int, ...]
    norm_before_residual: bool
    norm_before_fc: bool
    fc_norm: bool
    norm_output: bool
    qk_norm: bool


def eagle3_config(fields: Fields, target: ModelConfig, files: DraftFiles) -> Eagle3Config:
    """files: the tensors by canonical name, which speak where the file is silent."""
    nested = fields.has("transformer_layer_config")
    layer = fields.sub("transformer_layer_config") if nested else fields
    extra = fields.sub("eagle_config")
    algorithm = fields.text("speculators_model_type", "eagle3")
    if algorithm != "eagle3":
        raise fields.fail("speculators_model_type", f"{algorithm!r} is not 'eagle3'")
    if layer.integer("num_hidden_layers", 1) != 1:
        raise layer.fail("num_hidden_layers", "only heads of one layer are supported")
    if not extra.flag("use_aux_hidden_state", True):
        raise extra.fail("use_aux_hidden_state", "heads without fused features are not supported")
    hidden, (heads, kv_heads) = at_least(1, layer, "hidden_size"), head_counts(layer)
    width = fields.integer("target_hidden_size", hidden)
    require_width(layer, width, target)
    require_silu(layer)
    vocab = files.vocab(layer, target)

    def told(key: str, name: str) -> bool:
        for place in (fields, extra):
            if place.has(key):
                return place.flag(key, False)
        return name in files.weights

    return Eagle3Config(
        hidden_size=hidden,
        target_hidden_size=width,
        intermediate_size=at_least(1, layer, "intermediate_size"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=files.head_dim(layer, heads, "midlayer"),
        rms_norm_eps=layer.number("rms_norm_eps", 1e-6),
        rope=rope_config(layer, max_positions=layer.integer("max_position_embeddings", 2048)),
        vocab_size=vocab,
        draft_vocab_size=files.draft_vocab(fields, vocab),
        aux=_aux(fields, extra, target.num_layers),
        # vLLM, where such heads are served, takes an absent flag of theirs as true.
        norm_before_residual=fields.flag("norm_before_residual", nested),
        norm_before_fc=told("norm_before_fc", "input_norm.weight"),
        fc_norm=fields.flag("use_aux_norm", False) or told("fc_norm", "fc_norm.0.weight"),
        norm_output=fields.flag("norm_output", False),
        qk_norm="midlayer.self_attn.q_norm.weight" in files.weights,
    )


def _aux(fields: Fields, extra: Fields, layers: int) -> tuple[int, ...]:
    """Boundary indices. At the top level they are published as such; under `eagle_config`
    as outputs of 0-based layers, one less, by heads that begin with layer 1. Silent heads
    follow the reference: 2, L//2, L-3."""
    key = "eagle_aux_hidden_state_layer_ids"
    outer, inner = fields.integers(key), extra.integers(key)
    if outer:
        ids = outer
    elif inner:
        ids = tuple(i + 1 for i in inner) if inner[0] == 1 else inner
    else:
        ids = (2, layers // 2, layers - 3)
    if any(not 0 <= i <= layers for i in ids):
        raise fields.fail(key, f"{list(ids)} are not boundaries of a target of {layers} layers")
    return ids
