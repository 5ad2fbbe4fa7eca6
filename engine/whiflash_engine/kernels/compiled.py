"""Kernels in C, compiled for this very processor when they are first used.

That takes half a second and a C compiler; nothing is kept, so nothing can be out of date. Where
there is no compiler, or another system, callers do without.
"""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import re
import shlex
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

_log = logging.getLogger(__name__)
_SOURCE: Final = Path(__file__).with_name("product.c")
_FLAGS: Final = ("-O3", "-march=native", "-fopenmp", "-fPIC")
_SECONDS: Final = 60


class Product:
    """y = x W^T in float32, W kept in bfloat16; see product.c."""

    def __init__(self, library: Path) -> None:
        # holds the library, whose file may then go
        self._call = ctypes.CDLL(str(library)).product
        self._call.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_long] * 3 + [ctypes.c_int]
        self._call.restype = None

    @staticmethod
    def pack(weight: Tensor) -> Tensor:
        """(out, in), which bfloat16 must hold -> (panels, in, 8, 2) bfloat16."""
        outputs, inputs = weight.shape
        padded = weight.new_zeros(-(-outputs // 16) * 16, inputs, dtype=torch.bfloat16)
        padded[:outputs] = weight
        return padded.view(-1, 2, 8, inputs).permute(0, 3, 2, 1).contiguous()

    def __call__(self, packed: Tensor, outputs: int, x: Tensor) -> Tensor:
        """x: (n, in) float32 -> (n, outputs)."""
        inputs = packed.shape[1]
        if x.dtype != torch.float32 or x.shape[1:] != (inputs,):
            raise ValueError(f"x is {x.dtype} {tuple(x.shape)}, not float32 (n, {inputs})")
        x, y = x.contiguous(), x.new_empty(x.shape[0], outputs)
        self._call(
            packed.data_ptr(), x.data_ptr(), y.data_ptr(),
            x.shape[0], inputs, outputs, torch.get_num_threads(),
        )  # fmt: skip
        return y


@cache
def product() -> Product | None:
    """None where it cannot be compiled: then the log says why."""
    if platform.machine().lower() not in ("x86_64", "amd64") or not _has_avx2():
        return None
    openmp = _openmp()
    if openmp is None:
        return None
    compiler = shlex.split(os.environ.get("CC") or "cc")
    try:
        with tempfile.TemporaryDirectory() as folder:
            code, library = Path(folder, "product.o"), Path(folder, "product.so")
            _run([*compiler, *_FLAGS, "-c", str(_SOURCE), "-o", str(code)])
            _run([*compiler, "-shared", str(code), str(openmp), "-o", str(library)])
            return Product(library)
    except (OSError, subprocess.SubprocessError) as error:
        _log.info("no kernel of our own: %s", error)
        return None


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=_SECONDS)


def _has_avx2() -> bool:
    return torch.backends.cpu.get_cpu_capability().startswith("AVX")


def _openmp() -> Path | None:
    """The OpenMP that torch computes with. A second one would have threads of its own, which get
    into the way of the first one's."""
    try:
        mapped = Path("/proc/self/maps").read_text()
    except OSError:  # not Linux
        return None
    found = re.findall(r"(/.*/(?:libgomp|libiomp5|libomp)[^/]*\.so[^/\n]*)$", mapped, re.MULTILINE)
    own = str(Path(torch.__file__).parent)
    paths = sorted(set(found), key=lambda path: not path.startswith(own))
    return Path(paths[0]) if paths else None
