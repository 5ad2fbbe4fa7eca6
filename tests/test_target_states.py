"""Targets that keep more than keys and values: their state only goes forward, and is set back."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
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

from whiflash_engine.errors import ConfigError
from whiflash_engine.target import hf_past
from whiflash_engine.target.hf import HFTarget
from whiflash_engine.target.hf_loading import causal_config
from whiflash_engine.target.hf_states import StateCache

CPU = torch.device("cpu")
VOCAB = 64
_SIZES = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "max_position_embeddings": 256, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip
_IN_TURNS = ["linear_attention", "full_attention"] * 2
_DELTA = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8, "linear_conv_kernel_dim": 4, "layer_types": _IN_TURNS,
}  # fmt: skip
_EXPERTS = {
    "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}  # fmt: skip
_MAMBA = {
    "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1,
    "mamba_expand": 2, "mamba_chunk_size": 16,
}  # fmt: skip
_SIGHT = {
    "model_type": "qwen3_5", "depth": 1, "hidden_size": 16, "intermediate_size": 16,
    "num_heads": 2, "out_hidden_size": 32,
}  # fmt: skip
FAMILIES: Mapping[str, Mapping[str, object]] = {
    "qwen3_5": {
        "text_config": {**_SIZES, **_DELTA, "model_type": "qwen3_5_text"}, "vision_config": _SIGHT,
    },
    "qwen3_next": {**_DELTA, **_EXPERTS},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "granitemoehybrid": {
        **_MAMBA, "layer_types": _IN_TURNS, "num_local_experts": 4, "num_experts_per_tok": 2,
        "shared_intermediate_size": 16,
    },
    "falcon_h1": {**_MAMBA, "mamba_d_ssm": 64},
    "nemotron_h": {
        "mamba_num_heads": 4, "mamba_head_dim": 16, "ssm_state_size": 8, "n_groups": 1,
        "chunk_size": 16, "layers_block_type": ["mamba", "attention", "mlp", "attention"],
    },
    "bamba": {**_MAMBA, "attn_layer_indices": [1, 3]},
    "olmo_hybrid": _DELTA,
    "kimi_linear": {
        "layer_types": _IN_TURNS, "linear_head_dim": 8, "linear_num_heads": 4, "num_experts": 4,
        "num_experts_per_token": 2, "moe_intermediate_size": 16, "kv_lora_rank": 8,
        "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8, "num_key_value_heads": 4,
    },
}  # fmt: skip
"""Convolutions; gated delta nets, with experts and with eyes; Mamba between attention, beside it
in one layer, and between layers without a past."""
_JAMBA: Mapping[str, object] = {
    "num_experts": 4, "num_experts_per_tok": 2, "attn_layer_period": 2, "attn_layer_offset": 1,
    "mamba_d_state": 8, "use_mamba_kernels": False,
}  # fmt: skip


def _save(kind: str, folder: Path) -> PreTrainedModel:
    torch.manual_seed(0)
    own = {**FAMILIES, "jamba": _JAMBA}[kind]
    config = AutoConfig.for_model(kind, **(own if "text_config" in own else {**_SIZES, **own}))
    loader = AutoModelForImageTextToText if "vision_config" in own else AutoModelForCausalLM
    model = loader.from_config(config).float().eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and "embed" not in name:
            parameter.data += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return model


def _target(folder: Path) -> HFTarget:
    return HFTarget(folder, taps=(1, 4), dtype=torch.float32, device=CPU)


def _tokens(count: int) -> list[int]:
    draw = random.Random(3)
    return [draw.randrange(VOCAB) for _ in range(count)]


def _expected(model: PreTrainedModel, tokens: list[int]) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
    return logits


def _assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


@pytest.fixture(scope="module")
def lfm2(tmp_path_factory: pytest.TempPathFactory) -> tuple[HFTarget, PreTrainedModel]:
    folder = tmp_path_factory.mktemp("lfm2")
    model = _save("lfm2", folder)
    return _target(folder), model


@pytest.mark.parametrize("kind", sorted(FAMILIES))
def test_states_are_set_back_with_the_drafts_that_were_rejected(kind: str, tmp_path: Path) -> None:
    """As decoding does it, over some hundred positions: every round may reject some."""
    model, tokens, draw = _save(kind, tmp_path), _tokens(120), random.Random(5)
    target = _target(tmp_path)
    cache = target.new_cache(120)
    assert isinstance(cache, StateCache)
    expected = _expected(model, tokens)
    out = target.forward(tokens[:40], cache, rows=1)
    _assert_close(out.logits, expected[39:40])
    parts = [out.features]
    while (start := cache.length) < len(tokens):
        piece = tokens[start : start + draw.choice([1, 2, 5, 9])]
        wrong = [7, 8, 9][: draw.choice([0, 3])]
        out = target.forward(piece + wrong, cache, rows=len(piece) + len(wrong))
        _assert_close(out.logits[: len(piece)], expected[start : start + len(piece)])
        parts.append(out.features[: len(piece)])
        cache.crop(start + len(piece))
    whole = target.forward(tokens, target.new_cache(120), rows=0)
    _assert_close(torch.cat(parts), whole.features)


class _Died(RuntimeError):
    pass


@pytest.mark.parametrize("seed", range(6))
def test_the_cache_stands_where_it_is_said_to(
    seed: int, lfm2: tuple[HFTarget, PreTrainedModel]
) -> None:
    """Prompts, drafts, other continuations from anywhere, passes that die at any layer."""
    target, model = lfm2
    draw, known = random.Random(seed), list[int]()
    cache = target.new_cache(8)
    layers = target._model.get_submodule("model.layers")
    for _ in range(40):
        new = [draw.randrange(VOCAB) for _ in range(draw.choice([1, 3, 9, 20, 70]))]
        if len(known) + len(new) > 240 or draw.random() < 0.3:
            del known[draw.randrange(len(known) + 1) :]
            cache.crop(len(known))
            assert cache.length == len(known)
            continue
        if draw.random() < 0.2:
            broken = layers.get_submodule(str(draw.randrange(4)))
            with broken.register_forward_pre_hook(_die), pytest.raises(_Died):
                target.forward(new, cache, rows=1)
            if draw.random() < 0.5:
                cache.crop(len(known))
            assert cache.length == len(known)
            continue
        rows = draw.choice([0, 1, len(new) // 2, len(new)])
        out = target.forward(new, cache, rows=rows)
        known += new
        assert (cache.length, out.logits.shape[0], out.features.shape[0]) == (
            len(known), rows, len(new),
        )  # fmt: skip
        _assert_close(out.logits, _expected(model, known)[len(known) - rows :])


def _die(*call: object) -> None:
    raise _Died


@pytest.fixture
def run_through(lfm2: tuple[HFTarget, PreTrainedModel]) -> Iterator[list[int]]:
    """How many tokens each pass through the model had."""
    widths = list[int]()
    table = lfm2[0]._table
    with table.register_forward_pre_hook(lambda _, given: widths.append(given[0].shape[-1])):
        yield widths


def test_a_turn_that_parts_near_the_last_prompts_end_runs_little_again(
    lfm2: tuple[HFTarget, PreTrainedModel], run_through: list[int]
) -> None:
    target, _ = lfm2
    cache, tokens = target.new_cache(8), _tokens(100)
    target.forward(tokens, cache, rows=1)
    assert run_through == [68, 32]
    for token in range(10):  # the answer
        target.forward([token], cache, rows=1)
    cache.crop(97)
    run_through.clear()
    target.forward(_tokens(20), cache, rows=1)
    assert run_through == [17, 32]  # 29 of the 100 once more
    cache.crop(97)
    run_through.clear()
    target.forward([1, 2], cache, rows=2)
    assert sum(run_through) == 97 - 85 + 2


def test_short_turns_leave_copies_too(
    lfm2: tuple[HFTarget, PreTrainedModel], run_through: list[int]
) -> None:
    target, _ = lfm2
    cache = target.new_cache(8)
    for prompt, answer in ((100, 20), (20, 40)):
        target.forward(_tokens(prompt), cache, rows=1)
        for token in range(answer):
            target.forward([token], cache, rows=1)
    cache.crop(135)
    run_through.clear()
    target.forward([1], cache, rows=1)
    assert sum(run_through) == 135 - 120 + 1


def test_parts_of_a_long_prompt_leave_one_copy(
    lfm2: tuple[HFTarget, PreTrainedModel], run_through: list[int]
) -> None:
    target, _ = lfm2
    cache = target.new_cache(8)
    target.forward(_tokens(60), cache, rows=1)
    target.forward([1, 2, 3], cache, rows=3)
    for _ in range(6):
        target.forward(_tokens(40), cache, rows=1)
    cache.crop(50)
    run_through.clear()
    target.forward([1], cache, rows=1)
    assert sum(run_through) == 50 - 28 + 1


def test_what_is_owed_is_paid_off_before_it_grows_long(
    lfm2: tuple[HFTarget, PreTrainedModel], run_through: list[int]
) -> None:
    """Rounds that reject one token of four each: a pass carries at most 16 tokens of before."""
    target, _ = lfm2
    cache = target.new_cache(8)
    target.forward(_tokens(8), cache, rows=8)
    for _ in range(24):
        target.forward([1, 2, 3, 4], cache, rows=4)
        cache.crop(cache.length - 1)
    assert max(run_through) < 24
    assert len(run_through) <= 1 + 24 + 24 * 3 // 16


def test_copies_count_into_what_a_cache_takes(lfm2: tuple[HFTarget, PreTrainedModel]) -> None:
    target, _ = lfm2
    cache = target.new_cache(8)
    assert cache.nbytes == 0
    target.forward(_tokens(40), cache, rows=40)
    keys = 2 * 2 * 2 * 40 * 8 * 4  # layers, keys and values, heads, positions, width, bytes
    states = 2 * 32 * 3 * 4
    assert cache.nbytes >= keys + 2 * states
    for length in range(40, 240, 50):
        target.forward(_tokens(50), cache, rows=1)
        assert cache.length == length + 50
    assert cache.nbytes <= 6 * keys + 7 * 2 * states


def test_a_model_that_loses_its_state_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers begins Jamba's state anew for every pass of several tokens; another version may
    do so to others."""
    _save("jamba", tmp_path)
    with pytest.raises(ConfigError, match=r"jamba remembers what drafts .* cannot be taken back"):
        _target(tmp_path)
    monkeypatch.setattr(hf_past, "_TAKEN_UP", ("jamba",))
    with pytest.raises(ConfigError, match="model='JambaForCausalLM': forgets what came before"):
        _target(tmp_path)


def test_states_alone_count_no_positions(tmp_path: Path) -> None:
    own = {**FAMILIES["nemotron_h"], "layers_block_type": ["mamba", "mlp"] * 2}
    AutoConfig.for_model("nemotron_h", **{**_SIZES, **own}).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="nemotron_h has no attention"):
        causal_config(tmp_path)
