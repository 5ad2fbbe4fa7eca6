"""Files that are not what was asked for: pickles, pointers, drafters of another kind."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.test_checkpoints_drafters import (
    DFLASH,
    DFLASH_JSON,
    EAGLE,
    LAYER,
    TARGET,
    dflash_tensors,
    eagle_tensors,
    write,
)
from whiflash_engine.checkpoints.dflash import load_dflash
from whiflash_engine.checkpoints.eagle3 import load_eagle3
from whiflash_engine.checkpoints.resolve import resolve_model
from whiflash_engine.checkpoints.tensors import read_folder
from whiflash_engine.errors import CheckpointError

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 123\n"


def test_the_error_for_a_pickle_tells_the_lines_that_convert_it(tmp_path: Path) -> None:
    folder = write(tmp_path / "it's", LAYER, eagle_tensors())
    wanted = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    # as some are saved: a matrix that is a view, two names for one
    pickled = {name: w.T.contiguous().T if w.ndim == 2 else w for name, w in wanted.items()}
    torch.save({**pickled, "twin": pickled["norm.weight"]}, folder / "pytorch_model.bin")
    torch.save({}, folder / "training_args.bin")
    with pytest.raises(CheckpointError, match="save the model again as safetensors") as caught:
        load_eagle3(folder, TARGET)
    lines = re.findall(r"^    (.*)$", str(caught.value), re.MULTILINE)
    assert any("weights_only=True" in line for line in lines)
    exec("\n".join(lines), {})
    found = load_file(folder / "model.safetensors")
    assert found.keys() == {*wanted, "twin"}
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_no_lines_are_told_for_several_pickles(tmp_path: Path) -> None:
    for part in (1, 2):
        torch.save({}, tmp_path / f"pytorch_model-0000{part}-of-00002.bin")
    with pytest.raises(CheckpointError, match=r"again as safetensors$"):
        read_folder(tmp_path)


def test_a_pointer_of_git_lfs_is_not_the_weights(tmp_path: Path) -> None:
    folder = write(tmp_path / "ar", LAYER, eagle_tensors())
    (folder / "model.safetensors").write_text(POINTER)
    told = r"model\.safetensors: is a Git LFS pointer, not the weights.*git lfs pull"
    with pytest.raises(CheckpointError, match=told):
        load_eagle3(folder, TARGET)
    # whichever runner it is for
    with pytest.raises(CheckpointError, match=told):
        resolve_model(folder)
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    index = {"weight_map": {"norm.weight": "model-00001-of-00001.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="is a Git LFS pointer"):
        load_eagle3(folder, TARGET)


def test_a_drafter_of_the_other_kind_is_called_by_its_name(tmp_path: Path) -> None:
    dflash = write(tmp_path / "dflash", DFLASH_JSON, dflash_tensors())
    with pytest.raises(CheckpointError, match="this is a DFlash checkpoint, not EAGLE-3"):
        load_eagle3(dflash, TARGET)
    for prefix in ("midlayer", "layers.0"):
        tensors = {n.replace("midlayer", prefix): w for n, w in eagle_tensors().items()}
        with pytest.raises(CheckpointError, match="this is an EAGLE-3 checkpoint, not DFlash"):
            load_dflash(write(tmp_path / prefix, LAYER, tensors), TARGET)


def test_an_older_head_is_called_by_its_name(tmp_path: Path) -> None:
    tensors = {
        "fc.weight": torch.ones(16, 32),
        "layers.0.self_attn.q_proj.weight": torch.ones(16, 16),
        "embed_tokens.weight": torch.ones(40, 16),
    }
    with pytest.raises(CheckpointError, match="this is an EAGLE-1 or EAGLE-2 checkpoint, not"):
        load_eagle3(write(tmp_path, LAYER, tensors), TARGET)


# ---------------------------------------------------------------- the config's own words


@pytest.mark.parametrize("nested", [False, True])
def test_another_activation_is_refused(nested: bool, tmp_path: Path) -> None:
    def told(config: dict[str, object]) -> dict[str, object]:
        layer = {**config, "hidden_act": "gelu_pytorch_tanh"}
        return {**config, "transformer_layer_config": layer} if nested else layer

    match = "hidden_act: 'gelu_pytorch_tanh' is not silu"
    with pytest.raises(CheckpointError, match=match):
        load_eagle3(write(tmp_path / "a", told(LAYER), eagle_tensors()), TARGET)
    with pytest.raises(CheckpointError, match=match):
        load_dflash(write(tmp_path / "d", told(DFLASH_JSON), dflash_tensors()), TARGET)


def test_a_dflash_drafter_of_a_deeper_target_is_refused(tmp_path: Path) -> None:
    for layers, fits in ((8, True), (36, False)):
        folder = write(tmp_path, {**DFLASH_JSON, "num_target_layers": layers}, dflash_tensors())
        if fits:
            assert load_dflash(folder, TARGET)[0] == DFLASH
        else:
            with pytest.raises(CheckpointError, match="a target of 36 layers, this one has 8"):
                load_dflash(folder, TARGET)


def test_the_projector_of_dflash_is_the_neutral_one(tmp_path: Path) -> None:
    extra = {"mask_token_id": 39, "target_layer_ids": [1, 3, 5], "projector_type": "dflash"}
    folder = write(tmp_path, {**DFLASH_JSON, "dflash_config": extra}, dflash_tensors())
    assert load_dflash(folder, TARGET)[0] == DFLASH


def test_a_head_dimension_that_is_not_told_is_that_of_the_weights(tmp_path: Path) -> None:
    for width in (8, 4):  # hidden / heads, and another
        eagle, dflash = replace(EAGLE, head_dim=width), replace(DFLASH, head_dim=width)
        layer = {**LAYER, "head_dim": None}
        folder = write(tmp_path / "a", layer, eagle_tensors(eagle))
        assert load_eagle3(folder, TARGET)[0] == eagle
        folder = write(tmp_path / "d", {**DFLASH_JSON, **layer, "num_hidden_layers": 2},
                       dflash_tensors(dflash))  # fmt: skip
        assert load_dflash(folder, TARGET)[0] == dflash
