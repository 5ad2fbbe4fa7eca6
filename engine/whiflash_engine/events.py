"""What the decode loop says: one `Round` per target pass, one `Completion` at the end.

The same types whether anybody looks or not. Tokens only; text is the caller's business.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Literal

from whiflash_engine.config import ArmName, Span

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A committed token under the target's own distribution: the raw logits at temperature 1,
    before masks, penalties and truncation. In nats. top: the likeliest tokens, best first."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Seconds:
    """Wall time of one round by phase.

    prefill: the prompt's own pass, and the first drafter's ingestion of the prompt.
    offer: for what a grammar forces and what could be copied.
    pick: for the router, what it learned from the round before included.
    catch_up: the switch cost, what a drafter that was idle in the last round spends on
        the positions that it missed; the ordinary ingest of the drafter that stays in
        charge counts as `draft`.
    hindsight: for a draft from where an earlier round began; see `hindsight`.
    """

    prefill: float = 0.0
    offer: float = 0.0
    pick: float = 0.0
    catch_up: float = 0.0
    hindsight: float = 0.0
    draft: float = 0.0
    mask: float = 0.0
    verify: float = 0.0
    commit: float = 0.0

    @property
    def total(self) -> float:
        return self.prefill + self.decoding

    @property
    def decoding(self) -> float:
        """All but the prompt's own pass."""
        # told of every round: a loop over the fields would take ten times as long
        drafting = self.catch_up + self.hindsight + self.draft
        return self.offer + self.pick + drafting + self.mask + self.verify + self.commit

    def __add__(self, other: Seconds) -> Seconds:
        return Seconds(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True, slots=True)
class Round:
    """One turn of the loop: pick, propose, verify, commit, learn.

    tokens: committed in this round, bonus token last; their number is the acceptance
        length (AL), 1..len(proposed)+1 (fewer when a stop token or max_tokens cut it).
    position: absolute position of tokens[0].
    arm: who proposed. `scores`: the router's score per arm, when it was asked last; empty when it
        had no choice.
    entropy: nats, of the target distribution that the round started from (the one that
        produced the previous bonus token).
    verified: rows of the target's pass, at most len(proposed) + 1; fewer where a grammar
        forbade a draft token.
    backlog: positions the chosen drafter had to ingest before it could propose.
    forced: how many of `proposed`, from the first on, the grammar left no choice about.
    matched: how many tokens before the text's end were the same where a copied draft came from.
    cached: positions of the prompt that an earlier sequence had left; told by the first round.
    logprobs: one per token of `tokens`, if the sampling asks for them.
    left: draft tokens that the drafter left out, because it was not sure enough of them; doubt:
        the chance that it gave the first of these once all of `proposed` had passed, if it did.
    """

    arm: ArmName
    position: int
    tokens: tuple[int, ...]
    proposed: tuple[int, ...]
    accepted: int
    verified: int
    span: Span
    entropy: float
    backlog: int
    seconds: Seconds
    forced: int = 0
    matched: int = 0
    cached: int = 0
    scores: Mapping[ArmName, float] = field(default_factory=dict)
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    left: int = 0
    doubt: float | None = None

    @property
    def tried(self) -> tuple[int, int]:
        """(how many draft tokens passed, how many were drafted) behind those that a grammar
        forced, which are certain. A draft that was cut was no longer than what passed of it."""
        accepted = self.accepted - self.forced
        drafted = len(self.proposed) - self.forced
        if len(self.tokens) <= self.accepted:
            drafted = accepted
        return (accepted, drafted) if accepted >= 0 else (0, 0)

    @property
    def untried(self) -> float | None:
        """`doubt`, where the token that was left out would have been reached."""
        return self.doubt if len(self.tokens) > len(self.proposed) else None


def tokens_of(rounds: Iterable[Round]) -> list[int]:
    """All that rounds committed, in order."""
    return [token for done in rounds for token in done.tokens]


