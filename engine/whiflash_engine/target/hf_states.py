"""The past of a model that is not all keys and values: Mamba, gated delta nets, convolutions.

Such a state only goes forward. So it is copied before every pass, and what is cut off behind a
copy is run once more, in front of the next pass's own tokens: a pass of a few more tokens
takes hardly longer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from torch import Tensor
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from whiflash_engine.target.hf_cache import HFCache
from whiflash_engine.target.hf_past import is_state

# So many tokens run again in a pass of their own, so that a copy stands behind them.
_OWED: Final = 16
# Before so many of a prompt's last tokens stands a copy. The next turn's prompt seldom parts from
# this one earlier: some templates end a prompt with what they leave out of it later.
_TAIL: Final = 32
# Copies that are kept of the prompts of earlier turns.
_TURNS: Final = 4


@dataclass(frozen=True, slots=True)
class _Copy:
    """States behind the first `length` positions, of each layer that has some; of a prompt, or of
    the last pass."""

    length: int
    of_prompt: bool
    states: Sequence[object]


class StateCache(HFCache):
    """Cropping is as absolute as ever, and goes anywhere; what it costs comes with the next pass.

    A copy is of the size of the states, whatever the length.
    """

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__(DynamicCache(config=config))
        layers = self.inner.layers
        for i, layer in enumerate(layers):
            # A window that forgets cannot be rolled back either.
            if isinstance(layer, DynamicSlidingWindowLayer):
                layers[i] = DynamicLayer()
        self._forward = [i for i, layer in enumerate(layers) if is_state(layer)]
        self._tokens: list[int] = []
        # How many of the tokens `inner` holds; it may hold anything while a pass is under way.
        self._held = 0
        self._under_way = self._in_prompt = False
        self._start = self._copied(of_prompt=False)
        self._copies: list[_Copy] = []

    @property
    def length(self) -> int:
        return len(self._tokens)

    @property
    def nbytes(self) -> int:
        """The keys and values, and the states as often as there are copies of them."""
        states = sum(_nbytes(_states(self.inner.layers[i])) for i in self._forward)
        return super().nbytes + (1 + len(self._copies)) * states

    @property
    def held(self) -> int:
        return self._held

    def crop(self, length: int) -> None:
        self._in_prompt = self._in_prompt and length >= self.length
        del self._tokens[length:]
        if self._held > length or self._under_way:
            self._go_back()

    def passes(self, tokens: Sequence[int], rows: int) -> Iterator[tuple[Sequence[int], int]]:
        if self._under_way:  # the last pass broke off
            self._go_back()
        owed = self._tokens[self._held :]
        due = [*owed, *tokens]
        is_prompt = rows < len(tokens)
        cut = len(due) - _TAIL if is_prompt else len(owed) if len(owed) >= _OWED else 0
        self._under_way = True
        if cut > 0:
            yield due[:cut], max(0, rows - len(due) + cut)
            self._held += cut
        self._keep(is_prompt)
        last = due[max(cut, 0) :]
        yield last, min(rows, len(last))
        self._held += len(last)
        self._tokens += tokens
        self._under_way, self._in_prompt = False, is_prompt

    def _keep(self, is_prompt: bool) -> None:
        """A copy of what is held takes the place of the last pass's, or of this prompt's last
        part's: a long one comes in parts."""
        copies = self._copies
        if copies and copies[-1].length == self._held:
            new = replace(copies[-1], of_prompt=is_prompt or copies[-1].of_prompt)
            del copies[-1]
        else:
            new = self._copied(of_prompt=is_prompt)
        turns = [copy for copy in copies if copy.of_prompt]
        if is_prompt and self._in_prompt:
            del turns[-1:]
        self._copies = [*turns[-_TURNS:], new]

    def _copied(self, *, of_prompt: bool) -> _Copy:
        states = [_clone(_states(self.inner.layers[i])) for i in self._forward]
        return _Copy(self._held, of_prompt, states)

    def _go_back(self) -> None:
        """To the last copy that lies within the tokens."""
        self._copies = [copy for copy in self._copies if copy.length <= self.length]
        copy = self._copies[-1] if self._copies else self._start
        for i, states in zip(self._forward, copy.states, strict=True):
            restored = _clone(states)
            assert isinstance(restored, dict)
            vars(self.inner.layers[i]).update(restored)
        super().crop(copy.length)
        self._held, self._under_way = copy.length, False


def _states(layer: object) -> dict[str, object]:
    """All that a layer knows but its keys and values."""
    return {name: value for name, value in vars(layer).items() if name not in ("keys", "values")}


def _clone(value: object) -> object:
    """Tensors are copied, as they change in place, and so are the dicts that hold them."""
    if isinstance(value, Mapping):
        return {key: _clone(part) for key, part in value.items()}
    return value.clone() if isinstance(value, Tensor) else value


def _nbytes(value: object) -> int:
    if isinstance(value, Mapping):
        return sum(map(_nbytes, value.values()))
    return value.nbytes if isinstance(value, Tensor) else 0
