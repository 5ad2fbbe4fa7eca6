"""EAGLE-3 checkpoints of every published layout, brought into one form.

Sources: SafeAILab/EAGLE, SpecForge, AngelSlim and NVIDIA ModelOpt (flat config, `midlayer.*`)
and vllm-project/speculators (nested config, `layers.0.*`). EAGLE-3 itself: arXiv 2503.01840.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from whiflash_engine.checkpoints.draft_vocab import draft_ids
from whiflash_engine.checkpoints.fields import Fields
from whiflash_engine.checkpoints.rope import rope_config
from whiflash_engine.checkpoints.tensors import Shape, check_tensors, read_folder
from whiflash_engine.config import ModelConfig, RopeConfig
from whiflash_engine.errors import CheckpointError

_OLD_NORMS = {
    "aux_norm_low": "fc_norm.0",
    "aux_norm_mid": "fc_norm.1",
    "aux_norm_high": "fc_norm.2",
}


@dataclass(frozen=True, slots=True)
class Eagle3Config:
    """Geometry and variant of one EAGLE-3 head.

    aux: boundary indices (`Target.taps` numbering) whose features are fused, low to high.
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


def load_eagle3(
    folder: Path, target: ModelConfig, *, aux: tuple[int, ...] | None = None
) -> tuple[Eagle3Config, dict[str, Tensor]]:
    """Read a head and check that it fits the target.

    Tensors come under canonical names, in their stored dtype: `fc.weight`, `midlayer.*`,
    `norm.weight`, where present `input_norm.weight`, `fc_norm.{i}.weight`,
    `embed_tokens.weight` and `lm_head.weight` (else the target's are meant), and
    `draft_ids`, absolute int64 target ids, where the vocabulary is reduced.
    aux: boundary indices that overrule the file's, for a head that states them wrongly.
    Raises CheckpointError for a head of another hidden size or vocabulary, and for any
    tensor that is missing, misshapen or left over.
    """
    fields = Fields.read(folder / "config.json")
    tensors = _canonical(folder, read_folder(folder))
    d2t, t2d = tensors.pop("d2t", None), tensors.pop("t2d", None)
    config = _config(fields, target, tensors, d2t, aux)
    required, optional = eagle3_shapes(config)
    check_tensors(folder, tensors, required, optional)
    ids = draft_ids(folder, d2t, t2d, vocab=config.vocab_size, draft_vocab=config.draft_vocab_size)
    if ids is not None:
        tensors["draft_ids"] = ids
    return config, tensors


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


def _canonical(folder: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.startswith("verifier_") or name.endswith("rotary_emb.inv_freq"):
            continue
        name = name.removeprefix("model.")
        if name.startswith("layers.0."):
            name = "midlayer." + name.removeprefix("layers.0.")
        stem, _, rest = name.partition(".")
        name = f"{_OLD_NORMS[stem]}.{rest}" if stem in _OLD_NORMS else name
        if name in renamed:
            raise CheckpointError(folder, f"holds tensor {name!r} under two names")
        renamed[name] = tensor
    return renamed


def _config(
    fields: Fields,
    target: ModelConfig,
    tensors: Mapping[str, Tensor],
    d2t: Tensor | None,
    aux: tuple[int, ...] | None,
) -> Eagle3Config:
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
    hidden, heads = layer.integer("hidden_size"), layer.integer("num_attention_heads")
    width = fields.integer("target_hidden_size", hidden)
    if width != target.hidden_size:
        raise fields.fail(
            "target_hidden_size" if fields.has("target_hidden_size") else "hidden_size",
            f"the drafter was made for a target of hidden size {width}, "
            f"this one has {target.hidden_size}",
        )
    vocab = layer.integer("vocab_size", target.vocab_size)
    if vocab != target.vocab_size:
        raise layer.fail(
            "vocab_size",
            f"the drafter was made for a vocabulary of {vocab}, the target has {target.vocab_size}",
        )
    if heads <= 0 or layer.integer("head_dim", 1) <= 0:
        raise layer.fail("num_attention_heads", "must be positive")

    def told(key: str, name: str) -> bool:
        """The flag where the file states it; where it is silent its tensors speak."""
        for place in (fields, extra):
            if place.has(key):
                return place.flag(key, False)
        return name in tensors

    return Eagle3Config(
        hidden_size=hidden,
        target_hidden_size=width,
        intermediate_size=layer.integer("intermediate_size"),
        num_heads=heads,
        num_kv_heads=layer.integer("num_key_value_heads", heads),
        head_dim=layer.integer("head_dim", hidden // heads),
        rms_norm_eps=layer.number("rms_norm_eps", 1e-6),
        rope=rope_config(layer, max_positions=layer.integer("max_position_embeddings", 2048)),
        vocab_size=vocab,
        draft_vocab_size=_draft_vocab(fields, tensors, d2t, vocab),
        aux=_aux(fields, extra, target.num_layers, aux),
        # vLLM, where such heads are served, takes an absent flag of theirs as true.
        norm_before_residual=fields.flag("norm_before_residual", nested),
        norm_before_fc=told("norm_before_fc", "input_norm.weight"),
        fc_norm=fields.flag("use_aux_norm", False) or told("fc_norm", "fc_norm.0.weight"),
        norm_output=fields.flag("norm_output", False),
        qk_norm="midlayer.self_attn.q_norm.weight" in tensors,
    )


def _draft_vocab(
    fields: Fields, tensors: Mapping[str, Tensor], d2t: Tensor | None, vocab: int
) -> int:
    """The file's number, else what its tensors say, else the whole vocabulary."""
    head = tensors.get("lm_head.weight")
    found = d2t if d2t is not None else head
    return fields.integer("draft_vocab_size", vocab if found is None else found.shape[0])


def _aux(
    fields: Fields, extra: Fields, layers: int, chosen: tuple[int, ...] | None
) -> tuple[int, ...]:
    """Boundary indices. At the top level they are published as such; under `eagle_config`
    as outputs of 0-based layers, one less, by heads that begin with layer 1. Silent heads
    follow the reference: 2, L//2, L-3."""
    key = "eagle_aux_hidden_state_layer_ids"
    outer, inner = fields.integers(key), extra.integers(key)
    if chosen is not None:
        ids = chosen
    elif outer:
        ids = outer
    elif inner:
        ids = tuple(i + 1 for i in inner) if inner[0] == 1 else inner
    else:
        ids = (2, layers // 2, layers - 3)
    if any(not 0 <= i <= layers for i in ids):
        raise fields.fail(key, f"{list(ids)} are not boundaries of a target of {layers} layers")
    return ids
