"""The configuration of a DFlash drafter, in each spelling that was published."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

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

# Variants that change the computation without adding a tensor that would betray them.
_REFUSED = (
    "attention_sink_bias", "attention_value_scale", "output_multiplier",
    "final_logit_softcapping", "input_embedding_scale", "projector_type", "sample_from_anchor",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class DFlashConfig:
    """Geometry of one DFlash drafter.

    vocab_size: of the target that it was made for, whose ids it speaks.
    taps: boundary indices (`Target.taps` numbering) whose features are fused, in fc's order.
    block_size: rows of a block, the bonus token's included; it proposes block_size - 1.
    mask_token_id: the target's embedding row that stands for "not known yet".
    windows: per layer, how many keys back a row sees, itself included; None sees all.
    causal: per layer, whether a block row is kept from seeing later rows of its block.
    """

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope: RopeConfig
    vocab_size: int
    draft_vocab_size: int
    block_size: int
    mask_token_id: int
    taps: tuple[int, ...]
    windows: tuple[int | None, ...]
    causal: tuple[bool, ...]


def dflash_config(fields: Fields, target: ModelConfig, files: DraftFiles) -> DFlashConfig:
    """files: the tensors, which speak where the file is silent."""
    nested = fields.has("transformer_layer_config")
    layer = fields.sub("transformer_layer_config") if nested else fields
    extra = fields.sub("dflash_config")
    _refuse_variants(fields, extra)
    hidden, (heads, kv_heads) = at_least(1, layer, "hidden_size"), head_counts(layer)
    require_width(layer, hidden, target)
    _require_depth(fields, target)
    require_silu(layer)
    vocab = files.vocab(layer, target)
    layers = at_least(1, layer, "num_hidden_layers")
    windows = _windows(layer, extra, layers)
    return DFlashConfig(
        hidden_size=hidden,
        intermediate_size=at_least(1, layer, "intermediate_size"),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=files.head_dim(layer, heads, "layers.0"),
        rms_norm_eps=layer.number("rms_norm_eps", 1e-6),
        rope=rope_config(layer, max_positions=layer.integer("max_position_embeddings", 32768)),
        vocab_size=vocab,
        draft_vocab_size=files.draft_vocab(fields, vocab),
        block_size=at_least(2, fields if fields.has("block_size") else extra, "block_size"),
        mask_token_id=_mask_token(fields, extra, vocab),
        taps=_taps(fields, extra, files.weights.get("fc.weight"), target),
        windows=windows,
        causal=_causal((fields, layer, extra), windows),
    )


def _refuse_variants(fields: Fields, extra: Fields) -> None:
    algorithm = fields.text("speculators_model_type", "dflash")
    if algorithm != "dflash":
        raise fields.fail("speculators_model_type", f"{algorithm!r} is not 'dflash'")
    if "DFlash2DraftModel" in (fields.texts("architectures") or ()):
        raise fields.fail("architectures", "DFlash 2 drafters are not supported")
    for place in (fields, extra):
        for key in _REFUSED:
            value = place.get(key)
            neutral = value is None or value is False or (value == 1 and value is not True)
            neutral |= (key, value) == ("projector_type", "dflash")
            if not neutral:
                raise place.fail(key, "this variant of DFlash is not supported")


def _require_depth(fields: Fields, target: ModelConfig) -> None:
    """Targets of one family may share all but their depth."""
    layers = fields.integer("num_target_layers", target.num_layers)
    if layers != target.num_layers:
        raise fields.fail(
            "num_target_layers",
            f"the drafter was made for a target of {layers} layers, "
            f"this one has {target.num_layers}",
        )


def _mask_token(fields: Fields, extra: Fields, vocab: int) -> int:
    place = extra if extra.has("mask_token_id") else fields
    token = at_least(0, place, "mask_token_id")
    if token >= vocab:
        raise place.fail("mask_token_id", f"{token} is not one of the {vocab} tokens")
    return token


def _taps(fields: Fields, extra: Fields, fc: Tensor | None, target: ModelConfig) -> tuple[int, ...]:
    """z-lab counts layers whose output is tapped, boundary = id + 1; speculators counts
    boundaries. A silent file means evenly spread layers 1..N-3, as many as fc takes."""
    layers = target.num_layers
    outputs = extra.integers("target_layer_ids")
    key = "dflash_config.target_layer_ids" if outputs else "aux_hidden_state_layer_ids"
    boundaries = fields.integers("aux_hidden_state_layer_ids")
    if outputs:
        taps = tuple(index + 1 for index in outputs)
    elif boundaries:
        taps = boundaries
    else:
        count = 1 if fc is None else max(1, fc.shape[-1] // target.hidden_size)
        taps = (layers // 2 + 1,) if count == 1 else tuple(
            round(1 + i * (layers - 4) / (count - 1)) + 1 for i in range(count)
        )  # fmt: skip
    if any(not 0 <= tap <= layers for tap in taps):
        raise fields.fail(key, f"boundaries {list(taps)} do not exist in {layers} target layers")
    return taps


def _windows(layer: Fields, extra: Fields, layers: int) -> tuple[int | None, ...]:
    types = layer.texts("layer_types")
    if types is None:
        if extra.flag("use_swa", False) or layer.flag("use_sliding_window", False):
            raise layer.fail("layer_types", "must say which layers slide")
        return (None,) * layers
    if len(types) != layers or not set(types) <= {"full_attention", "sliding_attention"}:
        raise layer.fail("layer_types", f"must name full or sliding attention for {layers} layers")
    if "sliding_attention" not in types:
        return (None,) * layers
    size = extra.integer("swa_window_size", layer.integer("sliding_window", 0))
    if size < 1:
        raise layer.fail("sliding_window", "must be positive where a layer slides")
    return tuple(size if kind == "sliding_attention" else None for kind in types)


def _causal(places: Iterable[Fields], windows: tuple[int | None, ...]) -> tuple[bool, ...]:
    """The file's own word for all layers; where it is silent, sliding layers are causal."""
    for place in places:
        for key in ("is_causal", "causal"):
            if place.has(key):
                return (place.flag(key, False),) * len(windows)
    return tuple(window is not None for window in windows)
