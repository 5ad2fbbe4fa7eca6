"""What loading says, as the library's log has it: in the words that are really said."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.test_checkpoints_fetch import Index
from whiflash_adapters.slot import tell
from whiflash_engine.checkpoints import hub
from whiflash_engine.checkpoints.fetch import Report, fetch
from whiflash_engine.errors import ModelNotFoundError


def default_model(folder: Path, report: Report) -> None:
    index = Index(folder, failures=1)
    fetch(index.source, folder / "cache", report=report, download=index, pause=0)


def damaged_model(folder: Path, report: Report) -> None:
    index = Index(folder)
    kept = fetch(index.source, folder / "cache", report=lambda _: None, download=index, pause=0)
    kept.write_bytes(b"cut short")
    fetch(index.source, folder / "cache", report=report, download=index, pause=0)


def model_of_the_hub(_: Path, report: Report) -> None:
    with pytest.raises(ModelNotFoundError):
        hub.fetch_from_hub("org/name", report=report)


@pytest.mark.parametrize(
    ("download", "levels"),
    [
        (default_model, ["WARNING", "INFO"]),
        (damaged_model, ["WARNING", "WARNING"]),
        (model_of_the_hub, ["WARNING"]),
    ],
)
def test_a_download_is_a_warning_and_its_steps_are_not(
    download: Callable[[Path, Report], None], levels: list[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    def absent(*_: object, **__: object) -> str:
        raise OSError("no network")

    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(hub, "snapshot_download", absent)
    caplog.set_level(logging.INFO, logger="whiflash_agents")
    download(tmp_path, tell)
    assert [record.levelname for record in caplog.records] == levels
