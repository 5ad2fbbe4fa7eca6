"""Target checkpoints: geometry as Hugging Face reads it, weights complete or refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    LlamaForCausalLM,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
)

from whiflash_engine.checkpoints.context import context_length
from whiflash_engine.checkpoints.weights import (
    decoder_shapes,
    is_native,
    load_config,
    load_weights,
)
from whiflash_engine.config import RopeConfig
from whiflash_engine.errors import CheckpointError

CPU = torch.device("cpu")
SIZES = {
    "vocab_size": 48, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
LLAMA_JSON: dict[str, object] = {"model_type": "llama", **SIZES}


MODELS: dict[str, type[PreTrainedModel]] = {
    "llama": LlamaForCausalLM, "qwen2": Qwen2ForCausalLM, "qwen3": Qwen3ForCausalLM,
    "mistral": MistralForCausalLM,
}  # fmt: skip
EXTRA: dict[str, dict[str, object]] = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 16},
    "mistral": {"sliding_window": 7},
}


def _saved(kind: str, folder: Path) -> PreTrainedModel:
    """A random tiny model of that kind, written by transformers."""
    config = AutoConfig.for_model(kind, **SIZES, **EXTRA[kind])
    model = MODELS[kind](config)
    model.save_pretrained(folder)
    return model


def _write_config(folder: Path, values: dict[str, object]) -> Path:
    (folder / "config.json").write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize("kind", sorted(EXTRA))
def test_every_weight_of_the_family_arrives(kind: str, tmp_path: Path) -> None:
    model = _saved(kind, tmp_path)
    weights = load_weights(tmp_path, torch.float32, CPU)
    wanted = dict(model.state_dict())
    if model.config.tie_word_embeddings:
        del wanted["lm_head.weight"]
    assert weights.keys() == wanted.keys() == decoder_shapes(load_config(tmp_path)).keys()
    assert all(torch.equal(weights[name], wanted[name]) for name in wanted)


def test_geometry_per_kind(tmp_path: Path) -> None:
    _saved("llama", tmp_path)
    config = load_config(tmp_path)
    assert (config.head_dim, config.num_kv_heads, config.max_positions) == (8, 2, 64)
    assert (config.qkv_bias, config.o_bias, config.mlp_bias) == (True, True, True)
    _saved("qwen2", tmp_path)
    config = load_config(tmp_path)
    assert (config.qkv_bias, config.o_bias, config.tie_embeddings) == (True, False, True)
    _saved("qwen3", tmp_path)
    config = load_config(tmp_path)
    assert (config.head_dim, config.qk_norm, config.qkv_bias) == (16, True, False)
    _saved("mistral", tmp_path)
    assert load_config(tmp_path).sliding_window == 7


def test_dtype_is_converted(tmp_path: Path) -> None:
    _saved("qwen2", tmp_path)
    weights = load_weights(tmp_path, torch.bfloat16, CPU)
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}


def test_shards_equal_one_file(tmp_path: Path) -> None:
    model = _saved("qwen3", tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="10KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 1
    one = load_weights(tmp_path / "one", torch.float32, CPU)
    many = load_weights(tmp_path / "many", torch.float32, CPU)
    assert one.keys() == many.keys()
    assert all(torch.equal(one[name], many[name]) for name in one)


def test_a_lost_shard_is_named(tmp_path: Path) -> None:
    _saved("qwen3", tmp_path / "x").save_pretrained(tmp_path, max_shard_size="10KB")
    lost = sorted(tmp_path.glob("*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(CheckpointError, match=lost.name):
        load_weights(tmp_path, torch.float32, CPU)


def test_an_index_cannot_point_outside(tmp_path: Path) -> None:
    _saved("qwen3", tmp_path)
    index = {"weight_map": {"model.norm.weight": "../model.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="not in the folder"):
        load_weights(tmp_path, torch.float32, CPU)


def test_other_files_beside_the_weights_are_left_alone(tmp_path: Path) -> None:
    _saved("qwen3", tmp_path)
    save_file({"layers.0.wq": torch.ones(2)}, tmp_path / "consolidated.safetensors")
    save_file({"x.lora_A": torch.ones(2)}, tmp_path / "adapter_model.safetensors")
    assert len(load_weights(tmp_path, torch.float32, CPU)) == 3 + 2 * 11


@pytest.mark.parametrize("keep", [0, 5, 200, -64])
def test_a_truncated_file_is_named(tmp_path: Path, keep: int) -> None:
    _saved("llama", tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: is truncated"):
        load_weights(tmp_path, torch.float32, CPU)


def test_missing_unexpected_and_misshapen_tensors_are_named(tmp_path: Path) -> None:
    _saved("llama", tmp_path)
    path = tmp_path / "model.safetensors"
    good = load_file(path)

    def refused(match: str, **changes: torch.Tensor | None) -> None:
        changed = {name.replace("__", "."): value for name, value in changes.items()}
        tensors = {name: value for name, value in {**good, **changed}.items() if value is not None}
        save_file(tensors, path)
        with pytest.raises(CheckpointError, match=match):
            load_weights(tmp_path, torch.float32, CPU)

    refused(r"lacks tensor 'model\.norm\.weight'", model__norm__weight=None)
    refused(r"holds tensor 'model\.extra'", model__extra=torch.ones(2))
    refused(r"'model\.norm\.weight' has shape \[3\]", model__norm__weight=torch.ones(3))
    refused(
        r"'model\.norm\.weight' is torch\.int8",
        model__norm__weight=torch.ones(32, dtype=torch.int8),
    )


def test_rotary_buffers_and_a_second_tied_matrix_are_ignored(tmp_path: Path) -> None:
    _saved("qwen2", tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(tensors, path)
    assert "lm_head.weight" not in load_weights(tmp_path, torch.float32, CPU)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    _write_config(tmp_path, LLAMA_JSON)
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="save the model again as safetensors"):
        load_weights(tmp_path, torch.float32, CPU)


def test_both_spellings_of_rope(tmp_path: Path) -> None:
    llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
              "high_freq_factor": 4.0, "original_max_position_embeddings": 32}  # fmt: skip
    old = {**LLAMA_JSON, "rope_theta": 500000.0, "rope_scaling": llama3}
    new = {**LLAMA_JSON, "rope_parameters": {**llama3, "rope_theta": 500000.0}}
    wanted = RopeConfig(500000.0, "llama3", 8.0, 1.0, 4.0, 32)
    assert load_config(_write_config(tmp_path, old)).rope == wanted
    assert load_config(_write_config(tmp_path, new)).rope == wanted
    both = {**old, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
    assert load_config(_write_config(tmp_path, both)).rope == wanted, "as transformers reads it"
    bare = load_config(_write_config(tmp_path, LLAMA_JSON)).rope
    assert (bare.theta, bare.kind) == (10_000.0, "default")


def test_yarn_without_a_factor_and_with_mscale(tmp_path: Path) -> None:
    scaling: dict[str, object] = {"type": "yarn", "original_max_position_embeddings": 16}
    rope = load_config(_write_config(tmp_path, {**LLAMA_JSON, "rope_scaling": scaling})).rope
    assert (rope.kind, rope.factor, rope.attention_factor) == ("yarn", 4.0, None)
    scaling |= {"factor": 4.0, "mscale": 1.0, "mscale_all_dim": 1.0}
    rope = load_config(_write_config(tmp_path, {**LLAMA_JSON, "rope_scaling": scaling})).rope
    assert rope.attention_factor == pytest.approx(1.0)


def test_yarn_of_the_gpt_oss_family_is_not_truncated(tmp_path: Path) -> None:
    scaling = {"rope_type": "yarn", "factor": 32.0, "truncate": False,
               "original_max_position_embeddings": 16}  # fmt: skip
    values = {**LLAMA_JSON, "rope_scaling": scaling}
    assert is_native(values)
    assert not load_config(_write_config(tmp_path, values)).rope.truncate
    assert load_config(_write_config(tmp_path, LLAMA_JSON)).rope.truncate


@pytest.mark.parametrize(
    ("scaling", "held"),
    [
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}, 256),
        ({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 16}, 64),
        ({"type": "yarn", "factor": 4.0}, 256),
        ({"type": "yarn", "original_max_position_embeddings": 16}, 64),
        ({"rope_type": "linear", "factor": 4.0}, 64),
    ],
)
def test_a_stretched_context_is_held_whole(
    scaling: dict[str, object], held: int, tmp_path: Path
) -> None:
    folder = _write_config(tmp_path, {**LLAMA_JSON, "rope_scaling": scaling})
    assert load_config(folder).max_positions == context_length(folder) == held


def test_the_context_ends_where_the_factors_of_longrope_switch(tmp_path: Path) -> None:
    scaling = {"type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}
    phi3 = {**LLAMA_JSON, "model_type": "phi3", "rope_scaling": scaling}
    told = {**phi3, "original_max_position_embeddings": 32}
    assert context_length(_write_config(tmp_path, told)) == 32
    scaling["original_max_position_embeddings"] = 0.5  # type: ignore[assignment]
    assert context_length(_write_config(tmp_path, phi3)) is None


@pytest.mark.parametrize("kind", sorted(MODELS))
def test_a_context_that_is_not_told_is_the_familys(kind: str, tmp_path: Path) -> None:
    values = {**LLAMA_JSON, "model_type": kind, "max_position_embeddings": None}
    assert is_native(values)
    wanted = AutoConfig.for_model(kind).max_position_embeddings
    assert load_config(_write_config(tmp_path, values)).max_positions == wanted


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "mamba"},
        {"hidden_act": "gelu"},
        {"quantization_config": {"bits": 4}},
        {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
        {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
        {
            "model_type": "qwen3", "use_sliding_window": True, "sliding_window": 8,
            "layer_types": ["full_attention", "sliding_attention"],
        },
    ],
)  # fmt: skip
def test_what_the_native_runner_cannot_do_is_left_to_the_other(
    change: dict[str, object], tmp_path: Path
) -> None:
    assert is_native(LLAMA_JSON)
    assert not is_native({**LLAMA_JSON, **change})
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_config(_write_config(tmp_path, {**LLAMA_JSON, **change}))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"hidden_size": "32"}, "hidden_size: must be an integer"),
        ({"hidden_size": None}, "hidden_size: is missing"),
        ({"model_type": None}, "model_type: is missing"),
        ({"vocab_size": 0}, "vocab_size=0: must be positive"),
        ({"num_key_value_heads": 3}, "must divide num_heads=4"),
        ({"rope_scaling": {"rope_type": "linear"}}, r"rope_scaling\.factor: is missing"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0.5}}, "rope factor=0.5"),
        ({"rope_scaling": [1]}, "rope_scaling: must be an object"),
        (
            {"rope_scaling": {"type": "yarn", "original_max_position_embeddings": 0}},
            r"json: rope_scaling\.original_max_position_embeddings: 0 is less than 1",
        ),
        ({"max_position_embeddings": 0}, "json: max_position_embeddings: 0 is less than 1"),
    ],
)
def test_a_bad_config_names_the_key(change: dict[str, object], match: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=match):
        load_config(_write_config(tmp_path, {**LLAMA_JSON, **change}))


def test_a_broken_config_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json: cannot be read"):
        load_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json: is not valid JSON"):
        load_config(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="must hold a JSON object"):
        load_config(tmp_path)
