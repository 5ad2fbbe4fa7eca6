"""Memory for weights, in large pages where the system has some to give.

A pass reads every weight once, from more pages than a processor remembers the places of, so that
each page costs a search for where it lies. Large ones are 512 times fewer.
"""

from __future__ import annotations

import math
import mmap
import threading
from contextlib import suppress
from typing import Final

import torch
from torch import Tensor

_PIECE: Final = 64 << 20
"""Bytes asked for at once: a page of two MiB is none where it does not lie in one piece."""
_ALIGNED: Final = 64


class Pages:
    """Tensors cut from large pieces, one behind the other. Several threads may take some at once.

    A piece goes when none of its tensors is left and none can be cut from it any more. What nobody
    has written to takes no memory.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._left = _piece(1)[:0]

    def take(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """As `torch.empty`, on the CPU."""
        size = math.prod(shape) * dtype.itemsize
        if size >= _PIECE:
            return _piece(size).view(dtype).view(shape)
        with self._lock:
            if len(self._left) < size:
                self._left = _piece(_PIECE)
            found, self._left = self._left[:size], self._left[-(-size // _ALIGNED) * _ALIGNED :]
        return found.view(dtype).view(shape)


@torch.inference_mode(False)  # or nobody else could write to it
def _piece(size: int) -> Tensor:
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(size, dtype=torch.uint8)
    room = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without them
        room.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(room, dtype=torch.uint8)
