"""GGUF files give the model they were written from; LoRA adapters merge into it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.toy_gguf import close, random_lora, toy_model, write_adapter, write_gguf
from whiflash_engine.checkpoints.gguf_files import read_gguf
from whiflash_engine.checkpoints.lora import Lora, merge_lora, read_lora
from whiflash_engine.errors import CheckpointError

KINDS = {
    "llama": {"tie_word_embeddings": True},
    "llama-untied": {"attention_bias": False},
    "qwen2": {},
    "qwen3": {"tie_word_embeddings": True},
}


def _logits(model: PreTrainedModel) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = model(torch.arange(3, 40)[None]).logits[0]
    return logits


def _reloaded(
    config: dict[str, object], weights: dict[str, Tensor], folder: Path
) -> PreTrainedModel:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    loaded: object = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert isinstance(loaded, tuple)
    model, info = loaded
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert isinstance(model, PreTrainedModel)
    return model


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_round_trip_keeps_every_weight_and_the_logits(kind: str, tmp_path: Path) -> None:
    model = toy_model(kind.partition("-")[0], **KINDS[kind])
    found = read_gguf(write_gguf(tmp_path / "toy.gguf", model), torch.float32)
    wanted = dict(model.state_dict())
    if model.config.tie_word_embeddings:
        del wanted["lm_head.weight"]
    assert found.weights.keys() == wanted.keys()
    assert all(torch.equal(found.weights[name], wanted[name]) for name in wanted)
    again = _reloaded(found.config, found.weights, tmp_path / "again")
    torch.testing.assert_close(_logits(again), _logits(model), rtol=1e-5, atol=1e-6)


def test_quantised_weights_come_back_nearly(tmp_path: Path) -> None:
    model = toy_model("llama")
    wanted = model.state_dict()
    for kind, tolerance in (
        (GGMLQuantizationType.F16, 1e-3),
        (GGMLQuantizationType.Q8_0, 1e-2),
        (GGMLQuantizationType.Q4_1, 1e-1),
    ):
        path = write_gguf(tmp_path / f"{kind.name}.gguf", model, quantised=kind)
        found = read_gguf(path, torch.float32).weights
        assert all(close(found[name], wanted[name], tolerance) for name in wanted)


def test_the_config_is_what_transformers_would_say(tmp_path: Path) -> None:
    config = read_gguf(write_gguf(tmp_path / "toy.gguf", toy_model("llama")), torch.bfloat16).config
    assert config["rms_norm_eps"] == 1e-5
    assert (config["bos_token_id"], config["eos_token_id"]) == (0, 1)
    assert (config["head_dim"], config["rope_theta"]) == (8, 10000.0)
    assert "rope_scaling" not in config


LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
}  # fmt: skip


def test_long_context_of_llama_3_is_read_back(tmp_path: Path) -> None:
    model = toy_model("llama", rope_parameters=dict(LLAMA3))
    plain = 500000.0 ** -(torch.arange(0, 8, 2) / 8)
    divisors = plain / model.get_submodule("model.rotary_emb").get_buffer("inv_freq")
    path = write_gguf(tmp_path / "toy.gguf", model, rope_freqs=divisors)
    found = read_gguf(path, torch.float32)
    assert found.config["rope_scaling"] == {k: v for k, v in LLAMA3.items() if k != "rope_theta"}
    again = _reloaded(found.config, found.weights, tmp_path / "again")
    torch.testing.assert_close(_logits(again), _logits(model), rtol=1e-5, atol=1e-6)
    other = write_gguf(tmp_path / "other.gguf", model, rope_freqs=divisors.flip(0))
    with pytest.raises(CheckpointError, match=r"'rope_freqs\.weight' is not Llama 3\.1's"):
        read_gguf(other, torch.float32)


@pytest.mark.parametrize("keep", [0, 3, 40, 2000, -600])
def test_a_truncated_file_is_named(keep: int, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "toy.gguf", toy_model("llama"))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"toy\.gguf: is truncated or not a GGUF file"):
        read_gguf(path, torch.float32)


def test_files_that_are_no_such_model(tmp_path: Path) -> None:
    model = toy_model("llama")
    other = write_gguf(tmp_path / "o.gguf", model, architecture="mamba")
    with pytest.raises(CheckpointError, match="architecture 'mamba' is not one of llama"):
        read_gguf(other, torch.float32)
    lacking = write_gguf(tmp_path / "l.gguf", model, without="blk.1.ffn_up.weight")
    with pytest.raises(CheckpointError, match=r"lacks tensor 'model\.layers\.1\.mlp\.up_proj"):
        read_gguf(lacking, torch.float32)
    headless = write_gguf(tmp_path / "h.gguf", model, without="token_embd.weight")
    with pytest.raises(CheckpointError, match="lacks tensor 'token_embd"):
        read_gguf(headless, torch.float32)


# ---------------------------------------------------------------- LoRA


def test_merging_equals_running_the_adapter_beside_the_model(tmp_path: Path) -> None:
    model = toy_model("llama")
    pairs = random_lora(model, 4)
    lora = read_lora(write_adapter(tmp_path, pairs))
    assert lora.scale == 2.0
    base = dict(model.state_dict())
    merged = merge_lora(lora, base)
    x = torch.randn(3, 32)
    name = "model.layers.1.self_attn.k_proj"
    a = pairs[f"base_model.model.{name}.lora_A.weight"]
    b = pairs[f"base_model.model.{name}.lora_B.weight"]
    beside = x @ base[f"{name}.weight"].T + 2.0 * (x @ a.T) @ b.T
    torch.testing.assert_close(x @ merged[f"{name}.weight"].T, beside, rtol=1e-4, atol=1e-4)
    untouched = "model.norm.weight"
    assert torch.equal(merged[untouched], base[untouched])
    assert merged.keys() == base.keys()


def test_merging_rounds_once() -> None:
    """1 + 2^-9 + 2^-9 in float32 rounds to another bfloat16 than two roundings would give."""
    base = {"w.weight": torch.ones(1, 1, dtype=torch.bfloat16)}
    pair = (torch.full((2, 2**0), 2.0**-9).view(2, 1), torch.full((1, 2), 1.01))
    merged = merge_lora(Lora(Path("x"), 1.0, {"w.weight": pair}), base)["w.weight"]
    assert merged.dtype == torch.bfloat16
    assert float(merged) == pytest.approx(1 + 2**-7, abs=1e-6)


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"peft_type": "IA3"}, "only LORA"),
        ({"use_dora": True}, "use_dora: is not supported"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern: is not supported"),
        ({"r": 0}, "r: must be positive"),
        ({"r": 5}, "does not have rank 5"),
        ({"target_modules": ["q_proj", "lm_head"]}, "nothing for target module 'lm_head'"),
        ({"lora_alpha": None}, "lora_alpha: is missing"),
    ],
)
def test_a_bad_adapter_config(config: dict[str, object], match: str, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path, random_lora(toy_model("llama"), 4), **config)
    with pytest.raises(CheckpointError, match=match):
        read_lora(folder)


def test_every_tensor_of_an_adapter_is_used_or_refused(tmp_path: Path) -> None:
    model = toy_model("llama")
    stem = "base_model.model.model.layers.0.self_attn.q_proj"
    pairs = random_lora(model, 4)
    del pairs[f"{stem}.lora_B.weight"]
    with pytest.raises(CheckpointError, match=r"'model\.layers\.0\.self_attn\.q_proj\.weight' has"):
        read_lora(write_adapter(tmp_path, pairs))
    with pytest.raises(CheckpointError, match=r"'base_model\.model\.lm_head\.weight' is no lora"):
        full = {**random_lora(model, 4), "base_model.model.lm_head.weight": torch.ones(2, 2)}
        read_lora(write_adapter(tmp_path, full))
    with pytest.raises(CheckpointError, match="holds no tensor"):
        read_lora(write_adapter(tmp_path, {}))
    pairs = random_lora(model, 4)
    pairs[f"{stem}.lora_A.weight"] = torch.ones(4, 31)
    with pytest.raises(CheckpointError, match=r"changes \[32, 31\], the base has \[32, 32\]"):
        merge_lora(read_lora(write_adapter(tmp_path, pairs)), dict(model.state_dict()))
    foreign = {name.replace("layers.0", "layers.7"): value for name, value in pairs.items()}
    with pytest.raises(CheckpointError, match=r"no weight 'model\.layers\.7"):
        merge_lora(read_lora(write_adapter(tmp_path, foreign)), dict(model.state_dict()))
