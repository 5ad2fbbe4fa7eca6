"""What a corpus is made with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path

from whiflash_engine.errors import ConfigError
from whiflash_engine.training.rows import KINDS


@dataclass(frozen=True)
class CorpusOptions:
    model: Path
    data: Path
    output: Path
    template: Path | None = None
    mix: str = "train_8k"
    dev_mix: str = "dev_mix"
    rows: int = 1600
    dev_rows: int = 80
    shares: Mapping[str, float] = field(
        default_factory=lambda: {"tool": 1.5, "json": 1.1, "reason": 1.0, "chat": 1.0}
    )
    """Rows per kind; tool and json replies are shorter, so they get more rows."""
    composed_tools: float = 0.15
    """Share of the tool rows that are composed tool loops, half of them after the result."""
    replies: int = 1
    """To every training prompt: one greedy, the others at the temperature. Those after the first
    cost less, because the prompt is run once."""
    max_prompt: int = 400
    max_new: int = 144
    temperature: float = 0.7
    """Of the replies that are not greedy: half of them, where a prompt has only one."""
    taps: tuple[int, ...] | None = None
    """Boundary indices of the features; None spreads five, see `default_taps`."""
    features: bool = True
    """Keep what the target felt at the taps: 7 KB a position, which saves its second pass over the
    text in training."""
    slots: int = 48
    chunk: int = 384
    """Replies written at once, features and all."""
    seed: int = 0
    part: tuple[int, ...] = (0, 1)
    """(i, n): write every n-th chunk from the i-th on. Single-threaded processes, one a core,
    are the fastest way through; the one that finds all chunks written completes the corpus."""

    def __post_init__(self) -> None:
        for name in ("rows", "dev_rows", "max_prompt", "max_new", "slots", "chunk"):
            if getattr(self, name) < 1:
                raise ConfigError(name, getattr(self, name), "should be at least 1")
        if len(self.part) != 2 or not 0 <= self.part[0] < self.part[1]:
            raise ConfigError("part", self.part, "should be i,n with 0 <= i < n")
        if not 1 <= self.replies <= 8:
            raise ConfigError("replies", self.replies, "should be 1 to 8")
        shares = self.shares.values()
        if self.shares.keys() != {*KINDS} or not (min(shares) >= 0 < sum(shares) < math.inf):
            why = f"should be a number for each of {', '.join(KINDS)}, not all 0"
            raise ConfigError("shares", dict(self.shares), why)
        if not 0 <= self.composed_tools <= 1:
            raise ConfigError("composed_tools", self.composed_tools, "should be between 0 and 1")
        if self.temperature < 0:
            raise ConfigError("temperature", self.temperature, "should not be negative")

    @property
    def chunk_prompts(self) -> int:
        """Prompts a chunk."""
        return max(1, self.chunk // self.replies)

    def settings(self) -> dict[str, object]:
        """All that the corpus depends on; places do not count."""
        values = asdict(self)
        for place in ("model", "data", "output", "template", "part"):
            del values[place]
        return values


def default_taps(layers: int) -> tuple[int, ...]:
    """EAGLE-3's three boundaries (2, the middle, three before the end) and what lies halfway
    between them, so that one capture serves both drafters."""
    low, middle, high = 2, layers // 2, layers - 3
    if not low < middle < high:
        raise ConfigError("taps", None, f"state them: {layers} layers are too few for the rule")
    return (low, (low + middle + 1) // 2, middle, (middle + high + 1) // 2, high)


def require_taps(taps: tuple[int, ...], layers: int) -> None:
    """ConfigError where a boundary does not exist: its features would be zeros."""
    inside = bool(taps) and all(0 <= tap <= layers for tap in taps)
    if not inside or any(low >= high for low, high in pairwise(taps)):
        raise ConfigError("taps", taps, f"should ascend from one to the next, within 0..{layers}")
