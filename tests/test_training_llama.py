"""Training's forward: what it accepts it computes as the reference does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.training_toys import toy_model
from whiflash_engine.checkpoints.weights import load_config
from whiflash_engine.errors import CheckpointError
from whiflash_engine.training.llama import load_llama, trainable_config
from whiflash_engine.training.model_files import JsonValue

SIZES = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip


def _changed(folder: Path, change: dict[str, JsonValue]) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    return folder


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "gemma"}, "model_type: 'gemma'"),
        ({"model_type": "granite", "embedding_multiplier": 12.0}, "model_type: 'granite'"),
        ({"hidden_act": "gelu"}, "hidden_act: 'gelu'"),
        ({"model_type": "mistral", "sliding_window": 8}, "sliding_window=8"),
        ({"model_type": "qwen2"}, "qkv_bias=True"),
        ({"model_type": "qwen3"}, "qk_norm=True"),
        ({"attention_bias": True}, "qkv_bias=True"),
        ({"mlp_bias": True}, "mlp_bias=True"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "rope_type='yarn'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ],
)
def test_a_target_that_it_would_compute_wrongly_is_refused(
    change: dict[str, JsonValue], named: str, tmp_path: Path
) -> None:
    folder = _changed(toy_model(tmp_path), change)
    with pytest.raises(CheckpointError) as caught:
        load_llama(folder)
    assert caught.value.path == folder / "config.json" and named in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "extra"),
    [
        ("llama", {"tie_word_embeddings": True}),
        ("llama", {"head_dim": 16}),
        ("mistral", {"sliding_window": None}),
    ],
)
def test_it_is_what_transformers_computes(
    kind: str, extra: dict[str, object], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SIZES, **extra))
    model.save_pretrained(tmp_path)
    ids = torch.randint(0, 61, (2, 20))
    ours = load_llama(tmp_path, torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(ours(ids) @ ours.head_weight.T, model(ids).logits)


def test_defaults_are_those_of_the_engine(tmp_path: Path) -> None:
    folder = _changed(
        toy_model(tmp_path),
        {"rms_norm_eps": None, "rope_parameters": {"rope_theta": 500000.0}},
    )
    config = trainable_config(folder)
    assert (config.rms_norm_eps, config.rope.theta) == (1e-6, 500000.0)
    assert load_llama(folder).config == config == load_config(folder)
