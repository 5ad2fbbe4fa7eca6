"""The feature log: what the target said inside, for every position it has processed.

One log per sequence, shared by all drafters; each drafter holds only a watermark into it.
Rows stay raw taps, so that an idle drafter costs nothing. Knows nothing of models.
"""

from __future__ import annotations

import torch
from torch import Tensor


class FeatureLog:
    """Rows 0..length-1 hold the taps of positions 0..length-1.

    Storage doubles as it fills; `crop` is absolute and idempotent.
    """

    def __init__(self, width: int, dtype: torch.dtype, device: torch.device) -> None:
        self._rows = torch.empty(256, width, dtype=dtype, device=device)
        self._length = 0

    @property
    def length(self) -> int:
        return self._length

    @property
    def width(self) -> int:
        return self._rows.shape[1]

    @property
    def nbytes(self) -> int:
        return self._rows.nbytes

    def append(self, features: Tensor) -> None:
        """features: (n, width)."""
        end = self._length + features.shape[0]
        if end > self._rows.shape[0]:
            grown = self._rows.new_empty(max(end, 2 * self._rows.shape[0]), self.width)
            grown[: self._length] = self._rows[: self._length]
            self._rows = grown
        self._rows[self._length : end] = features
        self._length = end

    def rows(self, start: int, stop: int) -> Tensor:
        """(stop - start, width): a view, valid until the next append or crop."""
        if not 0 <= start <= stop <= self._length:
            raise IndexError(f"rows {start}..{stop} of a log of {self._length}")
        return self._rows[start:stop]

    def until(self, length: int) -> FeatureLog:
        """The first `length` positions, to be read before the next append or crop."""
        if not 0 <= length <= self._length:
            raise IndexError(f"{length} positions of a log of {self._length}")
        log = FeatureLog.__new__(FeatureLog)
        log._rows, log._length = self._rows, length
        return log

    def crop(self, length: int) -> None:
        """Forget positions >= length."""
        self._length = min(self._length, length)
