"""Fixtures that several files use."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import cast

import pytest

from tests import toys
from tests.fake_engine import byte_tokenizer
from whiflash_engine.engine import Engine


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
