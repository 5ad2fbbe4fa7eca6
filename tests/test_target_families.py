"""Families that the transformers runner has to know something of: RoPE that switches, shared
keys, images beside text, pasts that cannot be rolled back, and the boundary before the norm."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedModel,
)

from whiflash_engine.checkpoints.context import context_length
from whiflash_engine.checkpoints.fields import Fields
from whiflash_engine.checkpoints.positions import positions
from whiflash_engine.checkpoints.weights import load_config, load_weights
from whiflash_engine.errors import ConfigError
from whiflash_engine.target.hf import HFTarget
from whiflash_engine.target.hf_loading import causal_config
from whiflash_engine.target.native import NativeTarget

CPU = torch.device("cpu")
VOCAB = 64
_SIZES = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
    "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip
_LONGROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 48,
    "short_factor": [1.0] * 4, "long_factor": [2.0, 3.0, 4.0, 5.0],
}  # fmt: skip
_YARN = {
    "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0,
    "original_max_position_embeddings": 100,
}  # fmt: skip
_SHARED = {
    "head_dim": 8, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"] * 2,
    "num_kv_shared_layers": 2, "vocab_size_per_layer_input": VOCAB,
    "hidden_size_per_layer_input": 8,
}  # fmt: skip
_GEMMA4 = {**_SHARED, "global_head_dim": 8}
_GEMMA3N = {**_SHARED, "laurel_rank": 4, "activation_sparsity_pattern": None}
_PIXTRAL = {
    "model_type": "pixtral", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 4,
    "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
}  # fmt: skip


def _save(folder: Path, kind: str, **own: object) -> PreTrainedModel:
    """A model of this kind with random weights, norms that are not 1 among them."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**_SIZES, **own})
    loader = AutoModelForImageTextToText if "vision_config" in own else AutoModelForCausalLM
    model = loader.from_config(config).float().eval()
    for name, parameter in model.named_parameters():
        size = 0.3 if parameter.dim() > 1 and "embed" not in name else 0.1
        parameter.data += size * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return model


def _mistral3(folder: Path, text: str) -> PreTrainedModel:
    own = {**_SIZES, "model_type": text, "head_dim": 8, "sliding_window": 8}
    return _save(folder, "mistral3", text_config=own, vision_config=_PIXTRAL)


def _target(folder: Path, taps: tuple[int, ...] = ()) -> HFTarget:
    return HFTarget(folder, taps=taps, dtype=torch.float32, device=CPU)


def _tokens(count: int) -> list[int]:
    draw = random.Random(3)
    return [draw.randrange(VOCAB) for _ in range(count)]


def _in_rounds(target: HFTarget, tokens: list[int]) -> Tensor:
    """Logits of the tokens, run as decoding does: a few at once, some of them rejected."""
    cache, rows, draw = target.new_cache(len(tokens)), [], random.Random(5)
    while (start := cache.length) < len(tokens):
        piece = tokens[start : start + draw.choice([1, 2, 5, 9])]
        room = target.config.max_positions - start - len(piece)
        wrong = [7, 8, 9][: min(draw.choice([0, 3]), room)]
        out = target.forward(piece + wrong, cache, rows=len(piece) + len(wrong))
        rows.append(out.logits[: len(piece)])
        cache.crop(start + len(piece))
    return torch.cat(rows)


def _plain(model: PreTrainedModel, tokens: list[int]) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = model(torch.tensor([tokens]), use_cache=False).logits[0]
    return logits


def test_longrope_ends_where_its_factors_would_switch(tmp_path: Path) -> None:
    model = _save(tmp_path, "phi3", rope_parameters=_LONGROPE, original_max_position_embeddings=48)
    target = _target(tmp_path)
    assert causal_config(tmp_path) == target.config
    assert target.config.max_positions == 48
    tokens = _tokens(48)
    torch.testing.assert_close(
        _in_rounds(target, tokens), _plain(model, tokens), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, 256),
        ({"rope_parameters": _LONGROPE}, 48),
        ({"rope_scaling": {"type": "su"}, "original_max_position_embeddings": 48}, 48),
        ({"rope_parameters": {"full_attention": _LONGROPE, "sliding_attention": {}}}, 48),
        ({"rope_parameters": _YARN}, 400),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, 1024),
        ({"rope_scaling": {**_YARN, "factor": 2}}, 256),
        ({"rope_parameters": {"full_attention": _YARN, "sliding_attention": {}}}, 400),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 4.0}}, 256),
        ({"rope_parameters": {"rope_type": "linear", "factor": 4.0}}, 256),
    ],
)
def test_the_context_is_what_the_rope_allows(
    values: dict[str, object], expected: int, tmp_path: Path
) -> None:
    assert positions(Fields(Path("config.json"), values), 256) == expected
    config = json.dumps({**values, "max_position_embeddings": 256})
    (tmp_path / "config.json").write_text(config)
    assert context_length(tmp_path) == expected  # which is asked before anything is loaded


def test_yarn_stretches_the_context_of_any_family(tmp_path: Path) -> None:
    AutoConfig.for_model("olmo2", **_SIZES, rope_parameters=_YARN).save_pretrained(tmp_path)
    assert causal_config(tmp_path).max_positions == 400


@pytest.mark.parametrize(("kind", "own"), [("gemma4_text", _GEMMA4), ("gemma3n_text", _GEMMA3N)])
def test_layers_that_share_keys_can_be_rolled_back(
    kind: str, own: dict[str, object], tmp_path: Path
) -> None:
    model, tokens = _save(tmp_path, kind, **own), _tokens(40)
    logits = _in_rounds(_target(tmp_path), tokens)
    torch.testing.assert_close(logits, _plain(model, tokens), atol=1e-4, rtol=1e-4)


