"""Every example runs on the real default model."""

from __future__ import annotations

import re
import runpy
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from whiflash_agents import ChatWhiFlash

FOLDER = Path(__file__).parent.parent / "examples"
SHOWN = {
    "agent": "69104",
    "extract": "Casa Nova: ",
    "graph": r" [1-9]\d* prompt tokens were still there",
    "loop": "298",
    "stream": " tokens each",
}
"""What only an example that worked prints."""


@pytest.fixture(scope="module")
def loaded() -> Iterator[None]:
    """Chat models of one origin share an engine as long as one of them lives."""
    chat = ChatWhiFlash()
    chat.get_token_ids("hello")
    yield


@pytest.mark.model
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("loaded")
@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_runs_within_a_minute(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = time.perf_counter()
    runpy.run_path(str(path), run_name="__main__")
    assert time.perf_counter() - start < 60
    assert re.search(SHOWN[path.stem], capsys.readouterr().out)
