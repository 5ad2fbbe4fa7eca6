"""EAGLE-3 and DFlash checkpoints: every published layout gives one form, or an error."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from whiflash_engine.checkpoints.dflash import DFlashConfig, dflash_shapes, load_dflash
from whiflash_engine.checkpoints.eagle3 import Eagle3Config, eagle3_shapes, load_eagle3
from whiflash_engine.config import ModelConfig, RopeConfig
from whiflash_engine.errors import CheckpointError

TARGET = ModelConfig(
    vocab_size=40, hidden_size=16, intermediate_size=24, num_layers=8, num_heads=4,
    num_kv_heads=2, head_dim=4, rms_norm_eps=1e-5, rope=RopeConfig(theta=5e5), max_positions=64,
)  # fmt: skip
LAYER: dict[str, object] = {
    "model_type": "llama", "hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "vocab_size": 40,
}  # fmt: skip
EAGLE = Eagle3Config(
    hidden_size=16, target_hidden_size=16, intermediate_size=20, num_heads=2, num_kv_heads=1,
    head_dim=8, rms_norm_eps=1e-6, rope=RopeConfig(original_max_position=2048), vocab_size=40,
    draft_vocab_size=40, aux=(2, 4, 5), norm_before_residual=False, norm_before_fc=False,
    fc_norm=False, norm_output=False, qk_norm=False,
)  # fmt: skip
DFLASH_JSON: dict[str, object] = {
    **LAYER, "num_hidden_layers": 2, "block_size": 6, "rope_theta": 1e6,
    "dflash_config": {"mask_token_id": 39, "target_layer_ids": [1, 3, 5]},
}  # fmt: skip
DFLASH = DFlashConfig(
    hidden_size=16, intermediate_size=20, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8,
    rms_norm_eps=1e-6, rope=RopeConfig(theta=1e6, original_max_position=32768), vocab_size=40,
    draft_vocab_size=40, block_size=6, mask_token_id=39, taps=(2, 4, 6), windows=(None, None),
    causal=(False, False),
)  # fmt: skip
IDS = torch.tensor([1, 4, 7, 30, 39])


def _filled(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def eagle_tensors(config: Eagle3Config = EAGLE, *optional: str) -> dict[str, Tensor]:
    required, others = eagle3_shapes(config)
    return _filled({**required, **{name: others[name] for name in optional}})


def dflash_tensors(config: DFlashConfig = DFLASH, *optional: str) -> dict[str, Tensor]:
    required, others = dflash_shapes(config)
    return _filled({**required, **{name: others[name] for name in optional}})


def write(folder: Path, config: Mapping[str, object], tensors: Mapping[str, Tensor]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(dict(tensors), folder / "model.safetensors")
    return folder


def reduced() -> dict[str, Tensor]:
    mask = torch.zeros(40, dtype=torch.bool)
    mask[IDS] = True
    return {"d2t": IDS - torch.arange(5), "t2d": mask}


# ---------------------------------------------------------------- EAGLE-3


def test_the_flat_layout(tmp_path: Path) -> None:
    tensors = eagle_tensors()
    config, found = load_eagle3(write(tmp_path, LAYER, tensors), TARGET)
    assert config == EAGLE
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_a_head_without_theta_means_10000_not_the_targets(tmp_path: Path) -> None:
    config, _ = load_eagle3(write(tmp_path, LAYER, eagle_tensors()), TARGET)
    assert config.rope.theta == 10_000.0


def test_the_speculators_layout(tmp_path: Path) -> None:
    wanted = replace(EAGLE, norm_before_residual=True, aux=(1, 4, 7), qk_norm=True)
    tensors = {
        name.replace("midlayer.", "layers.0."): tensor
        for name, tensor in eagle_tensors(wanted).items()
    }
    nested = {
        "speculators_model_type": "eagle3",
        "draft_vocab_size": 40,
        "norm_before_residual": True,
        "eagle_aux_hidden_state_layer_ids": [1, 4, 7],
        "transformer_layer_config": LAYER,
    }
    config, found = load_eagle3(write(tmp_path, nested, tensors), TARGET)
    assert config == wanted
    assert "midlayer.self_attn.q_norm.weight" in found
    del nested["norm_before_residual"]
    assert load_eagle3(write(tmp_path, nested, tensors), TARGET)[0].norm_before_residual


def test_names_with_a_prefix_and_buffers_to_ignore(tmp_path: Path) -> None:
    tensors = {f"model.{name}": tensor for name, tensor in eagle_tensors().items()}
    tensors["verifier_norm.weight"] = torch.ones(16)
    tensors["model.midlayer.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    _, found = load_eagle3(write(tmp_path, LAYER, tensors), TARGET)
    assert found.keys() == eagle_tensors().keys()


@pytest.mark.parametrize(
    ("extra", "boundaries"),
    [
        ({}, (2, 4, 5)),
        ({"eagle_aux_hidden_state_layer_ids": [1, 3, 6]}, (1, 3, 6)),
        ({"eagle_config": {"eagle_aux_hidden_state_layer_ids": [1, 3, 6]}}, (2, 4, 7)),
        ({"eagle_config": {"eagle_aux_hidden_state_layer_ids": [2, 3, 6]}}, (2, 3, 6)),
    ],
)
def test_layer_ids_of_both_conventions(
    extra: dict[str, object], boundaries: tuple[int, ...], tmp_path: Path
) -> None:
    folder = write(tmp_path, {**LAYER, **extra}, eagle_tensors())
    assert load_eagle3(folder, TARGET)[0].aux == boundaries


def test_variants_of_the_norm_before_fusion(tmp_path: Path) -> None:
    whole = replace(EAGLE, norm_before_fc=True)
    nvidia = {**LAYER, "eagle_config": {"norm_before_fc": True}}
    assert load_eagle3(write(tmp_path, nvidia, eagle_tensors(whole)), TARGET)[0] == whole
    each = replace(EAGLE, fc_norm=True, norm_output=True)
    flags = {**LAYER, "fc_norm": True, "norm_output": True}
    assert load_eagle3(write(tmp_path, flags, eagle_tensors(each)), TARGET)[0] == each
    old = dict(zip(("fc_norm.0", "fc_norm.1", "fc_norm.2"), ("low", "mid", "high"), strict=True))
    renamed = {
        f"aux_norm_{old[name[:9]]}.weight" if name[:9] in old else name: tensor
        for name, tensor in eagle_tensors(each).items()
    }
    config, found = load_eagle3(write(tmp_path, {**LAYER, "use_aux_norm": True}, renamed), TARGET)
    assert config.fc_norm and torch.equal(
        found["fc_norm.2.weight"], renamed["aux_norm_high.weight"]
    )


def test_a_norm_that_the_config_denies_is_refused(tmp_path: Path) -> None:
    tensors = eagle_tensors(replace(EAGLE, norm_before_fc=True))
    with pytest.raises(CheckpointError, match=r"input_norm\.weight"):
        load_eagle3(write(tmp_path, {**LAYER, "norm_before_fc": False}, tensors), TARGET)
    with pytest.raises(CheckpointError, match=r"lacks tensors 'fc_norm\.0\.weight'"):
        load_eagle3(write(tmp_path, {**LAYER, "fc_norm": True}, eagle_tensors()), TARGET)


@pytest.mark.parametrize("absolute", [False, True])
def test_a_reduced_vocabulary_becomes_absolute_ids(absolute: bool, tmp_path: Path) -> None:
    small = replace(EAGLE, draft_vocab_size=5)
    tensors = {**eagle_tensors(small, "lm_head.weight"), **reduced()}
    if absolute:
        tensors["d2t"] = IDS
    # the flag lies in some published heads: the head's own matrix counts
    json_ = {**LAYER, "draft_vocab_size": 5, "tie_word_embeddings": True}
    config, found = load_eagle3(write(tmp_path, json_, tensors), TARGET)
    assert config.draft_vocab_size == 5
    assert torch.equal(found["draft_ids"], IDS)
    assert found["lm_head.weight"].shape == (5, 16)
    assert not {"d2t", "t2d"} & found.keys()


def test_the_maps_alone_tell_the_vocabulary(tmp_path: Path) -> None:
    maps = reduced()
    for kept in (("d2t",), ("d2t", "t2d")):
        tensors = {**eagle_tensors(), **{name: maps[name] for name in kept}}
        config, found = load_eagle3(write(tmp_path, LAYER, tensors), TARGET)
        assert config.draft_vocab_size == 5 and torch.equal(found["draft_ids"], IDS)


def test_an_identity_map_is_no_map(tmp_path: Path) -> None:
    tensors = {**eagle_tensors(), "d2t": torch.zeros(40, dtype=torch.int64)}
    tensors["t2d"] = torch.ones(40, dtype=torch.bool)
    assert "draft_ids" not in load_eagle3(write(tmp_path, LAYER, tensors), TARGET)[1]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"d2t": torch.full((5,), 50)}, "neither offsets nor ids"),
        ({"d2t": torch.tensor([1, 3, 5, 27, 34])}, "neither offsets nor ids"),
        ({"d2t": torch.ones(5)}, "'d2t' is not 5 integers"),
        ({"t2d": torch.ones(40, dtype=torch.bool)}, "'t2d' marks 40 tokens"),
        ({"t2d": torch.ones(41, dtype=torch.bool)}, r"'t2d' has shape \[41\]"),
    ],
)
def test_vocabulary_maps_that_disagree(
    change: dict[str, Tensor], match: str, tmp_path: Path
) -> None:
    tensors = {**eagle_tensors(), **reduced(), **change}
    with pytest.raises(CheckpointError, match=match):
        load_eagle3(write(tmp_path, {**LAYER, "draft_vocab_size": 5}, tensors), TARGET)


def test_a_reduced_vocabulary_without_maps(tmp_path: Path) -> None:
    for size, match in ((5, "lacks tensor 'd2t'"), (99, "exceeds the target's 40")):
        with pytest.raises(CheckpointError, match=match):
            load_eagle3(
                write(tmp_path, {**LAYER, "draft_vocab_size": size}, eagle_tensors()), TARGET
            )


def test_a_head_narrower_than_its_target_brings_its_own_matrices(tmp_path: Path) -> None:
    target = replace(TARGET, hidden_size=24)
    wide = replace(EAGLE, target_hidden_size=24)
    json_ = {**LAYER, "target_hidden_size": 24}
    assert load_eagle3(write(tmp_path, json_, eagle_tensors(wide)), target)[0] == wide
    tensors = eagle_tensors(wide)
    del tensors["embed_tokens.weight"]
    with pytest.raises(CheckpointError, match=r"lacks tensor 'embed_tokens\.weight'"):
        load_eagle3(write(tmp_path, json_, tensors), target)


@pytest.mark.parametrize(
    ("target", "match"),
    [
        (replace(TARGET, hidden_size=32), "hidden size 16, this one has 32"),
        (replace(TARGET, vocab_size=39), "vocabulary of 40, the target has 39"),
    ],
)
def test_a_drafter_of_another_target_is_refused(
    target: ModelConfig, match: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=match):
        load_eagle3(write(tmp_path / "a", LAYER, eagle_tensors()), target)
    with pytest.raises(CheckpointError, match=match):
        load_dflash(write(tmp_path / "d", DFLASH_JSON, dflash_tensors()), target)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"num_hidden_layers": 2}, "only heads of one layer"),
        ({"speculators_model_type": "dflash"}, "is not 'eagle3'"),
        ({"eagle_config": {"use_aux_hidden_state": False}}, "without fused features"),
        ({"eagle_aux_hidden_state_layer_ids": [1, 3, 9]}, "not boundaries of a target of 8"),
        ({"eagle_aux_hidden_state_layer_ids": [1, 3]}, r"'fc\.weight' has shape \[16, 48\]"),
        ({"num_key_value_heads": 3}, "does not divide"),
        ({"num_attention_heads": 0}, "less than 1"),
        ({"intermediate_size": 21}, r"not \[16, 21\]"),
    ],
)
def test_heads_that_cannot_be_run(change: dict[str, object], match: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=match):
        load_eagle3(write(tmp_path, {**LAYER, **change}, eagle_tensors()), TARGET)


def test_left_over_and_lacking_tensors(tmp_path: Path) -> None:
    tensors = {**eagle_tensors(), "mask_hidden": torch.ones(1, 1, 48)}
    with pytest.raises(CheckpointError, match="holds tensor 'mask_hidden'"):
        load_eagle3(write(tmp_path, LAYER, tensors), TARGET)
    tensors = eagle_tensors()
    del tensors["fc.weight"]
    with pytest.raises(CheckpointError, match=r"lacks tensor 'fc\.weight'"):
        load_eagle3(write(tmp_path, LAYER, tensors), TARGET)
    tensors = {**eagle_tensors(), "model.fc.weight": torch.ones(16, 48)}
    with pytest.raises(CheckpointError, match="under two names"):
        load_eagle3(write(tmp_path, LAYER, tensors), TARGET)


# ---------------------------------------------------------------- DFlash


def test_the_z_lab_layout(tmp_path: Path) -> None:
    tensors = dflash_tensors()
    config, found = load_dflash(write(tmp_path, DFLASH_JSON, tensors), TARGET)
    assert config == DFLASH
    assert found.keys() == tensors.keys() and len(tensors) == 3 + 11 * 2


def test_the_speculators_layout_of_dflash(tmp_path: Path) -> None:
    wanted = replace(DFLASH, draft_vocab_size=5, taps=(1, 3, 5))
    nested: dict[str, object] = {
        "speculators_model_type": "dflash",
        "transformer_layer_config": {**LAYER, "num_hidden_layers": 2, "rope_theta": 1e6},
        "aux_hidden_state_layer_ids": [1, 3, 5],
        "mask_token_id": 39,
        "block_size": 6,
        "sample_from_anchor": False,
        "draft_vocab_size": 5,
    }
    tensors = {**dflash_tensors(wanted, "lm_head.weight", "embed_tokens.weight"), **reduced()}
    config, found = load_dflash(write(tmp_path, nested, tensors), TARGET)
    assert config == wanted
    assert torch.equal(found["draft_ids"], IDS)
    assert {"lm_head.weight", "embed_tokens.weight"} <= found.keys()


def test_block_size_may_stand_inside_and_taps_be_absent(tmp_path: Path) -> None:
    json_ = {**DFLASH_JSON, "dflash_config": {"mask_token_id": 39, "block_size": 4}}
    del json_["block_size"]
    config, _ = load_dflash(write(tmp_path, json_, dflash_tensors()), TARGET)
    # layers 1, 3, 5 of 8 by the published formula; a boundary is one more
    assert (config.block_size, config.taps) == (4, (2, 4, 6))


def test_sliding_layers_and_causality(tmp_path: Path) -> None:
    json_ = {
        **DFLASH_JSON,
        "layer_types": ["sliding_attention", "full_attention"],
        "sliding_window": 8,
    }
    config, _ = load_dflash(write(tmp_path, json_, dflash_tensors()), TARGET)
    assert (config.windows, config.causal) == ((8, None), (True, False))
    config, _ = load_dflash(
        write(tmp_path, {**json_, "is_causal": False}, dflash_tensors()), TARGET
    )
    assert config.causal == (False, False)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"architectures": ["DFlash2DraftModel"]}, "DFlash 2"),
        ({"sample_from_anchor": True}, "sample_from_anchor"),
        ({"dflash_config": {"mask_token_id": 39, "projector_type": "x"}}, "projector_type"),
        ({"dflash_config": {"mask_token_id": 40}}, "40 is not one of the 40 tokens"),
        ({"dflash_config": {}}, "mask_token_id: is missing"),
        ({"block_size": 1}, "1 is less than 2"),
        ({"layer_types": ["full_attention"]}, "for 2 layers"),
        ({"layer_types": ["sliding_attention"] * 2}, "sliding_window: must be positive"),
        ({"use_sliding_window": True}, "must say which layers slide"),
        ({"num_hidden_layers": 3}, r"lacks tensors 'layers\.2\."),
        ({"num_hidden_layers": 1}, r"holds tensors 'layers\.1\."),
        (
            {"dflash_config": {"mask_token_id": 39, "target_layer_ids": [1, 3, 8]}},
            "do not exist in 8 target layers",
        ),
    ],
)
def test_dflash_drafters_that_cannot_be_run(
    change: dict[str, object], match: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=match):
        load_dflash(write(tmp_path, {**DFLASH_JSON, **change}, dflash_tensors()), TARGET)


def test_a_truncated_drafter_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path, DFLASH_JSON, dflash_tensors())
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: is truncated"):
        load_dflash(folder, TARGET)