@dataclass(frozen=True, slots=True)
class ArmStats:
    """Totals of one arm, or of one (arm, span) pair; seconds without the prompt's pass."""

    rounds: int = 0
    tokens: int = 0
    seconds: float = 0.0

    @property
    def acceptance_length(self) -> float:
        """Tokens committed per round, bonus counted."""
        return self.tokens / self.rounds if self.rounds else 0.0

    def __add__(self, other: ArmStats) -> ArmStats:
        return ArmStats(
            self.rounds + other.rounds, self.tokens + other.tokens, self.seconds + other.seconds
        )


@dataclass(frozen=True, slots=True)
class Stats:
    """What one generation cost. Built from its rounds by `Stats.of`.

    seconds: the whole call, prompt pass included; time_to_first_token: until the first
        round's tokens were there.
    decode_tokens: those of all rounds but the first, which took decode_seconds.
    switches, caught_up, switch_seconds: how often a drafter that had been idle was picked, how
        many positions it then had to ingest, and what that cost.
    forced: tokens that a grammar left no choice about: drafts that cost nothing.
    cached: prompt tokens that did not have to be run.
    """

    prompt_tokens: int
    tokens: int
    rounds: int
    seconds: float
    time_to_first_token: float
    decode_tokens: int
    decode_seconds: float
    switches: int
    caught_up: int
    forced: int
    cached: int
    phases: Seconds
    arms: Mapping[ArmName, ArmStats]
    spans: Mapping[Span, Mapping[ArmName, ArmStats]]

    @property
    def acceptance_length(self) -> float:
        return self.tokens / self.rounds if self.rounds else 0.0

    @property
    def switch_seconds(self) -> float:
        return self.phases.catch_up

    @property
    def tokens_per_second(self) -> float:
        """Decoding speed, from the second round on.

        The first round came with the prompt's pass, and may have brought several tokens:
        neither its time nor its tokens count. 0 when there was one round only.
        """
        return self.decode_tokens / self.decode_seconds if self.decode_seconds > 0 else 0.0

    @staticmethod
    def of(
        rounds: Sequence[Round], *, prompt_tokens: int, seconds: float, time_to_first_token: float
    ) -> Stats:
        """Add rounds up."""
        arms: dict[ArmName, ArmStats] = {}
        spans: dict[Span, dict[ArmName, ArmStats]] = {}
        phases = Seconds()
        for r in rounds:
            one = ArmStats(1, len(r.tokens), r.seconds.decoding)
            arms[r.arm] = arms.get(r.arm, ArmStats()) + one
            per_arm = spans.setdefault(r.span, {})
            per_arm[r.arm] = per_arm.get(r.arm, ArmStats()) + one
            phases += r.seconds
        tokens = sum(len(r.tokens) for r in rounds)
        switched = [r.backlog for r in rounds if r.seconds.catch_up > 0]
        return Stats(
            prompt_tokens=prompt_tokens,
            tokens=tokens,
            rounds=len(rounds),
            seconds=seconds,
            time_to_first_token=time_to_first_token,
            decode_tokens=sum(len(r.tokens) for r in rounds[1:]),
            decode_seconds=seconds - time_to_first_token if len(rounds) > 1 else 0.0,
            switches=len(switched),
            caught_up=sum(switched),
            forced=sum(min(r.forced, r.accepted) for r in rounds),
            cached=sum(r.cached for r in rounds),
            phases=phases,
            arms=arms,
            spans=spans,
        )


@dataclass(frozen=True, slots=True)
class Completion:
    """The whole of one generation."""

    tokens: tuple[int, ...]
    rounds: tuple[Round, ...]
    finish_reason: FinishReason
    stats: Stats

    @staticmethod
    def of(
        rounds: Sequence[Round], *, prompt_tokens: int, seconds: float, time_to_first_token: float
    ) -> Completion:
        """All rounds of one that came to its end."""
        reason = rounds[-1].finish_reason
        assert reason is not None
        stats = Stats.of(
            rounds, prompt_tokens=prompt_tokens, seconds=seconds,
            time_to_first_token=time_to_first_token,
        )  # fmt: skip
        return Completion(tuple(tokens_of(rounds)), tuple(rounds), reason, stats)
