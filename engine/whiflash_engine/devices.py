"""Where to compute, and in which precision."""

from __future__ import annotations

import platform
import re
from typing import Final

import torch

from whiflash_engine.config import require
from whiflash_engine.errors import ConfigError

ROUNDED: Final = "int8"
"""The precision of a target whose weights, and what they are multiplied with, have eight bits."""


def choose_device(name: str | None) -> torch.device:
    """One of "cpu", "cuda" and "cuda:N"; None takes a GPU when there is one."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    form = re.fullmatch(r"cpu|cuda(?::(0|[1-9][0-9]{0,3}))?", name)
    if form is None:
        raise ConfigError("device", name, 'must be "cpu", "cuda" or "cuda:N"')
    if name != "cpu":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        index = int(form[1] or 0)
        require(index < count, "device", name, f"no such device here, which has {count} GPUs")
    return torch.device(name)


def choose_dtype(name: str | None, device: torch.device) -> torch.dtype:
    """None takes bfloat16 on GPUs and CPUs that compute in it, float32 elsewhere. int8 is of
    products alone; all between them is float32."""
    on_gpu = device.type == "cuda"
    if name is None:
        fast = _gpu_has_bfloat16(device) if on_gpu else _computes_in_bfloat16()
        return torch.bfloat16 if fast else torch.float32
    kinds = {"bfloat16": torch.bfloat16, "float32": torch.float32, ROUNDED: torch.float32}
    require(name in kinds, "dtype", name, f"must be one of {', '.join(kinds)}")
    able = name != "bfloat16" or not on_gpu or _gpu_has_bfloat16(device)
    require(able, "dtype", name, "this GPU does not compute in it")
    require(not on_gpu or name != ROUNDED, "dtype", name, 'is for CPUs: device="cpu"')
    return kinds[name]


def dtype_name(dtype: torch.dtype) -> str:
    """As users write it."""
    return str(dtype).removeprefix("torch.")


def wait_for(device: torch.device) -> None:
    """Until all is done that was asked of it: a GPU is told what to do, and works on behind the
    program's back. To be called before a clock is read."""
    if device.type == "cuda":
        # all is asked of this stream; the whole device may not be waited for while another thread
        # records a graph
        torch.cuda.current_stream(device).synchronize()


def device_name(device: torch.device) -> str:
    """For figures: "cpu", or what the GPU's maker calls it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _gpu_has_bfloat16(device: torch.device) -> bool:
    """From Ampere on; older ones are slow in it, and have no attention for it."""
    return torch.cuda.get_device_capability(device) >= (8, 0)


def _computes_in_bfloat16() -> bool:
    """Of the processor. oneDNN calls bfloat16 supported on all of AVX512, and emulates it there."""
    if platform.machine().lower() in ("x86_64", "amd64"):
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch._C._has_mkldnn and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
