"""Grammars over tokens: which may come next, along a draft and after it.

The engine knows only `Constraint`. `GrammarFactory` makes one from a Lark grammar or a JSON
schema with llguidance (https://github.com/guidance-ai/llguidance).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from llguidance import LLMatcher
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask
from tokenizers import Tokenizer
from torch import Tensor

from whiflash_engine.closing import Endings
from whiflash_engine.deadline import Deadline
from whiflash_engine.errors import ConstraintError
from whiflash_engine.grammar_tokenizer import GrammarTokenizer
from whiflash_engine.lookup import common


class Constraint(Protocol):
    """A matcher standing at the end of the committed text."""

    @property
    def length(self) -> int:
        """Tokens committed so far."""
        ...

    @property
    def narrowed(self) -> bool:
        """Whether what is committed was led to its end by `close_by`."""
        ...

    def close_by(self, total: int) -> None:
        """The text is to be complete after `total` tokens: as its end comes near, only what
        leads there in time is allowed. Free text, which may end anywhere, is not hurried."""
        ...

    def masks(self, draft: Sequence[int]) -> tuple[int, Tensor]:
        """(n, (n + 1, V) bool): the first n draft tokens are legal; True marks allowed tokens.

        Row i is for draft token i, row n for what follows the legal ones, so that it forbids
        draft token n if there is one. Leaves the matcher where it was.
        """
        ...

    def forced(self, limit: int) -> tuple[int, ...]:
        """At most `limit` tokens that the grammar implies next; often none."""
        ...

    def commit(self, tokens: Sequence[int]) -> None:
        """Advance over committed tokens. ConstraintError if one is illegal; then not at all."""
        ...

    def rollback(self, count: int) -> None:
        """Take the last `count` committed tokens back."""
        ...


class GrammarFactory:
    """Compiles grammars for one tokenizer. Building it takes about a second; keep it."""

    def __init__(
        self, tokenizer: Path | Tokenizer, vocab_size: int, eos_token_ids: Sequence[int]
    ) -> None:
        """vocab_size: rows of the model's head.

        ConfigError for a tokenizer that llguidance cannot read, or that names no stop.
        """
        if isinstance(tokenizer, Path):
            tokenizer = Tokenizer.from_file(str(tokenizer))
        own = GrammarTokenizer.of(tokenizer, vocab_size, eos_token_ids)
        self._vocab_size = vocab_size
        self._stops, self._tokenizer, self._encode = own.stops, own.guide, own.encode
        self._endings = Endings.of(own.encode, own.vocabulary)

    def lark(self, text: str, signposts: Sequence[str] = ()) -> LLGuidanceConstraint:
        """A grammar in llguidance's dialect of Lark. ConstraintError if it does not compile.

        signposts: words that lead out of its free text, where that must not end, such as the
        tag that closes the reasoning."""
        return self._compile(LLMatcher.grammar_from_lark(text), signposts)

    def json_schema(self, schema: Mapping[str, object]) -> LLGuidanceConstraint:
        """ConstraintError if it does not compile or needs what llguidance does not support."""
        try:
            text = json.dumps(dict(schema))
            grammar = LLMatcher.grammar_from_json_schema(text)
        except (TypeError, ValueError) as error:
            raise ConstraintError(f"not a JSON schema: {error}") from error
        return self._compile(grammar)

    def _compile(self, grammar: str, signposts: Sequence[str] = ()) -> LLGuidanceConstraint:
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise ConstraintError(matcher.get_error())
        endings = self._endings.towards([self._encode(post) for post in signposts])
        return LLGuidanceConstraint(matcher, self._vocab_size, self._stops, endings)


class LLGuidanceConstraint:
    """`Constraint` over an `LLMatcher`, which must be fresh.

    The matcher never consumes a stop token, because it could not go back over one when it has
    stopped itself: what is committed from the first stop token on is only counted.
    """

    def __init__(
        self, matcher: LLMatcher, vocab_size: int, stops: frozenset[int], endings: Endings
    ) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._stops = stops
        self._endings = endings
        self._deadline: Deadline | None = None
        self._drafted: tuple[int, ...] = ()
        self._taken = 0
        self._past_stop = 0

    @property
    def length(self) -> int:
        return self._taken + self._past_stop

    @property
    def stopped(self) -> bool:
        """The grammar is complete: nothing but a stop token may follow."""
        return self._past_stop > 0 or self._matcher.is_stopped()

    @property
    def is_accepting(self) -> bool:
        """The text may end here; stop tokens are allowed exactly then."""
        return self._past_stop > 0 or self._matcher.is_accepting()

    @property
    def narrowed(self) -> bool:
        # a stop token is the model's own choice where it had one
        return self._deadline is not None and self._deadline.narrowed(self._taken)

    def close_by(self, total: int) -> None:
        self._deadline = Deadline(total, self._endings, self._stops)

    def _narrow(self, ahead: int) -> tuple[int, ...]:
        """The only tokens that may follow where the matcher stands, `ahead` tokens behind what
        is committed; () where its own mask holds."""
        if self._deadline is None:
            return ()
        return self._deadline.narrow(self._matcher, self.length + ahead)

    def _barred(self, ahead: int) -> tuple[int, ...]:
        """Tokens that must not follow there, though the grammar would let them."""
        return () if self._deadline is None else self._deadline.barred(self.length + ahead)

    def masks(self, draft: Sequence[int]) -> tuple[int, Tensor]:
        words = allocate_token_bitmask(len(draft) + 1, self._vocab_size)
        bits = words.view(np.uint32)
        ended, walked, legal = self._past_stop > 0, 0, 0
        self._drafted = tuple(draft)
        try:
            for row in range(len(draft) + 1):
                if only := self._stops if ended else self._narrow(walked):
                    bits[row] = 0
                    for token in only:
                        bits[row, token // 32] |= np.uint32(1 << token % 32)
                else:
                    fill_next_token_bitmask(self._matcher, words, row)
                    for token in self._barred(walked):
                        bits[row, token // 32] &= ~np.uint32(1 << token % 32)
                # The mask decides, not whether the matcher could consume the token: where text
                # is forced, the mask leaves its canonical tokens only.
                if row == len(draft) or not bits[row, draft[row] // 32] >> (draft[row] % 32) & 1:
                    break
                legal += 1
                ended = ended or draft[row] in self._stops
                if not ended:
                    walked += self._matcher.try_consume_tokens([draft[row]])
        finally:
            if walked:
                self._matcher.rollback(walked)
        self._check()
        rows = words[: legal + 1].view(np.uint8)
        flat = np.unpackbits(rows, axis=1, count=self._vocab_size, bitorder="little")
        return legal, torch.from_numpy(flat.view(np.bool_))

    def forced(self, limit: int) -> tuple[int, ...]:
        if limit <= 0 or self.stopped:
            return ()
        only = self._narrow(0)
        if len(only) != 1 or only[0] in self._stops:
            return tuple(self._matcher.compute_ff_tokens())[:limit]
        ahead = self._matcher.deep_copy()
        ahead.try_consume_tokens(list(only))
        return (*only, *ahead.compute_ff_tokens())[:limit]

    def commit(self, tokens: Sequence[int]) -> None:
        ahead = next((i for i, token in enumerate(tokens) if token in self._stops), len(tokens))
        if self._past_stop:
            ahead = 0
        text, rest = list(tokens[:ahead]), tokens[ahead:]
        taken = self._matcher.try_consume_tokens(text) if text else 0
        legal_end = not rest or (self.is_accepting and all(t in self._stops for t in rest))
        if taken < ahead or not legal_end:
            if taken:
                self._matcher.rollback(taken)
            self._check()
            raise ConstraintError(f"the grammar does not allow the tokens {tuple(tokens)}")
        self._forget(self.length + common(self._drafted, tokens))
        self._drafted = ()
        self._taken += taken
        self._past_stop += len(rest)

    def rollback(self, count: int) -> None:
        if not 0 <= count <= self.length:
            raise ValueError(f"cannot roll back {count} of {self.length} tokens")
        counted = min(count, self._past_stop)
        self._past_stop -= counted
        if count > counted and not self._matcher.rollback(count - counted):
            raise ValueError(f"cannot roll back {count} tokens: {self._matcher.get_error()}")
        self._taken -= count - counted
        self._forget(self.length)

    def _forget(self, position: int) -> None:
        if self._deadline is not None:
            self._deadline.keep(position)

    def _check(self) -> None:
        if self._matcher.is_error():
            raise ConstraintError(self._matcher.get_error())
