"""What the decode loop says: one `Round` per target pass, one `Completion` at the end.

The same types whether anybody looks or not. Tokens only; text is the caller's business.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Literal

from whiflash_engine.config import ArmName, Span

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Seconds:
    """Wall time of one round by phase.

    prefill: the prompt's own pass, and the first drafter's ingestion of the prompt.
    catch_up: the switch cost, what a drafter that was idle in the last round spends on
        the positions that it missed; the ordinary ingest of the drafter that stays in
        charge counts as `draft`.
    """

    prefill: float = 0.0
    pick: float = 0.0
    catch_up: float = 0.0
    draft: float = 0.0
    mask: float = 0.0
    verify: float = 0.0
    commit: float = 0.0

    @property
    def total(self) -> float:
        return float(sum(getattr(self, f.name) for f in fields(self)))

    def __add__(self, other: Seconds) -> Seconds:
        return Seconds(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True, slots=True)
class Round:
    """One turn of the loop: pick, propose, verify, commit, learn.

    tokens: committed in this round, bonus token last; their number is the acceptance
        length (AL), 1..len(proposed)+1 (fewer when a stop token or max_tokens cut it).
    position: absolute position of tokens[0].
    arm: who proposed. `scores`: the router's score per arm, empty when it had no choice.
    entropy: nats, of the target distribution that the round started from (the one that
        produced the previous bonus token).
    backlog: positions the chosen drafter had to ingest before it could propose.
    """

    arm: ArmName
    position: int
    tokens: tuple[int, ...]
    proposed: tuple[int, ...]
    accepted: int
    span: Span
    entropy: float
    backlog: int
    seconds: Seconds
    scores: Mapping[ArmName, float] = field(default_factory=dict)
    finish_reason: FinishReason | None = None


@dataclass(frozen=True, slots=True)
class ArmStats:
    """Totals of one arm, or of one (arm, span) pair."""

    rounds: int = 0
    tokens: int = 0
    seconds: float = 0.0

    @property
    def acceptance_length(self) -> float:
        """Tokens committed per round, bonus counted."""
        return self.tokens / self.rounds if self.rounds else 0.0


@dataclass(frozen=True, slots=True)
class Stats:
    """What one generation cost. Built from its rounds by `Stats.of`."""

    prompt_tokens: int
    tokens: int
    rounds: int
    seconds: float
    time_to_first_token: float
    switch_seconds: float
    phases: Seconds
    arms: Mapping[ArmName, ArmStats]
    spans: Mapping[Span, Mapping[ArmName, ArmStats]]

    @property
    def acceptance_length(self) -> float:
        return self.tokens / self.rounds if self.rounds else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Decoding speed: tokens after the first over the time after the first.

        The prompt's own pass is told by `time_to_first_token`, not mixed in here.
        """
        elapsed = self.seconds - self.time_to_first_token
        return (self.tokens - 1) / elapsed if elapsed > 0 and self.tokens > 1 else 0.0

    @staticmethod
    def of(
        rounds: Iterable[Round], *, prompt_tokens: int, seconds: float, time_to_first_token: float
    ) -> Stats:
        """Add rounds up. `seconds` is the whole call, prompt pass included."""
        arms: dict[ArmName, ArmStats] = {}
        spans: dict[Span, dict[ArmName, ArmStats]] = {}
        phases = Seconds()
        count = tokens = 0
        for r in rounds:
            count, tokens = count + 1, tokens + len(r.tokens)
            arms[r.arm] = _plus(arms.get(r.arm), r)
            per_arm = spans.setdefault(r.span, {})
            per_arm[r.arm] = _plus(per_arm.get(r.arm), r)
            phases += r.seconds
        return Stats(
            prompt_tokens, tokens, count, seconds, time_to_first_token, phases.catch_up,
            phases, arms, spans,
        )  # fmt: skip


def _plus(stats: ArmStats | None, r: Round) -> ArmStats:
    old = stats or ArmStats()
    return ArmStats(old.rounds + 1, old.tokens + len(r.tokens), old.seconds + r.seconds.total)


@dataclass(frozen=True, slots=True)
class Completion:
    """The whole of one generation."""

    tokens: tuple[int, ...]
    rounds: tuple[Round, ...]
    finish_reason: FinishReason
    stats: Stats
