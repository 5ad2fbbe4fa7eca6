"""A capture that needs no GPU, and what holds passes of fixed shape to the ordinary ones."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from threading import Lock
from typing import Final

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.toys import tiny_drafters
from whiflash_engine.config import SamplingConfig
from whiflash_engine.features import FeatureLog
from whiflash_engine.graphs import Capture, FixedWork
from whiflash_engine.sampling import Sampler
from whiflash_engine.target.base import TargetOutput
from whiflash_engine.target.native import NativeTarget

TOKENS = [(7 * i + i * i) % 61 for i in range(700)]


class _Silent(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """What cannot be recorded fails: numbers that go from the device to the program or back."""

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        name = str(func)
        assert not any(word in name for word in ("local_scalar", "lift_fresh", "nonzero")), name
        return func(*args, **(kwargs or {}))


class Recorder:
    """Counts what is recorded; a replay is another call, into the same tensors."""

    def __init__(self) -> None:
        self.recorded = 0
        self.lock: Final = Lock()

    def __call__(self, work: FixedWork) -> FixedWork:
        self.recorded += 1
        with _Silent():  # type: ignore[no-untyped-call]
            made = work()

        def replay() -> tuple[torch.Tensor, ...]:
            for tensor, new in zip(made, work(), strict=True):
                tensor.copy_(new)
            return made

        return replay


class Pair:
    """The same sequence by passes of fixed shape and by ordinary ones."""

    def __init__(self, fixed: NativeTarget, plain: NativeTarget, room: int = 8) -> None:
        self._targets = fixed, plain
        self._caches = [target.new_cache(room) for target in self._targets]

    def run(self, tokens: Sequence[int], rows: int) -> TargetOutput:
        both = zip(self._targets, self._caches, strict=True)
        one, other = (target.forward(tokens, cache, rows=rows) for target, cache in both)
        for name in ("logits", "features", "hidden"):
            torch.testing.assert_close(
                getattr(one, name), getattr(other, name), atol=1e-4, rtol=1e-4
            )
        held = [torch.stack(list(cache.places(0)[1])) for cache in self._caches]
        torch.testing.assert_close(*held, atol=1e-4, rtol=1e-4)
        return one

    def crop(self, length: int) -> None:
        for cache in self._caches:
            cache.crop(length)


def check_widths_and_crops(fixed: NativeTarget, plain: NativeTarget) -> None:
    pair, length = Pair(fixed, plain), 0
    for width in (30, *range(1, 18), 63, 64, 65, 1):
        pair.run(TOKENS[length:][:width], rows=min(width, 3))
        length += (width + 1) // 2
        pair.crop(length)
        pair.run(TOKENS[100:103], rows=0)
        pair.crop(length)


def check_boundary(fixed: NativeTarget, plain: NativeTarget) -> None:
    pair = Pair(fixed, plain)
    pair.run(TOKENS[:480], rows=1)
    for start in range(480, 520, 5):
        pair.run(TOKENS[start:][:5], rows=5)
    pair.crop(470)
    pair.run(TOKENS[100:200], rows=1)  # over what the stage holds, behind its back
    pair.run(TOKENS[7:9], rows=2)
    pair.crop(100)
    pair.run(TOKENS[7:9], rows=2)


def check_turns(fixed: NativeTarget, plain: NativeTarget) -> None:
    pairs = [Pair(fixed, plain) for _ in range(3)]
    for step in range(1, 12):
        for shift, pair in enumerate(pairs):
            for _ in range(shift):
                pair.run(TOKENS[step * shift :][:step], rows=1)
                pair.crop(step * step // 2)


def check_drafters(target: NativeTarget, capture: Capture) -> None:
    """Two sequences in turns; backlogs of all lengths, over a bucket's boundary."""
    kinds = [tiny_drafters(target, one) for one in (capture, None)]
    output = target.forward(TOKENS[:599], target.new_cache(600), rows=0)
    for arm in kinds[0]:
        drafters = [drafters[arm] for drafters in kinds]
        states = [[drafter.new_state(8) for drafter in drafters] for _ in range(2)]
        for config in (SamplingConfig(), SamplingConfig(temperature=0.9, top_p=0.9)):
            log = FeatureLog(output.features.shape[1], target.dtype, target.device)
            for step, length in enumerate((3, 4, 6, 9, 25, 45, 490, 507, 509, 510, 512, 516)):
                log.append(output.features[log.length : length])
                for known in ((), (5, 6), (1, 2, 3, 4, 5)):
                    for sequence in states[: 1 + step % 2]:
                        found = []
                        for drafter, state in zip(drafters, sequence, strict=True):
                            ids, count = TOKENS[: length + 1], drafter.max_draft
                            drafter.ingest(state, log, ids)
                            found.append(drafter.propose(state, ids, count, Sampler(config), known))
                        assert found[0].tokens == found[1].tokens
                        torch.testing.assert_close(found[0].q, found[1].q, atol=1e-4, rtol=1e-4)
            for state in itertools.chain(*states):
                state.crop(2)
