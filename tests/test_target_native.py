"""The native runner agrees with transformers; pieces, widths and crops change nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)  # fmt: skip

from tests.toys import tiny_target
from whiflash_engine.checkpoints.weights import load_config, load_weights
from whiflash_engine.target.native import NativeTarget

_SIZES = {
    "vocab_size": 97, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3,
    "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 256,
}  # fmt: skip
_LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32, "rope_theta": 10000.0,
}  # fmt: skip
_YARN = {
    "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64,
    "rope_theta": 10000.0,
}  # fmt: skip
_LINEAR = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}


def _models() -> dict[str, PreTrainedModel]:
    torch.manual_seed(0)
    return {
        "llama": LlamaForCausalLM(LlamaConfig(**_SIZES)),
        "llama-tied": LlamaForCausalLM(LlamaConfig(**_SIZES, tie_word_embeddings=True)),
        "llama-llama3": LlamaForCausalLM(LlamaConfig(**_SIZES, rope_parameters=_LLAMA3)),
        "llama-linear": LlamaForCausalLM(LlamaConfig(**_SIZES, rope_parameters=_LINEAR)),
        "llama-yarn": LlamaForCausalLM(LlamaConfig(**_SIZES, rope_parameters=_YARN)),
        "qwen2": Qwen2ForCausalLM(Qwen2Config(**_SIZES)),
        "qwen3": Qwen3ForCausalLM(Qwen3Config(**_SIZES, head_dim=16)),
        "mistral-window": MistralForCausalLM(MistralConfig(**_SIZES, sliding_window=20)),
    }


@pytest.mark.parametrize("name", sorted(_models()))
def test_logits_and_taps_agree_with_transformers(name: str, tmp_path: Path) -> None:
    """float32; tolerance 1e-4 absolute on logits of about unit size."""
    model = _models()[name].eval()
    for parameter in model.parameters():  # norms and biases that are not 1 and 0
        parameter.data += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path)
    config = load_config(tmp_path)
    weights = load_weights(tmp_path, torch.float32, torch.device("cpu"))
    target = NativeTarget(config, weights, (0, 1, 2))
    ids = torch.randint(97, (1, 60))
    with torch.inference_mode():
        expected = model(ids, output_hidden_states=True)
    cache = target.new_cache(128)
    tokens = ids[0].tolist()
    first = target.forward(tokens[:37], cache, rows=3)
    second = target.forward(tokens[37:], cache, rows=23)
    logits = torch.cat((first.logits, second.logits))
    torch.testing.assert_close(logits, expected.logits[0, 34:], atol=1e-4, rtol=1e-4)
    taps = torch.cat(expected.hidden_states[:3], -1)[0]
    features = torch.cat((first.features, second.features))
    torch.testing.assert_close(features, taps, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        second.hidden, expected.hidden_states[-1][0, 37:], atol=1e-4, rtol=1e-4
    )


def test_a_long_prompt_in_pieces_is_the_same_as_token_by_token() -> None:
    target = tiny_target()
    tokens = [(7 * i) % 61 for i in range(700)]
    long, short = target.new_cache(800), target.new_cache(800)
    whole = target.forward(tokens, long, rows=2)
    for token in tokens[:-1]:
        target.forward([token], short, rows=0)
    last = target.forward(tokens[-1:], short, rows=1)
    torch.testing.assert_close(whole.logits[-1], last.logits[-1], atol=1e-4, rtol=1e-4)
    assert whole.features.shape == (700, 3 * 32) and whole.hidden.shape == (2, 32)


def test_crop_is_absolute_and_idempotent() -> None:
    target = tiny_target()
    cache = target.new_cache(32)
    first = target.forward([1, 2, 3, 4], cache, rows=1)
    target.forward([5, 6, 7], cache, rows=1)
    cache.crop(3)
    cache.crop(3)
    cache.crop(9)
    assert cache.length == 3
    again = target.forward([4], cache, rows=1)
    torch.testing.assert_close(first.logits, again.logits, atol=1e-5, rtol=1e-5)


def test_more_than_the_cache_holds_makes_it_grow() -> None:
    target = tiny_target()
    ids = [1 + i % 20 for i in range(40)]
    small, large = target.new_cache(8), target.new_cache(64)
    grown = [target.forward(part, small, rows=1).logits for part in (ids[:6], ids[6:])]
    whole = [target.forward(part, large, rows=1).logits for part in (ids[:6], ids[6:])]
    assert small.length == 40 <= small.capacity
    assert all(torch.equal(a, b) for a, b in zip(grown, whole, strict=True))
