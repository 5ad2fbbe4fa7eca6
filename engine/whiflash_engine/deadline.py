"""A document under a grammar is complete when the tokens run out.

Far from its end nothing is done. Where it comes near, strings and free text must close while
what has to follow them still fits, with some room for the values among it to be said and not
filled in; and a token that opens what could not be ended is not allowed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from llguidance import LLMatcher

from whiflash_engine.closing import (
    Endings,
    Way,
    allowed,
    allowed_tokens,
    follow,
    is_inside,
    way_out,
)

# Tokens before the end from which on a way out is looked for, at some positions and then at each.
_FAR: Final = 1024
_NEAR: Final = 256
# At which: of every so many one, and where there has been none fewer.
_OFTEN, _SELDOM = 16, 64
# Of so few allowed tokens each is asked where it leads; texts and numbers have more.
_FEW: Final = 24
# Tokens kept free: for each value that has yet to be said, at most, and in any case, since within
# a string an escape takes some.
_PER_VALUE, _MOST, _LEAST = 8, 24, 8


@dataclass(frozen=True, slots=True)
class _Found:
    way: Way | None
    only: tuple[int, ...] = ()
    joins: Mapping[int, int] = field(default_factory=dict)
    """Tokens until the end with each joiner that may follow and would lengthen the way."""
    longest: int = 0
    """Tokens of the longest way so far."""


class Deadline:
    """What it allows depends on the text alone and not on how that was drafted: every position
    is asked for in turn, and what was found at positions that did not come true is forgotten."""

    def __init__(self, total: int, endings: Endings, stops: frozenset[int]) -> None:
        """total: tokens that the text may have."""
        self._total, self._endings, self._stops = total, endings, stops
        self._found: dict[int, _Found] = {}  # in the order of their positions

    def narrow(self, matcher: LLMatcher, position: int) -> tuple[int, ...]:
        """The only tokens that may follow behind `position` tokens, where the matcher stands;
        () where its own mask holds."""
        self.keep(position)
        if position not in self._found:
            left = self._total - position
            if not self._is_due(left):
                return ()
            self._found[position] = self._look(matcher, left)
        return self._found[position].only

    def barred(self, position: int) -> tuple[int, ...]:
        """The tokens of a mask that was not narrowed behind which the end would be too far."""
        found, left = self._found.get(position), self._total - position
        return tuple(t for t, need in found.joins.items() if need > left) if found else ()

    def keep(self, position: int) -> None:
        """Forget what was found behind more than `position` tokens."""
        while self._found and next(reversed(self._found)) > position:
            self._found.popitem()

    def narrowed(self, length: int) -> bool:
        """Whether something else could have stood among the first `length` tokens."""
        return any(found.only for at, found in self._found.items() if at < length)

    def _is_due(self, left: int) -> bool:
        last = self._last
        if left > _FAR or last is None:
            return left <= _FAR
        if left > self._near:
            return left % (_OFTEN if last.way else _SELDOM) == 0
        return last.way is not None or left % _OFTEN == 0

    @property
    def _near(self) -> int:
        """What was long before may be as long again: calls and rows repeat."""
        return _NEAR if self._last is None else max(_NEAR, self._last.longest + _MOST)

    @property
    def _last(self) -> _Found | None:
        """What was found last: before the position that is asked for, if that is a new one."""
        return next(reversed(self._found.values()), None)

    def _look(self, matcher: LLMatcher, left: int) -> _Found:
        way, longest = self._way(matcher, left), 0 if self._last is None else self._last.longest
        if way is None:
            return _Found(None, longest=longest)
        if not len(way.tokens) <= left <= self._near:
            return _Found(way, longest=max(longest, len(way.tokens)))
        return _Found(
            way, self._only(matcher, way, left), self._joins(matcher, way, left),
            max(longest, len(way.tokens)),
        )  # fmt: skip

    def _way(self, matcher: LLMatcher, left: int) -> Way | None:
        if matcher.is_accepting():
            return Way(())
        last = self._last
        if last is not None and last.way is not None:
            for way in (last.way.rest, last.way):  # a step on, or in the same place still
                if follow(matcher, way.tokens):
                    return way
        return way_out(matcher, self._endings, left)

    def _only(self, matcher: LLMatcher, way: Way, left: int) -> tuple[int, ...]:
        mask = matcher.compute_bitmask()
        few = allowed_tokens(mask, _FEW)
        if few:
            good = tuple(t for t in few if self._leads_out(matcher, t, way, left - 1))
            return good if len(good) < len(few) else ()
        if not way.tokens:
            return ()  # free text may end anywhere
        reserve = _MOST  # one token may open what takes many
        if is_inside(mask, self._endings):
            if way.tokens[0] == self._endings.letters[0]:
                return ()  # the string is not long enough yet: any text will do
            reserve = min(_LEAST + _PER_VALUE * way.later_values, _MOST)
        return way.tokens[:1] if left <= len(way.tokens) + reserve else ()

    def _joins(self, matcher: LLMatcher, way: Way, left: int) -> Mapping[int, int]:
        if self._last is not None and self._last.way is way:
            return self._last.joins  # in the same place still
        mask, found = matcher.compute_bitmask(), dict[int, int]()
        for token in self._endings.joiners:
            if allowed(mask, token) and (token,) != way.tokens[:1]:
                probe = matcher.deep_copy()
                probe.try_consume_tokens([token])
                if not follow(probe, way.tokens) and not follow(probe, way.tokens[1:]):
                    behind = way_out(probe, self._endings, left, thorough=False)
                    found[token] = left + 1 if behind is None else 1 + len(behind.tokens)
        return found

    def _leads_out(self, matcher: LLMatcher, token: int, way: Way, limit: int) -> bool:
        """Whether the end is at most `limit` tokens behind this one."""
        if token in self._stops or (token,) == way.tokens[:1]:
            return True
        probe = matcher.deep_copy()
        probe.try_consume_tokens([token])
        for rest in (way.tokens[1:], way.tokens):
            if len(rest) <= limit and follow(probe, rest):
                return True
        return way_out(probe, self._endings, max(limit, 0), thorough=False) is not None
