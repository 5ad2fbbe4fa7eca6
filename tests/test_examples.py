"""Every example runs on the real default model."""

from __future__ import annotations

import runpy
import time
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


@pytest.mark.model
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_within_a_minute(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = time.perf_counter()
    runpy.run_path(str(path), run_name="__main__")
    assert time.perf_counter() - start < 60
    assert capsys.readouterr().out.strip()
