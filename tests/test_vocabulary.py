"""A reduced vocabulary that is open to the words of the text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.toys import (
    TINY,
    new_router,
    new_sequence,
    run,
    tiny_dflash_parts,
    tiny_eagle3_parts,
    tiny_target,
)
from whiflash_engine.config import ArmName, RouterConfig, RouterName, SamplingConfig
from whiflash_engine.decode import decode
from whiflash_engine.drafters.base import Drafter
from whiflash_engine.drafters.dflash import DFlashDrafter, DFlashState
from whiflash_engine.drafters.eagle3 import Eagle3Drafter, Eagle3State
from whiflash_engine.drafters.vocabulary import DraftHead
from whiflash_engine.events import tokens_of
from whiflash_engine.target.native import NativeTarget

KNOWN = torch.arange(0, TINY.vocab_size, 2)
"""Even ids: every other token is a word that the head lacks."""


FEW = torch.arange(0, TINY.vocab_size, 10)


def open_drafters(target: NativeTarget) -> Mapping[ArmName, Drafter]:
    eagle, eagle_weights = tiny_eagle3_parts(target)
    dflash, dflash_weights = tiny_dflash_parts(target)
    size = len(FEW)
    return {
        "ar": Eagle3Drafter(
            replace(eagle, draft_vocab_size=size), eagle_weights | {"draft_ids": FEW}, target, 4
        ),
        "diffusion": DFlashDrafter(
            replace(dflash, draft_vocab_size=size), dflash_weights | {"draft_ids": FEW}, target
        ),
    }


def head(target: NativeTarget, **weights: Tensor) -> DraftHead:
    return DraftHead(target, {name.replace("_weight", ".weight"): w for name, w in weights.items()})


def test_words_are_met_once_and_forgotten_by_place() -> None:
    words = head(tiny_target(), draft_ids=KNOWN).new_words()
    words.learn([2, 5, 4, 7, 5])
    assert words.ids == [5, 7]
    words.learn([2, 5, 4, 7, 5, 9])
    assert words.ids == [5, 7, 9]
    for _ in range(2):
        words.crop(3)
        assert words.ids == [5] and len(words.rows) == 1
    words.learn([2, 5, 4, 11])
    assert words.ids == [5, 11]


def test_logits_of_words_are_the_targets_rows(exact: None) -> None:
    target = tiny_target()
    made = head(target, draft_ids=KNOWN)
    words = made.new_words()
    words.learn([3, 8, 5])
    x = torch.randn(2, TINY.hidden_size)
    logits = made(x, words)
    ids = made.tokens(range(logits.shape[1]), words)
    assert ids == [*KNOWN.tolist(), 3, 5]
    torch.testing.assert_close(logits, x @ target.head_rows(torch.tensor(ids)).T)
    spread = made.scatter(logits.softmax(1), words)
    assert spread is not None
    torch.testing.assert_close(spread[:, ids], logits.softmax(1))
    torch.testing.assert_close(spread.sum(1), torch.ones(2))


@pytest.mark.parametrize(
    "weights", [{}, {"draft_ids": KNOWN, "lm_head_weight": torch.ones(31, 32)}]
)
def test_a_full_vocabulary_or_a_head_of_its_own_stays_as_it_is(weights: dict[str, Tensor]) -> None:
    words = head(tiny_target(), **weights).new_words()
    words.learn([1, 3, 5])
    assert words.ids == []


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_drafters_with_words_are_lossless_and_use_them(temperature: float) -> None:
    target = tiny_target()
    drafters = open_drafters(target)
    sampling = SamplingConfig(max_tokens=60, temperature=temperature, seed=3)
    plain = tokens_of(
        run(target, drafters, (1, 3, 5), sampling=sampling, router=RouterConfig("plain"))
    )
    used: set[int] = set()
    names: tuple[RouterName, ...] = ("ar", "diffusion", "random")
    for name in names:
        rounds = run(target, drafters, (1, 3, 5), sampling=sampling, router=RouterConfig(name))
        if temperature == 0:
            assert tokens_of(rounds) == plain
        used.update(token for r in rounds for token in r.proposed)
    assert used - set(FEW.tolist()), "words were drafted"


def test_a_sequence_that_went_back_knows_no_more_than_a_fresh_one() -> None:
    target = tiny_target()
    drafters = open_drafters(target)
    sequence = new_sequence(target, drafters, (1, 3, 5), 40)
    router = new_router(RouterConfig("random"), drafters)
    list(decode(target, drafters, router, sequence, SamplingConfig(max_tokens=40)))
    sequence.rewind(3)
    for state in sequence.drafts.values():
        assert isinstance(state, Eagle3State | DFlashState)
        assert set(state.words.ids) <= {1, 3, 5}
