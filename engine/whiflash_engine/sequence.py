"""All that belongs to one sequence, in one object, so that it moves by one verb.

Committed tokens are x_0..x_m; x_m is the bonus token, not yet run through the target.
Between rounds:
    1. the target's KV and the feature log cover the positions 0..m-1, exactly;
    2. every drafter's watermark is at most m;
    3. span detector and constraint stand behind x_m.
    4. what can be copied from is the text as it stands.
`settle` restores all four after a round that was broken off, wherever that was: what a
round adds to the list of tokens, it adds last.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from torch import Tensor

from whiflash_engine.config import ArmName
from whiflash_engine.constraint import Constraint
from whiflash_engine.drafters.base import Drafter, DraftState
from whiflash_engine.errors import ConfigError, PromptTooLongError
from whiflash_engine.events import FinishReason
from whiflash_engine.features import FeatureLog
from whiflash_engine.lookup import Lookup, common
from whiflash_engine.router.recent import Recent
from whiflash_engine.router.spans import SpanDetector
from whiflash_engine.target.base import Target, TargetOutput
from whiflash_engine.verify import entropy

MAX_COPY = 12
"""The most tokens that are copied from the text in one round."""
_AHEAD = 1024
"""Tokens behind the prompt that there is room for at once; most answers end long before."""


def check_prompt(target: Target, prompt: Sequence[int]) -> None:
    """ConfigError for a prompt that is empty, too long, or holds ids that do not exist."""
    limit, vocab = target.config.max_positions, target.config.vocab_size
    if not prompt:
        raise ConfigError("prompt", prompt, "must hold at least one token")
    odd = [token for token in prompt if not hasattr(token, "__index__")]
    if odd:
        raise ConfigError("prompt", odd[0], "token ids are integers")
    if not all(0 <= token < vocab for token in prompt):
        bad = next(t for t in prompt if not 0 <= t < vocab)
        raise ConfigError("prompt", bad, f"token ids lie in 0..{vocab - 1}")
    if len(prompt) >= limit:
        raise PromptTooLongError(len(prompt), limit)


class SequenceState:
    """prompt: token ids, at least one. max_tokens: how many may be committed after it.

    constraint: a fresh one, or None.
    """

    def __init__(
        self,
        target: Target,
        drafters: Mapping[ArmName, Drafter],
        prompt: Sequence[int],
        *,
        max_tokens: int,
        spans: SpanDetector,
        constraint: Constraint | None = None,
    ) -> None:
        self._target = target
        self.tokens: list[int] = []
        self.end = min(len(prompt) + max_tokens, target.config.max_positions)
        longest = max((MAX_COPY, *(d.max_draft for d in drafters.values())))
        reserved = min(self.end, len(prompt) + _AHEAD)
        self.cache = target.new_cache(reserved + longest + 1)
        self.log = FeatureLog(
            len(target.taps) * target.config.hidden_size, target.dtype, target.device
        )
        self.drafts: dict[ArmName, DraftState] = {
            name: drafter.new_state(reserved) for name, drafter in drafters.items()
        }
        self.lookup = Lookup()
        self.constraint: Constraint | None = None
        self.restart(prompt, max_tokens=max_tokens, spans=spans, constraint=constraint)

    def restart(
        self,
        prompt: Sequence[int],
        *,
        max_tokens: int,
        spans: SpanDetector,
        constraint: Constraint | None = None,
    ) -> None:
        """Take up another prompt. What target and drafters know of the tokens that it shares
        with the present ones is kept (`kept` positions) and not run again."""
        check_prompt(self._target, prompt)
        # The token behind the kept positions is shared as well: EAGLE-3's last slot has seen
        # it. And the prompt's last positions run again, for the entropy and the hidden state.
        shared = common(self.tokens, prompt)
        self.kept = max(0, min(shared - 1, len(prompt) - 2, self.cache.length, self.log.length))
        self.cache.crop(self.kept)
        self.log.crop(self.kept)
        for state in self.drafts.values():
            state.crop(self.kept)
        self.lookup.crop(shared)
        self.tokens = list(prompt)
        self._prompt = len(prompt)
        self.end = min(len(prompt) + max_tokens, self._target.config.max_positions)
        self.spans = spans
        self.constrain(constraint)
        self.finish_reason: FinishReason | None = None
        self.last_arm: ArmName | None = None
        self.recent = Recent()
        self.entropy = 0.0
        self.hidden: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """What it holds in memory, about."""
        own = self.cache.nbytes + self.log.nbytes
        return own + sum(state.nbytes for state in self.drafts.values())

    @property
    def processed(self) -> int:
        """m: the position of the bonus token, and what the target's KV covers."""
        return len(self.tokens) - 1

    @property
    def room(self) -> int:
        """How many draft tokens could still be committed beside the bonus token."""
        return self.end - len(self.tokens) - 1

    @property
    def generated(self) -> int:
        """Tokens committed after the prompt."""
        return max(len(self.tokens) - self._prompt, 0)

    def constrain(self, constraint: Constraint | None) -> None:
        """From here on this constraint holds, or none; it must stand where the sequence does."""
        if constraint is not None and constraint.length != self.generated:
            raise ConfigError(
                "constraint",
                f"{constraint.length} tokens in",
                f"must have followed the {self.generated} tokens generated so far",
            )
        self.constraint = constraint
        if constraint is not None:
            constraint.close_by(self.end - self._prompt)

    def prefill(self, most: int | None = None) -> bool:
        """Run what the target has not seen yet, all but the last token, through it; at most
        `most` tokens of it. False if there is nothing left."""
        missing = self.tokens[self.cache.length : -1][:most]
        if not missing:
            return False
        output = self._target.forward(missing, self.cache, rows=1)
        self.log.append(output.features)
        self.hidden, self.entropy = output.hidden[-1], entropy(output.logits[-1])
        return True

    def commit(
        self,
        tokens: Sequence[int],
        output: TargetOutput,
        stop_ids: Collection[int],
        *,
        entropy: float,
    ) -> tuple[int, ...]:
        """Append a round's tokens, cut at the first stop token or where the room ends.

        output: of the pass over [x_m, drafts...]; its rows up to the last committed draft
        enter the log, the rest is dropped. entropy: as `Outcome` tells it. Returns what was
        committed.
        """
        kept = list(tokens[: self.end - len(self.tokens)])
        stop = next((i for i, token in enumerate(kept) if token in stop_ids), None)
        if stop is not None:
            kept = kept[: stop + 1]
        if self.constraint is not None:
            self.constraint.commit(kept)
        self.spans.advance(kept)
        self.log.append(output.features[: len(kept)])
        self.cache.crop(self.processed + len(kept))
        self.hidden, self.entropy = output.hidden[len(kept) - 1], entropy
        self.tokens += kept
        if stop is not None:
            hurried = self.constraint is not None and self.constraint.narrowed
            self.finish_reason = "length" if hurried else "stop"
        elif len(self.tokens) >= self.end:
            self.finish_reason = "length"
        return tuple(kept)

    def rewind(self, length: int) -> None:
        """Go back to the first `length` tokens, to decode on from there once more.

        The last processed position is given up too: the next prefill runs it again, for the
        entropy and the hidden state that the router wants to see.
        """
        if not 1 <= length <= len(self.tokens):
            raise ConfigError("length", length, f"must lie in 1..{len(self.tokens)}")
        del self.tokens[length:]
        self.lookup.crop(length)
        self.finish_reason = self.last_arm = self.hidden = None
        self.recent = Recent()
        self.entropy = 0.0
        self.cache.crop(max(length - 2, 0))
        self.settle()

    def settle(self) -> None:
        """Make the invariants hold, whatever was broken off."""
        covered = min(self.processed, self.log.length, self.cache.length)
        self.cache.crop(covered)
        self.log.crop(covered)
        for state in self.drafts.values():
            state.crop(covered)
        self.lookup.crop(len(self.tokens))
        self.spans.rollback(self.spans.length - self.generated)
        if self.constraint is not None:
            self.constraint.rollback(self.constraint.length - self.generated)
