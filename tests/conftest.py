"""Fixtures that several files use."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import replace
from typing import cast

import pytest
from hypothesis import settings
from torch import Tensor

from tests import toys
from tests.fake_engine import byte_tokenizer
from whiflash_engine.engine import Engine
from whiflash_engine.linear import Linear

# How long an example takes says more about the machine's other work than about the code.
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")


def pytest_collection_finish() -> None:
    """What is imported by now stays: the tests that collect garbage need not look at it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """Tiny random networks, wide enough for a tokenizer that can spell every grammar."""
    monkeypatch.setattr(toys, "TINY", replace(toys.TINY, vocab_size=300))
    target = toys.tiny_target()
    tokenizer = byte_tokenizer()
    stops = (cast(int, tokenizer.eos_token_id),)
    yield Engine(target, toys.tiny_drafters(target), tokenizer, stop_token_ids=stops)


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """No weights of eight bits: what drafters say is compared with what they were given."""
    make = Linear.__init__

    def unrounded(
        self: Linear, weight: Tensor, bias: Tensor | None = None, *, rounded: bool = False
    ) -> None:
        make(self, weight, bias)

    monkeypatch.setattr(Linear, "__init__", unrounded)


@pytest.fixture(scope="session")
def default_engine() -> Engine:
    """The embedded default model, loaded once; for tests marked `model`."""
    return Engine.load()
