"""The decode loop: pick, propose, verify, commit, learn. One generator; everything else
(one-shot, streaming, async) is a wrapper around it."""

from __future__ import annotations

import threading
from collections.abc import Generator, Mapping
from time import perf_counter, sleep
from typing import Final

from whiflash_engine.config import ArmName, SamplingConfig
from whiflash_engine.devices import wait_for
from whiflash_engine.drafters.base import Drafter, Proposal
from whiflash_engine.events import Round, Seconds
from whiflash_engine.hindsight import Known, could_look_back, in_hindsight
from whiflash_engine.judge import judge
from whiflash_engine.logprobs import logprobs
from whiflash_engine.offer import offer
from whiflash_engine.router.router import Decision, RouteContext, Router
from whiflash_engine.sampling import Sampler
from whiflash_engine.sequence import SequenceState
from whiflash_engine.target.base import Target

PROMPT_STEP: Final = 512
"""Tokens of a prompt that run at once. Between two steps others get their turn, and whoever gave
up on the answer is heard; fewer would not fill a GPU."""


def decode(
    target: Target,
    drafters: Mapping[ArmName, Drafter],
    router: Router,
    sequence: SequenceState,
    sampling: SamplingConfig,
    turn: threading.Lock | None = None,
    cancelled: threading.Event | None = None,
) -> Generator[Round]:
    """Yield rounds until the sequence is finished.

    Between two rounds everything is consistent: the generator may be closed there, and the
    sequence be decoded on by another one. turn: held during each round and each step through the
    prompt, never between; sequences that share a target or a router in several threads must
    share it too. cancelled: once another thread sets it there are no more of either, even if one
    was waiting for its turn.
    """
    lock = turn or threading.Lock()
    loop = _Loop(target, drafters, router, sequence, Sampler(sampling))
    sequence.settle()
    try:
        while sequence.finish_reason is None:
            with lock:
                if cancelled is not None and cancelled.is_set():
                    return
                done = loop.round() if loop.is_ready() else None
            if done is None:
                sleep(0.001)  # a lock is taken again before those who wait for it wake up
            else:
                yield done
    finally:
        sequence.settle()


class _Loop:
    """One sequence's loop; `round` is the whole algorithm."""

    def __init__(
        self,
        target: Target,
        drafters: Mapping[ArmName, Drafter],
        router: Router,
        sequence: SequenceState,
        sampler: Sampler,
    ) -> None:
        self._target, self._drafters, self._router = target, drafters, router
        self._sequence, self._sampler = sequence, sampler
        self._learning = 0.0  # of the last round: seconds, told with this one's pick
        self._last: Known | None = None
        self._prompt = 0.0  # seconds spent on the prompt, told with the round that follows it

    def is_ready(self) -> bool:
        """Whether a round may begin. If the prompt is not through yet, runs a step of it."""
        started = perf_counter()
        if not self._sequence.prefill(PROMPT_STEP):
            return True
        self._prompt += perf_counter() - started
        return self._sequence.cache.length == self._sequence.processed

    def round(self) -> Round:
        sequence, sampling, clock = self._sequence, self._sampler.config, _Clock()
        prompt, self._prompt = self._prompt, 0.0
        clock.stop("prefill", more=prompt)

        context = offer(
            sequence, self._drafters, copies=self._router.may("retrieval"),
            sampled=not self._sampler.greedy,
        )  # fmt: skip
        clock.stop("offer")
        decision = self._router.pick(context)
        clock.stop("pick", more=self._learning)

        proposal = self._propose(decision, context, clock)
        verdict = judge(self._target, sequence, proposal, self._sampler)
        outcome, output = verdict.outcome, verdict.output
        clock.took("mask", verdict.masking)
        clock.stop("verify")

        tokens = sequence.commit(
            outcome.tokens, output, sampling.stop_token_ids, entropy=outcome.entropy
        )
        sequence.last_arm = decision.arm
        clock.stop("commit")
        top = sampling.logprobs
        told = () if top is None else logprobs(output.logits, tokens, top)

        done = Round(
            arm=decision.arm, position=context.position, tokens=tokens, proposed=proposal.tokens,
            accepted=min(outcome.accepted, len(tokens)), verified=len(output.logits),
            span=context.span, entropy=context.entropy, backlog=context.backlog[decision.arm],
            seconds=clock.seconds, left=decision.drafts - len(proposal.tokens),
            doubt=proposal.doubt, forced=min(len(context.forced), len(proposal.tokens)),
            matched=context.matched if decision.arm == "retrieval" else 0,
            scores=decision.scores,
            cached=sequence.kept if prompt else 0, logprobs=told,
            finish_reason=sequence.finish_reason,
        )  # fmt: skip
        started = perf_counter()
        accepted, drafted = done.tried
        sequence.recent.add(done.arm, accepted + (done.untried or 0.0), drafted + done.left)
        self._router.learn(done)
        self._last = Known(done, min(len(context.forced), len(tokens)))
        self._learning = perf_counter() - started
        return done

    def _propose(self, decision: Decision, context: RouteContext, clock: _Clock) -> Proposal:
        arm, count = decision.arm, decision.drafts
        drafter = self._drafters.get(arm)
        if drafter is None:
            return Proposal((*context.forced, *context.copied)[:count])
        sequence = self._sequence
        state = sequence.drafts[arm]
        first = all(s.watermark <= sequence.kept for s in sequence.drafts.values())
        if self._last is not None and sequence.last_arm != arm and not first:
            self._look_back(arm, drafter, self._last, clock)
        drafter.ingest(state, sequence.log, sequence.tokens)
        if first or sequence.last_arm != arm:
            wait_for(self._target.device)  # or the draft, which ends it, would bear its time
            clock.stop("prefill" if first else "catch_up")
        proposal = drafter.propose(
            state, sequence.tokens, count, self._sampler, context.forced, decision.floor
        )  # fmt: skip
        clock.stop("draft")
        return proposal

    def _look_back(self, arm: ArmName, drafter: Drafter, last: Known, clock: _Clock) -> None:
        """Score an idle drafter, on a sample of the rounds in which it comes back."""
        sequence, start = self._sequence, last.round.position
        state, tokens = sequence.drafts[arm], sequence.tokens
        if self._router.looks_back(start) and could_look_back(drafter, state, last):
            drafter.ingest(state, sequence.log.until(start - 1), tokens[:start])
            clock.stop("catch_up")
            self._router.learn_idle(in_hindsight(arm, drafter, state, tokens, last))
            clock.stop("hindsight")


class _Clock:
    """Adds the time since the last stop to a phase."""

    def __init__(self) -> None:
        self._spent: dict[str, float] = {}
        self._since = perf_counter()

    def stop(self, phase: str, more: float = 0.0) -> None:
        now = perf_counter()
        self._spent[phase] = self._spent.get(phase, 0.0) + now - self._since + more
        self._since = now

    def took(self, phase: str, seconds: float) -> None:
        """So much of the time since the last stop belongs to this phase."""
        self._spent[phase] = self._spent.get(phase, 0.0) + seconds
        self._since += seconds

    @property
    def seconds(self) -> Seconds:
        return Seconds(**self._spent)
