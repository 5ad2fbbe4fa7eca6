"""From folders to a target and its drafters: any family, any runner, and what is refused."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3_5ForCausalLM,
    Qwen3_5TextConfig,
)

from tests.fake_engine import byte_tokenizer
from tests.toys import new_router, run
from whiflash_engine import linear
from whiflash_engine.checkpoints import hub
from whiflash_engine.checkpoints.dflash import DFlashConfig, dflash_shapes
from whiflash_engine.checkpoints.eagle3 import Eagle3Config, eagle3_shapes
from whiflash_engine.checkpoints.fields import Fields
from whiflash_engine.config import RopeConfig, RouterConfig, RouterName, SamplingConfig
from whiflash_engine.devices import choose_device, choose_dtype
from whiflash_engine.engine import Engine
from whiflash_engine.errors import CheckpointError, ConfigError
from whiflash_engine.events import tokens_of
from whiflash_engine.kernels.cpu import kernels
from whiflash_engine.loading import LoadedDrafters, TargetFiles, load_drafters
from whiflash_engine.target.hf import HFTarget
from whiflash_engine.target.native import NativeTarget
from whiflash_engine.text import load_tokenizer, stop_token_ids

CPU = torch.device("cpu")
VOCAB, HIDDEN, BLOCK = 48, 32, 4


def _llama() -> PreTrainedModel:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB, hidden_size=HIDDEN, intermediate_size=48, num_hidden_layers=4,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
        )
    )  # fmt: skip


def _gpt2() -> PreTrainedModel:
    """Its config.json has no hidden_size and no num_hidden_layers."""
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCAB, n_embd=HIDDEN, n_layer=4, n_head=4, n_positions=128,
            bos_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip


def _gemma3() -> PreTrainedModel:
    return Gemma3ForCausalLM(
        Gemma3TextConfig(
            vocab_size=VOCAB, hidden_size=HIDDEN, intermediate_size=48, num_hidden_layers=4,
            num_attention_heads=4, num_key_value_heads=2, head_dim=8, sliding_window=5,
            max_position_embeddings=128, bos_token_id=0, eos_token_id=0, pad_token_id=0,
            layer_types=["sliding_attention", "full_attention"] * 2,
        )
    )  # fmt: skip


def _qwen3_5() -> PreTrainedModel:
    """Part of its past is a state that only goes forward."""
    return Qwen3_5ForCausalLM(
        Qwen3_5TextConfig(
            vocab_size=VOCAB, hidden_size=HIDDEN, intermediate_size=48, num_hidden_layers=4,
            num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=128,
            linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8,
            linear_value_head_dim=8, layer_types=["linear_attention", "full_attention"] * 2,
            bos_token_id=0, eos_token_id=0, pad_token_id=0,
        )
    )  # fmt: skip


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": _llama, "gpt2": _gpt2, "gemma3": _gemma3, "qwen3_5": _qwen3_5,
}  # fmt: skip


def _save(kind: str, folder: Path) -> Path:
    torch.manual_seed(0)
    MODELS[kind]().save_pretrained(folder)
    return folder


def _drafters(model: Path, ar: str | Path | None, diffusion: str | Path | None) -> LoadedDrafters:
    return load_drafters(TargetFiles.read(model).config, ar, diffusion)


LAYER: dict[str, object] = {
    "hidden_size": HIDDEN, "intermediate_size": 40, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "vocab_size": VOCAB,
}  # fmt: skip


def _write(
    folder: Path, config: Mapping[str, object], shapes: Mapping[str, tuple[int, ...]]
) -> Path:
    generator = torch.Generator().manual_seed(1)
    weights = {
        name: torch.ones(shape) if "norm" in name
        else torch.randn(shape, generator=generator) * shape[-1] ** -0.5
        for name, shape in shapes.items()
    }  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors")
    return folder


def _eagle3(folder: Path) -> Path:
    config = Eagle3Config(
        hidden_size=HIDDEN, target_hidden_size=HIDDEN, intermediate_size=40, num_heads=4,
        num_kv_heads=2, head_dim=8, rms_norm_eps=1e-6, rope=RopeConfig(), vocab_size=VOCAB,
        draft_vocab_size=VOCAB, aux=(1, 2, 3), norm_before_residual=False,
        norm_before_fc=False, fc_norm=False, norm_output=False, qk_norm=False,
    )  # fmt: skip
    told = {**LAYER, "eagle_aux_hidden_state_layer_ids": [1, 2, 3]}
    return _write(folder, told, eagle3_shapes(config)[0])


def _dflash(folder: Path) -> Path:
    config = DFlashConfig(
        hidden_size=HIDDEN, intermediate_size=40, num_layers=2, num_heads=4, num_kv_heads=2,
        head_dim=8, rms_norm_eps=1e-6, rope=RopeConfig(), vocab_size=VOCAB,
        draft_vocab_size=VOCAB, block_size=BLOCK, mask_token_id=47, taps=(1, 3),
        windows=(None, None), causal=(False, False),
    )  # fmt: skip
    told = {
        **LAYER, "num_hidden_layers": 2, "block_size": BLOCK,
        "dflash_config": {"mask_token_id": 47, "target_layer_ids": [0, 2]},
    }  # fmt: skip
    return _write(folder, told, dflash_shapes(config)[0])


@pytest.mark.parametrize("kind", sorted(MODELS))
def test_the_runner_follows_the_family(kind: str, tmp_path: Path) -> None:
    target = TargetFiles.read(_save(kind, tmp_path)).load((1,), torch.float32, CPU)
    assert isinstance(target, NativeTarget if kind == "llama" else HFTarget)
    assert (target.config.vocab_size, target.config.num_layers) == (VOCAB, 4)


@pytest.mark.parametrize("kind", sorted(MODELS))
def test_drafters_serve_every_family_without_loss(kind: str, tmp_path: Path) -> None:
    model = _save(kind, tmp_path / "model")
    loaded = _drafters(model, _eagle3(tmp_path / "ar"), _dflash(tmp_path / "diffusion"))
    assert loaded.taps == (1, 2, 3)
    target = TargetFiles.read(model).load(loaded.taps, torch.float32, CPU)
    drafters = loaded.build(target)
    sampling, prompt = SamplingConfig(max_tokens=40), [3, 1, 4, 1, 5, 9, 2, 6]
    plain = tokens_of(run(target, {}, prompt, sampling=sampling, router=RouterConfig("plain")))
    assert len(plain) == 40
    names: tuple[RouterName, ...] = ("ar", "diffusion", "random", "auto")
    for name in names:
        router = new_router(RouterConfig(name), drafters)
        rounds = run(target, drafters, prompt, sampling=sampling, router=router)
        assert tokens_of(rounds) == plain, name
        if name in drafters:
            assert {r.arm for r in rounds} <= {name, "plain"}
            assert any(r.arm == name for r in rounds)


def test_drafters_serve_a_target_that_was_taught_more_tokens(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tuned = _llama()
    tuned.resize_token_embeddings(VOCAB + 8, mean_resizing=False)
    tuned.save_pretrained(tmp_path / "model")
    eagle, dflash = _eagle3(tmp_path / "ar"), _dflash(tmp_path / "diffusion")
    heads = torch.randn(VOCAB, HIDDEN, generator=torch.Generator().manual_seed(2))
    weights = {**load_file(eagle / "model.safetensors"), "lm_head.weight": heads}
    save_file(weights, eagle / "model.safetensors")
    loaded = _drafters(tmp_path / "model", eagle, dflash)
    target = TargetFiles.read(tmp_path / "model").load(loaded.taps, torch.float32, CPU)
    drafters = loaded.build(target)
    prompt = [3, 1, VOCAB + 2, 1, 5, 9, VOCAB + 7, 6]
    names: tuple[RouterName, ...] = ("ar", "diffusion")
    for temperature in (0.0, 1.0):
        sampling = SamplingConfig(max_tokens=40, temperature=temperature)
        plain = tokens_of(run(target, {}, prompt, sampling=sampling, router=RouterConfig("plain")))
        assert not temperature or max(plain) >= VOCAB
        for name in names:
            router = new_router(RouterConfig(name), drafters)
            rounds = run(target, drafters, prompt, sampling=sampling, router=router)
            assert any(r.arm == name for r in rounds)
            assert temperature or tokens_of(rounds) == plain


def test_drafters_may_be_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, drafter = _save("llama", tmp_path / "model"), _eagle3(tmp_path / "snapshot")
    monkeypatch.setattr(hub, "snapshot_download", lambda spec, **_: str(drafter))
    loaded = _drafters(model, "org/eagle3-of-llama", None)
    assert loaded.eagle3 is not None and loaded.eagle3[0].aux == (1, 2, 3)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_drafter_of_another_size_is_refused_for_every_family(kind: str, tmp_path: Path) -> None:
    model, drafter = _save(kind, tmp_path / "model"), _eagle3(tmp_path / "ar")
    config = json.loads((drafter / "config.json").read_text())
    (drafter / "config.json").write_text(json.dumps({**config, "hidden_size": 64}))
    with pytest.raises(CheckpointError, match="target of hidden size 64, this one has 32"):
        _drafters(model, drafter, None)


def test_without_drafters_there_is_nothing_to_listen_to(tmp_path: Path) -> None:
    loaded = _drafters(_save("llama", tmp_path), None, None)
    assert (loaded.taps, loaded.eagle3, loaded.dflash) == ((), None, None)


def test_a_models_geometry_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, read, asked = _save("llama", tmp_path / "model"), Fields.read, list[Path]()
    byte_tokenizer().save_pretrained(model)

    def counted(path: Path) -> Fields:
        asked.append(path)
        return read(path)

    monkeypatch.setattr(Fields, "read", counted)
    Engine.load(
        model,
        ar_drafter=_eagle3(tmp_path / "ar"),
        diffusion_drafter=_dflash(tmp_path / "diffusion"),
    )
    # for the geometry, with the weights, and for its stop tokens
    assert asked.count(model / "config.json") <= 3


@pytest.mark.parametrize("router", ["plain", RouterConfig("plain")])
def test_an_engines_router_may_be_told_in_full(
    router: RouterName | RouterConfig, tmp_path: Path
) -> None:
    model = _save("llama", tmp_path)
    byte_tokenizer().save_pretrained(model)
    engine = Engine.load(model, router=router)
    assert {r.arm for r in engine.complete([1, 2, 3] * 5).rounds} == {"plain"}
    with pytest.raises(ConfigError, match="router='medusa'"):
        Engine.load(model, router=cast(RouterName, "medusa"))


def test_draft_lengths_can_be_chosen(tmp_path: Path) -> None:
    model = _save("llama", tmp_path / "model")
    loaded = _drafters(model, _eagle3(tmp_path / "ar"), _dflash(tmp_path / "diffusion"))
    target = TargetFiles.read(model).load(loaded.taps, torch.float32, CPU)
    usual, chosen = loaded.build(target), loaded.build(target, depth=7, block=3)
    assert (usual["ar"].max_draft, usual["diffusion"].max_draft) == (5, BLOCK - 1)
    assert (chosen["ar"].max_draft, chosen["diffusion"].max_draft) == (7, 2)
    with pytest.raises(ConfigError, match="diffusion_block=9"):
        loaded.build(target, block=9)
    with pytest.raises(ConfigError, match="depth=0"):
        loaded.build(target, depth=0)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"ar_depth": 0}, "ar_depth=0: must be at least 1"),
        ({"diffusion_block": 99}, "diffusion_block=99: must lie in 2"),
        ({"reuse_bytes": -1}, "reuse_bytes=-1"),
        ({"diffusion_drafter": None, "diffusion_block": 3}, "diffusion_block=3: there is none"),
    ],
)
def test_bad_options_are_told_before_weights_are_read(
    options: dict[str, Any], why: str, tmp_path: Path
) -> None:
    model = _save("llama", tmp_path / "model")
    (model / "model.safetensors").write_bytes(b"not yet")
    given = {"ar_drafter": _eagle3(tmp_path / "ar"), "diffusion_drafter": _dflash(tmp_path / "d")}
    with pytest.raises(ConfigError, match=why):
        Engine.load(model, **given | options)


def test_models_of_one_name_are_told_apart(tmp_path: Path) -> None:
    """What was learned of one's drafts says nothing of the other's."""
    here, there = (_save("llama", tmp_path / place / "model") for place in ("here", "there"))
    for model in (here, there):
        byte_tokenizer().save_pretrained(model)
    same = Engine.load(here).identity
    assert Engine.load(there).identity == same
    weights = load_file(there / "model.safetensors")
    save_file({name: w * 1.01 for name, w in weights.items()}, there / "model.safetensors")
    assert Engine.load(there).identity != same


def test_the_home_folder_may_be_abbreviated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    model = _save("llama", tmp_path / "model")
    _eagle3(tmp_path / "ar")
    _dflash(tmp_path / "diffusion")
    loaded = _drafters(model, "~/ar", Path("~/diffusion"))
    assert loaded.eagle3 is not None and loaded.dflash is not None
    with pytest.raises(CheckpointError, match="~nobody-of-this-name"):
        _drafters(model, "~nobody-of-this-name/ar", None)


@pytest.mark.parametrize("kind", ["config.json of the model", "config.json of a drafter"])
@pytest.mark.parametrize("text", ["{", "[1]", "\x00", None])
def test_a_bad_config_names_its_file(kind: str, text: str | None, tmp_path: Path) -> None:
    model, drafter = _save("llama", tmp_path / "model"), _eagle3(tmp_path / "ar")
    path = (model if "model" in kind else drafter) / "config.json"
    path.unlink()
    if text is not None:
        path.write_text(text)
    with pytest.raises(CheckpointError) as caught:
        _drafters(model, drafter, None)
    assert caught.value.path == path
    if "model" in kind:
        with pytest.raises(CheckpointError) as caught:
            TargetFiles.read(model).load((), torch.float32, CPU)
        assert caught.value.path == path


def test_a_family_that_nobody_knows_is_named(tmp_path: Path) -> None:
    model, drafter = _save("gpt2", tmp_path / "model"), _eagle3(tmp_path / "ar")
    (model / "config.json").write_text(json.dumps({"model_type": "abacus"}))
    with pytest.raises(ConfigError, match=r"model=.*transformers cannot load it.*abacus"):
        _drafters(model, drafter, None)


def test_a_model_without_tokens_cannot_be_drafted_for(tmp_path: Path) -> None:
    model, drafter = _save("gpt2", tmp_path / "model"), _eagle3(tmp_path / "ar")
    (model / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(ConfigError, match=r"model=.*says no usable geometry"):
        _drafters(model, drafter, None)


# ---------------------------------------------------------------- device and precision


@pytest.mark.parametrize(
    "name",
    ["cuda:99", "cuda:2", "cuda:x", "cuda:", "cuda:-1", "cuda:01", "cpu:0", "cpu:", "tpu", ""],
)
@pytest.mark.parametrize("gpus", [0, 2])
def test_a_device_that_is_not_there(name: str, gpus: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(ConfigError) as caught:
        choose_device(name)
    assert (caught.value.field, caught.value.value) == ("device", name)


def test_devices_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [str(choose_device(n)) for n in ("cpu", "cuda", "cuda:0", "cuda:1")] == [
        "cpu", "cuda", "cuda:0", "cuda:1",
    ]  # fmt: skip
    assert choose_device(None).type == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert choose_device(None) == choose_device("cpu") == CPU
    for name in ("cuda", "cuda:0"):
        with pytest.raises(ConfigError, match=f"device='{name}'"):
            choose_device(name)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="others are asked in another way")
def test_bfloat16_is_for_processors_that_compute_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for able in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda able=able: able)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        assert choose_dtype(None, CPU) == (torch.bfloat16 if able else torch.float32)


def test_precision() -> None:
    assert choose_dtype("float32", CPU) == choose_dtype("int8", CPU) == torch.float32
    with pytest.raises(ConfigError, match="dtype='int4': must be one of bfloat16, float32, int8"):
        choose_dtype("int4", CPU)


@pytest.mark.skipif(kernels() is None, reason="there is no C compiler")
def test_eight_bits_are_asked_for_by_name(tmp_path: Path) -> None:
    model = _save("llama", tmp_path)
    byte_tokenizer().save_pretrained(model)
    engines = [Engine.load(model, dtype=dtype, device="cpu") for dtype in ("int8", "float32")]
    assert [engine.target.precision for engine in engines] == ["int8", "float32"]
    rounded, exact = (
        engine.target.forward([1, 2], engine.target.new_cache(2), rows=2).logits
        for engine in engines
    )
    assert 0 < float((rounded - exact).abs().max()) < 0.05 * float(exact.abs().max())


def test_eight_bits_where_nothing_computes_in_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told before weights are read, and where it can be before they are fetched."""
    model = _save("gpt2", tmp_path)
    (model / "model.safetensors").write_bytes(b"not yet")
    monkeypatch.setattr(linear, "kernels", lambda: object())
    with pytest.raises(ConfigError, match="dtype='int8': is for models that the native runner"):
        Engine.load(model, dtype="int8", device="cpu")
    monkeypatch.setattr(linear, "kernels", lambda: None)
    with pytest.raises(ConfigError, match="dtype='int8': is for x86 with AVX2"):
        Engine.load("nobody/has-this", dtype="int8", device="cpu")


