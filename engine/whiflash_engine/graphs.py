"""CUDA graphs: a GPU's work of fixed shape, recorded once and started by one call.

At the widths of a draft a pass is hundreds of kernels of microseconds each, and telling a GPU of
one takes longer than the kernel itself. A graph fixes all shapes and addresses; what changes from
pass to pass has to lie in tensors that it reads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import Final, Protocol

import torch
from torch import Tensor

FixedWork = Callable[[], tuple[Tensor, ...]]
"""Reads and writes the same tensors at every call, and asks nothing of the device; doing it twice
is doing it once. What comes out is overwritten by the next call, of it or of any other work that
the same `Capture` has recorded."""


class Capture(Protocol):
    """Makes work cheaper to start. Whoever wants it as it is returns it."""

    @property
    def lock(self) -> Lock:
        """To be held while work is recorded, and from a call until what came out is copied or made
        use of: what one recorded piece of work leaves, another may overwrite."""
        ...

    def __call__(self, work: FixedWork) -> FixedWork: ...


class GraphCapture:
    """Records on a stream of its own. All graphs share one pool of memory, as never two run at
    once; so their outputs may not be read after another's call."""

    def __init__(self, device: torch.device) -> None:
        self._device: Final = device
        self._stream: Final = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool: Final = torch.cuda.graph_pool_handle()
        self.lock: Final = Lock()

    def __call__(self, work: FixedWork) -> FixedWork:
        with torch.cuda.device(self._device):
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                work()  # libraries set themselves up at the first call, which cannot be recorded
            graph = torch.cuda.CUDAGraph()
            # other threads may go on with what is theirs meanwhile
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ):
                made = work()
        return _Recorded(graph, work, made)


@dataclass(frozen=True, slots=True)
class _Recorded:
    graph: torch.cuda.CUDAGraph
    work: FixedWork
    """Never done again, but it holds the tensors whose addresses the graph knows."""
    made: tuple[Tensor, ...]

    def __call__(self) -> tuple[Tensor, ...]:
        self.graph.replay()
        return self.made


def graph_capture(device: torch.device) -> Capture | None:
    """None where there are no graphs: work runs as it comes then."""
    return GraphCapture(device) if device.type == "cuda" else None
