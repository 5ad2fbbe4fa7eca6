"""`whiflash-agents trace` claims a page only where it wrote one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fake_engine import FakeEngine
from whiflash_agents.cli import main
from whiflash_engine.engine import Engine


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Engine, "load", lambda *_, **__: FakeEngine("hello"))


def test_the_page_is_written(
    answering: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["trace", "hi", "--output", str(tmp_path / "page.html")]) == 0
    assert "round 1: AR" in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "page.html" in capsys.readouterr().out


@pytest.mark.parametrize("place", ["", "none/page.html", "file/page.html"])
def test_a_place_that_takes_no_page_is_told_before_a_model_is_loaded(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load(*_: object, **__: object) -> Engine:
        raise AssertionError("a model is loaded")

    (tmp_path / "file").write_text("")
    monkeypatch.setattr(Engine, "load", load)
    assert main(["trace", "hi", "--output", str(tmp_path / place)]) == 2
    assert "output=" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    assert main(["trace", "hi", "--output", str(tmp_path / "page.html")]) == 2
    assert "cannot be written (Permission denied)" in capsys.readouterr().err


def test_a_page_that_was_not_written_is_not_claimed(
    answering: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def full(*_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    assert main(["trace", "hi", "--output", str(tmp_path / "page.html")]) == 1
    shown = capsys.readouterr()
    assert "hello" in shown.out and "page.html" not in shown.out
    assert "No space left" in shown.err