@pytest.mark.parametrize(("capability", "able"), [((9, 0), True), ((8, 0), True), ((7, 5), False)])
def test_bfloat16_is_for_gpus_that_compute_in_it(
    capability: tuple[int, int], able: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    gpu = torch.device("cuda")
    assert choose_dtype(None, gpu) == (torch.bfloat16 if able else torch.float32)
    assert choose_dtype("float32", gpu) == torch.float32
    with pytest.raises(ConfigError, match="dtype='int8': is for CPUs"):
        choose_dtype("int8", gpu)
    if not able:
        with pytest.raises(ConfigError, match="dtype='bfloat16'"):
            choose_dtype("bfloat16", gpu)


# ---------------------------------------------------------------- text files of the model


def test_stop_tokens_of_all_files_each_once(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 2]}')
    (tmp_path / "config.json").write_text('{"eos_token_id": 5}')
    assert stop_token_ids(tmp_path, SimpleNamespace(eos_token_id=2)) == (2, 7, 5)
    (tmp_path / "config.json").write_text('{"eos_token_id": null}')
    assert stop_token_ids(tmp_path, SimpleNamespace(eos_token_id=None)) == (7, 2)
    (tmp_path / "config.json").unlink()
    (tmp_path / "generation_config.json").unlink()
    assert stop_token_ids(tmp_path, SimpleNamespace(eos_token_id=None)) == ()


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"eos_token_id": "</s>"}', '{"eos_token_id": [1, "x"]}']
)
@pytest.mark.parametrize("name", ["generation_config.json", "config.json"])
def test_stop_tokens_that_cannot_be_read(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(CheckpointError) as caught:
        stop_token_ids(tmp_path, SimpleNamespace(eos_token_id=2))
    assert caught.value.path == tmp_path / name


@pytest.mark.parametrize("text", ["{", "[]", '{"model": 1}', '{"version": "1.0", "model": {}}'])
def test_a_broken_tokenizer_names_its_folder(text: str, tmp_path: Path) -> None:
    folder = _save("llama", tmp_path / "model")
    (folder / "tokenizer.json").write_text(text)
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(CheckpointError, match="the tokenizer cannot be read") as caught:
        load_tokenizer(folder)
    assert caught.value.path == folder
