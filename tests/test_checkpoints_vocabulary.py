"""A target that was taught a few more tokens than its drafters know."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.test_checkpoints_drafters import (
    DFLASH,
    DFLASH_JSON,
    EAGLE,
    IDS,
    LAYER,
    TARGET,
    dflash_tensors,
    eagle_tensors,
    reduced,
    write,
)
from whiflash_engine.checkpoints.dflash import load_dflash
from whiflash_engine.checkpoints.eagle3 import load_eagle3
from whiflash_engine.errors import CheckpointError

TUNED = replace(TARGET, vocab_size=48)


def test_without_matrices_of_its_own_a_drafter_speaks_them_all(tmp_path: Path) -> None:
    for folder, found in (
        ("a", load_eagle3(write(tmp_path / "a", LAYER, eagle_tensors()), TUNED)[1]),
        ("d", load_dflash(write(tmp_path / "d", DFLASH_JSON, dflash_tensors()), TUNED)[1]),
    ):
        assert not {"draft_ids", "lm_head.weight"} & found.keys(), folder


def test_a_head_of_its_own_stays_with_what_it_knows(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", LAYER, eagle_tensors(EAGLE, "lm_head.weight"))
    config, found = load_eagle3(folder, TUNED)
    assert config.draft_vocab_size == len(found["lm_head.weight"]) == 40
    assert torch.equal(found["draft_ids"], torch.arange(40))
    folder = write(tmp_path / "d", DFLASH_JSON, dflash_tensors(DFLASH, "lm_head.weight"))
    assert torch.equal(load_dflash(folder, TUNED)[1]["draft_ids"], torch.arange(40))


def test_a_reduced_vocabulary_is_as_it_was(tmp_path: Path) -> None:
    small = replace(EAGLE, draft_vocab_size=5)
    tensors = {**eagle_tensors(small, "lm_head.weight"), **reduced()}
    folder = write(tmp_path, {**LAYER, "draft_vocab_size": 5}, tensors)
    assert torch.equal(load_eagle3(folder, TUNED)[1]["draft_ids"], IDS)


def test_an_embedding_of_its_own_lacks_them(tmp_path: Path) -> None:
    match = "made for a vocabulary of 40, the target has 48"
    folder = write(tmp_path / "a", LAYER, eagle_tensors(EAGLE, "embed_tokens.weight"))
    with pytest.raises(CheckpointError, match=match):
        load_eagle3(folder, TUNED)
    folder = write(tmp_path / "d", DFLASH_JSON, dflash_tensors(DFLASH, "embed_tokens.weight"))
    with pytest.raises(CheckpointError, match=match):
        load_dflash(folder, TUNED)


def test_many_more_tokens_are_those_of_another_tokenizer(tmp_path: Path) -> None:
    folder = write(tmp_path, LAYER, eagle_tensors())
    load_eagle3(folder, replace(TARGET, vocab_size=40 + 256))
    with pytest.raises(CheckpointError, match="vocabulary of 40, the target has 297"):
        load_eagle3(folder, replace(TARGET, vocab_size=40 + 257))


def test_what_stands_for_unknown_is_a_token_it_was_trained_with(tmp_path: Path) -> None:
    extra = {"mask_token_id": 41, "target_layer_ids": [1, 3, 5]}
    folder = write(tmp_path, {**DFLASH_JSON, "dflash_config": extra}, dflash_tensors())
    with pytest.raises(CheckpointError, match="41 is not one of the 40 tokens"):
        load_dflash(folder, TUNED)
