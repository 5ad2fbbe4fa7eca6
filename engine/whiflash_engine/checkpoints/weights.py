"""Target checkpoints of the Llama/Qwen2/Qwen3/Mistral family: config.json and weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from whiflash_engine.checkpoints.fields import Fields
from whiflash_engine.checkpoints.positions import positions
from whiflash_engine.checkpoints.rope import rope_config
from whiflash_engine.checkpoints.tensors import Shape, check_tensors, read_folder
from whiflash_engine.config import ModelConfig
from whiflash_engine.errors import CheckpointError, ConfigError

# and how many positions transformers gives a model that does not say
NATIVE_TYPES = {"llama": 2048, "qwen2": 32_768, "qwen3": 32_768, "mistral": 131_072}


def is_native(config_json: Mapping[str, object]) -> bool:
    """Whether the native runner computes this model exactly.

    False (never an error) for another `model_type`, an activation other than SiLU, a
    quantised checkpoint, mixed window layers or an unknown kind of RoPE: such a model
    belongs to the `transformers` runner.
    """
    fields = Fields(Path("config.json"), config_json)
    try:
        _refuse_foreign(fields)
        _window(fields)
        rope_config(fields, max_positions=_declared_positions(fields))
    except CheckpointError:
        return False
    return True


def load_config(folder: Path) -> ModelConfig:
    """The geometry of a native model. Raises CheckpointError for a model that is not one."""
    fields = Fields.read(folder / "config.json")
    _refuse_foreign(fields)
    return model_config(fields)


def model_config(fields: Fields) -> ModelConfig:
    """Keys of a config.json -> ModelConfig, with the defaults that Hugging Face gives them."""
    kind = fields.text("model_type")
    heads = fields.integer("num_attention_heads")
    hidden = fields.integer("hidden_size")
    # Qwen3's head is 128 wide whatever hidden / heads says.
    head_dim = 128 if kind == "qwen3" else hidden // max(heads, 1)
    attention_bias = kind in ("llama", "qwen3") and fields.flag("attention_bias", False)
    declared = _declared_positions(fields)
    try:
        return ModelConfig(
            vocab_size=fields.integer("vocab_size"),
            hidden_size=hidden,
            intermediate_size=fields.integer("intermediate_size"),
            num_layers=fields.integer("num_hidden_layers"),
            num_heads=heads,
            num_kv_heads=fields.integer("num_key_value_heads", heads),
            head_dim=fields.integer("head_dim", head_dim),
            rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
            rope=rope_config(fields, max_positions=declared),
            max_positions=positions(fields, declared),
            qkv_bias=attention_bias or kind == "qwen2",
            o_bias=attention_bias,
            mlp_bias=kind == "llama" and fields.flag("mlp_bias", False),
            qk_norm=kind == "qwen3",
            tie_embeddings=fields.flag("tie_word_embeddings", False),
            sliding_window=_window(fields),
        )
    except ConfigError as error:
        raise CheckpointError(fields.path, str(error)) from error


class _Weights(Mapping[str, Tensor]):
    """Each is read and cast when it is asked for: whoever repacks them one by one never holds
    the whole model twice."""

    def __init__(
        self, stored: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device
    ) -> None:
        self._stored, self._dtype, self._device = stored, dtype, device

    def __getitem__(self, name: str) -> Tensor:
        return self._stored[name].to(device=self._device, dtype=self._dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)


def load_weights(folder: Path, dtype: torch.dtype, device: torch.device) -> Mapping[str, Tensor]:
    """The weights under their Hugging Face names (`model.layers.0...`), checked for shape.

    `lm_head.weight` is absent exactly if the config ties the embeddings.
    """
    config = load_config(folder)
    tensors = _canonical(read_folder(folder))
    if config.tie_embeddings:
        # Some writers store the tied matrix twice.
        tensors.pop("lm_head.weight", None)
    check_tensors(folder, tensors, decoder_shapes(config))
    return _Weights(tensors, dtype, device)


def decoder_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Name and shape of every weight of the family."""
    hidden, inner = config.hidden_size, config.intermediate_size
    shapes: dict[str, Shape] = {
        "model.embed_tokens.weight": (config.vocab_size, hidden),
        "model.norm.weight": (hidden,),
    }
    if not config.tie_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    heads = {"q": config.num_heads, "k": config.num_kv_heads, "v": config.num_kv_heads}
    for index in range(config.num_layers):
        layer = f"model.layers.{index}"
        shapes[f"{layer}.input_layernorm.weight"] = (hidden,)
        shapes[f"{layer}.post_attention_layernorm.weight"] = (hidden,)
        for name, count in heads.items():
            width = count * config.head_dim
            shapes[f"{layer}.self_attn.{name}_proj.weight"] = (width, hidden)
            if config.qkv_bias:
                shapes[f"{layer}.self_attn.{name}_proj.bias"] = (width,)
            if config.qk_norm and name != "v":
                shapes[f"{layer}.self_attn.{name}_norm.weight"] = (config.head_dim,)
        shapes[f"{layer}.self_attn.o_proj.weight"] = (hidden, config.num_heads * config.head_dim)
        if config.o_bias:
            shapes[f"{layer}.self_attn.o_proj.bias"] = (hidden,)
        for name, shape in (
            ("gate", (inner, hidden)), ("up", (inner, hidden)), ("down", (hidden, inner))
        ):  # fmt: skip
            shapes[f"{layer}.mlp.{name}_proj.weight"] = shape
            if config.mlp_bias:
                shapes[f"{layer}.mlp.{name}_proj.bias"] = shape[:1]
    return shapes


def _canonical(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Old files carry rotary buffers, which are computed; base models lack the prefix."""
    kept = {n: t for n, t in tensors.items() if not n.endswith("rotary_emb.inv_freq")}
    bare = not any(name.startswith("model.") for name in kept)
    return {
        f"model.{name}" if bare and name != "lm_head.weight" else name: tensor
        for name, tensor in kept.items()
    }


def _refuse_foreign(fields: Fields) -> None:
    kind = fields.text("model_type")
    if kind not in NATIVE_TYPES:
        raise fields.fail("model_type", f"{kind!r} is not one of {', '.join(NATIVE_TYPES)}")
    require_silu(fields)
    if fields.has("quantization_config"):
        raise fields.fail("quantization_config", "quantised checkpoints are not supported")


def require_silu(fields: Fields) -> None:
    """CheckpointError for another activation: no tensor would betray it."""
    activation = fields.text("hidden_act", "silu")
    if activation != "silu":
        raise fields.fail("hidden_act", f"{activation!r} is not silu, the only one supported")


def _declared_positions(fields: Fields) -> int:
    return fields.integer("max_position_embeddings", NATIVE_TYPES[fields.text("model_type")])


def _window(fields: Fields) -> int | None:
    """The sliding window if every layer has it, None if no layer has one."""
    kind = fields.text("model_type")
    if kind == "llama" or not fields.flag("use_sliding_window", kind == "mistral"):
        return None
    # null means no window, an absent key the default of the family
    if "sliding_window" in fields.values and not fields.has("sliding_window"):
        return None
    size = fields.integer("sliding_window", 4096)
    layers = fields.integer("num_hidden_layers")
    first = 0 if kind == "mistral" else fields.integer("max_window_layers", 28)
    types = fields.texts("layer_types") or tuple(
        "sliding_attention" if index >= first else "full_attention" for index in range(layers)
    )
    if all(layer == "full_attention" for layer in types):
        return None
    if all(layer == "sliding_attention" for layer in types):
        return size
    raise fields.fail("layer_types", "full and sliding layers cannot be mixed")
