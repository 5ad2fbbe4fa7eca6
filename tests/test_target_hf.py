"""The transformers runner: agrees with a plain forward, rolls back, refuses what cannot."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from whiflash_engine.checkpoints.resolve import resolve_model
from whiflash_engine.errors import CheckpointError, ConfigError
from whiflash_engine.target.hf import HFTarget
from whiflash_engine.target.hf_cache import HFCache
from whiflash_engine.target.hf_loading import causal_config

CPU = torch.device("cpu")
VOCAB = 48


def _llama() -> PreTrainedModel:
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def _gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCAB, n_embd=32, n_layer=4, n_head=4, n_positions=64,
            bos_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip


def _gemma3() -> PreTrainedModel:
    """Sliding and full layers mixed, scaled embeddings; the window is shorter than the text."""
    return Gemma3ForCausalLM(
        Gemma3TextConfig(
            vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=4,
            num_attention_heads=4, num_key_value_heads=2, head_dim=8, sliding_window=5,
            max_position_embeddings=64, bos_token_id=0, eos_token_id=0, pad_token_id=0,
            layer_types=["sliding_attention", "full_attention"] * 2,
        )
    )  # fmt: skip


def _qwen2() -> PreTrainedModel:
    """q, k and v with a bias, which is zero when it is new."""
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=4,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
        )
    )  # fmt: skip
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return model


def _qwen3() -> PreTrainedModel:
    """Heads that are wider than hidden / heads, with norms of their own."""
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=4,
            num_attention_heads=4, num_key_value_heads=2, head_dim=16,
            max_position_embeddings=64, tie_word_embeddings=True,
        )
    )  # fmt: skip


MODELS = {"llama": _llama, "gpt2": _gpt2, "gemma3": _gemma3, "qwen2": _qwen2, "qwen3": _qwen3}


@pytest.fixture(params=sorted(MODELS))
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, PreTrainedModel]:
    torch.manual_seed(0)
    model = MODELS[request.param]()
    model.train(False)
    model.save_pretrained(tmp_path)
    return tmp_path, model


def _target(folder: Path, taps: tuple[int, ...] = (0, 2, 3)) -> HFTarget:
    return HFTarget(folder, taps=taps, dtype=torch.float32, device=CPU)


def _tokens(count: int) -> list[int]:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(VOCAB, (count,), generator=generator).tolist()


def _reference(model: PreTrainedModel, tokens: list[int]) -> tuple[Tensor, tuple[Tensor, ...]]:
    with torch.inference_mode():
        out = model(torch.tensor([tokens]), use_cache=False, output_hidden_states=True)
    return out.logits[0], tuple(state[0] for state in out.hidden_states)


def test_logits_taps_and_final_state_agree_with_a_plain_forward(
    saved: tuple[Path, PreTrainedModel],
) -> None:
    folder, model = saved
    target, tokens = _target(folder), _tokens(12)
    logits, states = _reference(model, tokens)
    out = target.forward(tokens, target.new_cache(16), rows=3)
    torch.testing.assert_close(out.logits, logits[-3:], rtol=1e-4, atol=1e-5)
    wanted = torch.cat([states[tap] for tap in target.taps], -1)
    torch.testing.assert_close(out.features, wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out.hidden, states[-1][-3:], rtol=1e-4, atol=1e-5)
    assert out.logits.dtype == torch.float32


def test_rejected_tokens_leave_no_trace(saved: tuple[Path, PreTrainedModel]) -> None:
    folder, model = saved
    target, tokens = _target(folder), _tokens(14)
    cache = target.new_cache(20)
    target.forward(tokens[:9], cache, rows=0)
    target.forward([1, 2, 3, 4], cache, rows=4)
    cache.crop(9)
    cache.crop(9)
    cache.crop(30)
    assert cache.length == 9
    out = target.forward(tokens[9:], cache, rows=5)
    torch.testing.assert_close(out.logits, _reference(model, tokens)[0][9:], rtol=1e-4, atol=1e-5)
    cache.crop(0)
    assert cache.length == 0
    again = target.forward(tokens, cache, rows=5)
    torch.testing.assert_close(again.logits, out.logits, rtol=1e-4, atol=1e-5)


class _Die:
    """A hook that fails once, and remembers how long the layers were."""

    def __init__(self, cache: HFCache) -> None:
        self.cache = cache
        self.lengths: list[int] = []

    def __call__(self, *_: object) -> None:
        if not self.lengths:
            self.lengths = _lengths(self.cache)
            raise RuntimeError("out of memory")


def _lengths(cache: HFCache) -> list[int]:
    return [layer.get_seq_length() for layer in cache.inner.layers]


def test_a_pass_that_died_between_two_layers_leaves_no_trace(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = _llama()
    model.train(False)
    model.save_pretrained(tmp_path)
    target, tokens = _target(tmp_path), _tokens(10)
    cache = target.new_cache(20)
    target.forward(tokens[:5], cache, rows=0)
    die = _Die(cache)
    second = target._model.get_submodule("model.layers.1")
    with second.register_forward_pre_hook(die), pytest.raises(RuntimeError):
        target.forward([1, 2], cache, rows=1)
    assert die.lengths == [7, 5, 5, 5]
    cache.crop(5)
    assert _lengths(cache) == [5] * 4
    out = target.forward(tokens[5:], cache, rows=5)
    fresh = target.forward(tokens, target.new_cache(20), rows=5)
    torch.testing.assert_close(out.logits, fresh.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out.logits, _reference(model, tokens)[0][5:], rtol=1e-4, atol=1e-5)


def test_a_pass_that_died_between_keys_and_values_leaves_no_trace(tmp_path: Path) -> None:
    """Growing a layer takes memory twice; the second time it may be missing."""
    _llama().save_pretrained(tmp_path)
    target, tokens = _target(tmp_path), _tokens(10)
    cache = target.new_cache(20)
    target.forward(tokens[:5], cache, rows=0)
    layer = cache.inner.layers[0]
    layer.keys = torch.cat([layer.keys, layer.keys[..., :2, :]], -2)
    cache.crop(5)
    out = target.forward(tokens[5:], cache, rows=5)
    fresh = target.forward(tokens, target.new_cache(20), rows=5)
    torch.testing.assert_close(out.logits, fresh.logits, rtol=1e-4, atol=1e-5)


def test_a_prefill_that_died_can_be_begun_again(tmp_path: Path) -> None:
    """Then the later layers do not exist yet."""
    _llama().save_pretrained(tmp_path)
    target, tokens = _target(tmp_path), _tokens(6)
    cache = target.new_cache(20)
    second = target._model.get_submodule("model.layers.1")
    with second.register_forward_pre_hook(_Die(cache)), pytest.raises(RuntimeError):
        target.forward(tokens, cache, rows=1)
    cache.crop(0)
    out = target.forward(tokens, cache, rows=6)
    fresh = target.forward(tokens, target.new_cache(20), rows=6)
    torch.testing.assert_close(out.logits, fresh.logits, rtol=1e-4, atol=1e-5)


def test_drafters_can_share_embedding_and_head(saved: tuple[Path, PreTrainedModel]) -> None:
    folder, model = saved
    target, tokens = _target(folder), _tokens(6)
    out = target.forward(tokens, target.new_cache(8), rows=6)
    torch.testing.assert_close(out.hidden @ target.head_rows(None).T, out.logits)
    ids = torch.tensor([5, 7])
    torch.testing.assert_close(out.hidden @ target.head_rows(ids).T, out.logits[:, ids])
    assert target.embed(ids).shape == (2, 32)
    if not isinstance(model, GPT2LMHeadModel):  # which adds positions to it
        torch.testing.assert_close(out.features[:, :32], target.embed(torch.tensor(tokens)))


def test_geometry_is_told(saved: tuple[Path, PreTrainedModel]) -> None:
    target = _target(saved[0], taps=())
    assert (target.config.vocab_size, target.config.hidden_size) == (VOCAB, 32)
    assert (target.config.num_layers, target.dtype, target.device) == (4, torch.float32, CPU)
    assert target.forward([1, 2], target.new_cache(4), rows=1).features.shape == (2, 0)
    assert causal_config(saved[0]) == target.config


def test_a_cache_takes_more_than_it_was_made_for(saved: tuple[Path, PreTrainedModel]) -> None:
    target = _target(saved[0])
    cache = target.new_cache(2)
    target.forward([1, 2, 3, 4, 5], cache, rows=1)
    assert cache.length == 5 and cache.nbytes > 0


def test_a_recurrent_model_is_refused(tmp_path: Path) -> None:
    config = MambaConfig(vocab_size=VOCAB, hidden_size=16, num_hidden_layers=2, state_size=4)
    MambaForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="mamba remembers"):
        _target(tmp_path, taps=())


def test_missing_weights_are_not_invented(tmp_path: Path) -> None:
    _llama().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.norm.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"missing keys: model\.norm\.weight"):
        _target(tmp_path)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    _llama().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-64])
    with pytest.raises(CheckpointError, match="damaged"):
        _target(tmp_path)


@pytest.mark.model
@pytest.mark.filterwarnings("ignore")
def test_the_real_default_model_agrees_with_transformers() -> None:
    """float32; tolerance 1e-3 absolute on logits of up to 40. Fed in pieces, with a rollback."""
    folder = resolve_model(None).path
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    text = '{"name": "weather", "arguments": {"city": "Paris"}}\nThe quick brown fox jumps over it.'
    ids = AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
    logits, states = _reference(model, ids)
    target = _target(folder, taps=(2, 15, 27))
    cache = target.new_cache(len(ids) + 4)
    whole = target.forward(ids, cache, rows=len(ids))
    torch.testing.assert_close(whole.logits, logits, atol=1e-3, rtol=0)
    wanted = torch.cat([states[tap] for tap in target.taps], -1)
    # boundaries reach into the thousands: the relative error counts
    torch.testing.assert_close(whole.features, wanted, atol=1e-3, rtol=1e-4)
    cache.crop(10)
    target.forward([1, 2, 3], cache, rows=1)
    cache.crop(10)
    rest = target.forward(ids[10:], cache, rows=len(ids) - 10)
    torch.testing.assert_close(rest.logits, logits[10:], atol=1e-3, rtol=0)
