"""C sources into a library, compiled for this very processor.

That takes a C compiler and some seconds, the fewer the more cores there are; nothing is kept, so
nothing can be out of date.
"""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import shlex
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import torch

_log = logging.getLogger(__name__)
_FLAGS: Final = ("-O3", "-march=native", "-fno-math-errno", "-pthread", "-fPIC")
_SECONDS: Final = 60


def build(sources: Sequence[Path]) -> ctypes.CDLL | None:
    """None where they cannot be compiled: on other systems than Linux on x86 with AVX2, and
    without a C compiler (`CC`, else `cc`). Then the log says why."""
    try:
        return _built(sources)
    except (OSError, RuntimeError, ValueError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or b""
        _log.info("no kernels of our own: %s %s", error, said.decode(errors="replace"))
        return None


def _built(sources: Sequence[Path]) -> ctypes.CDLL:
    if platform.machine().lower() not in ("x86_64", "amd64") or not _has_avx2():
        raise OSError("they are for x86 with AVX2")
    if platform.system() != "Linux":
        raise OSError("they are for Linux")
    compiler = shlex.split(os.environ.get("CC") or "cc")
    with tempfile.TemporaryDirectory() as folder:
        objects = [str(Path(folder, source.with_suffix(".o").name)) for source in sources]
        commands = [
            [*compiler, *_FLAGS, "-c", str(source), "-o", compiled]
            for source, compiled in zip(sources, objects, strict=True)
        ]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for _ in pool.map(_run, commands):  # raises what the first of them did
                pass
        library = str(Path(folder, "kernels.so"))
        _run([*compiler, "-shared", "-pthread", *objects, "-lm", "-o", library])
        return ctypes.CDLL(library)  # its file may go now


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=_SECONDS)


def _has_avx2() -> bool:
    return torch.backends.cpu.get_cpu_capability().startswith("AVX")