def test_a_width_for_each_layer_is_told_by_the_widest(tmp_path: Path) -> None:
    own = {**_GEMMA3N, "intermediate_size": [48, 48, 40, 48]}
    AutoConfig.for_model("gemma3n_text", **{**_SIZES, **own}).save_pretrained(tmp_path)
    assert causal_config(tmp_path).intermediate_size == 48


def test_so_is_a_head_that_differs_between_layers(tmp_path: Path) -> None:
    """transformers raises an error of its own for the number of all layers."""
    AutoConfig.for_model("gemma4_text").save_pretrained(tmp_path)
    assert causal_config(tmp_path).head_dim == 512


def test_of_a_stream_in_parts_the_active_one_is_tapped(tmp_path: Path) -> None:
    model, tokens = _save(tmp_path, "gemma3n_text", **_GEMMA3N), _tokens(5)
    target = _target(tmp_path, taps=(1, 4))
    with torch.inference_mode():
        states = model(torch.tensor([tokens]), output_hidden_states=True).hidden_states
    features = target.forward(tokens, target.new_cache(8), rows=0).features
    assert features.shape == (5, 2 * 32)
    torch.testing.assert_close(features[:, :32], states[1][0, 0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("text", ["mistral", "ministral3"])
def test_a_mistral_that_could_see_reads_text(text: str, tmp_path: Path) -> None:
    model, tokens = _mistral3(tmp_path, text), _tokens(40)
    target = _target(tmp_path, taps=(1, 4))
    assert (target.config.num_layers, target.config.vocab_size) == (4, VOCAB)
    logits = _in_rounds(target, tokens)
    torch.testing.assert_close(logits, _plain(model, tokens), atol=1e-4, rtol=1e-4)
    out = target.forward(tokens, target.new_cache(40), rows=40)
    with torch.inference_mode():  # of the text's layers, not of the images' as many
        normed = model.get_submodule("model.language_model.norm")(out.features[:, 32:])
    torch.testing.assert_close(normed, out.hidden, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("kind", "own", "why"),
    [
        ("qwen3_vl", {}, "model_type='qwen3_vl': .* takes text alone"),
        ("t5", {}, "model_type='t5'"),
        ("bart", {}, "model_type='bart': is an encoder-decoder"),
        ("zamba", {}, "zamba remembers what"),
        ("minimax", {}, r"layer_types=\['linear_attention'\]: minimax remembers"),
        ("xlstm", {}, "model_type='xlstm': .* rejected cannot be taken back"),
        ("rwkv", {}, "model_type='rwkv': .* rejected cannot be taken back"),
        ("deepseek_v4", {}, "deepseek_v4 .* rejected cannot be taken back"),
    ],
)
def test_what_cannot_be_a_target_is_refused_before_its_weights_are_read(
    kind: str, own: dict[str, object], why: str, tmp_path: Path
) -> None:
    AutoConfig.for_model(kind, **own).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=why):
        causal_config(tmp_path)
    with pytest.raises(ConfigError, match=why):
        _target(tmp_path)


def test_a_config_that_contradicts_itself_is_told_so(tmp_path: Path) -> None:
    values = {"model_type": "lfm2", "num_hidden_layers": 4, "layer_types": ["conv"]}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=r"model=.*cannot load it: `num_hidden_layers` \(4\)"):
        causal_config(tmp_path)


def test_the_last_boundary_is_the_stream_before_the_last_norm(tmp_path: Path) -> None:
    _save(tmp_path, "llama")
    weights = load_weights(tmp_path, torch.float32, CPU)
    taps, tokens = (0, 2, 4), _tokens(12)
    outputs = []
    for target in (_target(tmp_path, taps), NativeTarget(load_config(tmp_path), weights, taps)):
        cache = target.new_cache(16)
        target.forward(tokens[:7], cache, rows=0)
        outputs.append(target.forward(tokens[7:], cache, rows=5))
    torch.testing.assert_close(outputs[0].features, outputs[1].features, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(outputs[0].hidden, outputs[1].hidden, atol=1e-4, rtol=1e-4)
    last = outputs[0].features[:, 2 * 32 :]
    assert not torch.allclose(last, outputs[0].hidden, atol=0.1)


@pytest.mark.parametrize("kind", ["bloom", "gpt_oss"])
def test_the_last_boundary_of_other_layers_is_found(kind: str, tmp_path: Path) -> None:
    """Some layers give more than the stream, some contain lists of their own."""
    own = {"n_layer": 4, "n_head": 4, "hidden_size": 32, "vocab_size": VOCAB}
    experts = {**_SIZES, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2}
    model = _save(tmp_path, kind, **(own if kind == "bloom" else experts))
    target = _target(tmp_path, taps=(4,))
    out = target.forward(_tokens(6), target.new_cache(8), rows=6)
    norm = model.get_submodule("transformer.ln_f" if kind == "bloom" else "model.norm")
    with torch.inference_mode():
        torch.testing.assert_close(norm(out.features), out.hidden, atol=1e-4, rtol=1e-4)


def test_a_boundary_that_does_not_exist_is_refused_before_the_weights_are_read(
    tmp_path: Path,
) -> None:
    AutoConfig.for_model("llama", **_SIZES).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"tap=5: must lie in 0\.\.4"):
        _target(tmp_path, taps=(5,))
