"""What a model of `transformers` remembers of a sequence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


class HFCache:
    """A `DynamicCache` of plain layers under our verbs.

    Sliding-window layers get plain layers as well: a window that forgets cannot be rolled
    back, and the model's own mask hides what lies outside of it.
    """

    def __init__(self, inner: DynamicCache | None = None) -> None:
        self.inner = inner or DynamicCache()

    def passes(self, tokens: Sequence[int], rows: int) -> Iterator[tuple[Sequence[int], int]]:
        """What to run through `inner` for a forward of `tokens`, one after the other, and how
        many of its last tokens each has to give logits of, `rows` in all."""
        yield tokens, rows

    @property
    def length(self) -> int:
        return int(self.inner.get_seq_length())

    @property
    def held(self) -> int:
        """How many positions `inner` holds."""
        return self.length

    @property
    def nbytes(self) -> int:
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self._filled())

    def crop(self, length: int) -> None:
        """After a pass that broke off, layers differ in length, and keys from values: each
        is cut to what it shall have, where the library's crop takes as much from all."""
        for layer in self._filled():
            layer.keys = layer.keys[..., :length, :]
            layer.values = layer.values[..., :length, :]

    def _filled(self) -> list[DynamicLayer]:
        layers = self.inner.layers
        return [one for one in layers if isinstance(one, DynamicLayer) and one.is_initialized]
