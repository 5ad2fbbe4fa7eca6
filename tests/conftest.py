"""Fixtures that several files use."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import replace
from typing import cast

import pytest
from hypothesis import settings

from tests import toys
from tests.fake_engine import byte_tokenizer
from whiflash_engine.engine import Engine

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


@pytest.fixture(scope="session")
def default_engine() -> Engine:
    """The embedded default model, loaded once; for tests marked `model`."""
    return Engine.load()
