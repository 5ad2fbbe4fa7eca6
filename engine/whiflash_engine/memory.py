"""Where keys and values lie, to a network that makes some and looks at all."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Memory(Protocol):
    """Of one pass over n positions.

    cos, sin: of `Rope.table`, for these positions.
    """

    @property
    def cos(self) -> Tensor: ...

    @property
    def sin(self) -> Tensor: ...

    def attend(self, index: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Keep k and v, (n, kv_heads, head_dim), as those of layer `index`, and let q, (up to n,
        heads, head_dim), of the last positions, see what they may. -> (rows, heads * head_dim)."""
        ...
