"""The way out of a document: tokens that would end it soon.

A generation under a grammar must not stop in the middle of a tool call. So that it need not,
`deadline` asks how many tokens the end is away, and narrows what may follow as it comes near.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from llguidance import LLMatcher

# What may go on where nothing can be closed: values, and what joins the parts of addresses, dates
# and the like. A number other than zero first, since bounds exclude zero more often than one.
_VALUES = (",", "1", "0", "@", ".", ":", "/", "-", "null", "false", "true", "{}", "[]")
# Tokens that may end a value and begin the next one; blanks as byte-level BPE and SentencePiece
# write them in their vocabularies.
_JOINER = re.compile(r'["}\]\s\u0120\u010a\u2581]*,["{\[\s\u0120\u010a\u2581]*')
# So many tokens are tried where nothing of this may follow.
_FEW = 8


@dataclass(frozen=True, slots=True)
class Endings:
    """Tokens that a short end of a document is made of, the quickest first."""

    letters: tuple[int, ...]
    """Where all of these may follow, the text is inside a string, or free."""
    in_string: tuple[int, ...]
    brackets: tuple[int, ...]
    quotes: tuple[int, ...]
    fillers: tuple[int, ...]
    joiners: tuple[int, ...]
    signposts: tuple[tuple[int, ...], ...] = ()
    """Where free text must not end, one of these leads out of it."""

    @classmethod
    def of(cls, encode: Callable[[str], Sequence[int]], vocabulary: Mapping[str, int]) -> Endings:
        """encode: a text's token ids; where a single token is wanted, others are left out."""

        def single(*texts: str) -> tuple[int, ...]:
            found = [encode(text) for text in dict.fromkeys(texts)]
            return tuple(ids[0] for ids in found if len(ids) == 1)

        return cls(
            letters=single("Q", "z", "7", " "),
            in_string=single('"}', '"]', '"'),
            brackets=single("}", "]"),
            quotes=single('""', '"'),
            fillers=single(*_VALUES, *string.punctuation, *string.digits, *string.ascii_letters),
            joiners=tuple(sorted(i for piece, i in vocabulary.items() if _JOINER.fullmatch(piece))),
        )

    def towards(self, signposts: Sequence[Sequence[int]]) -> Endings:
        return replace(self, signposts=tuple(tuple(post) for post in signposts if post))


@dataclass(frozen=True, slots=True)
class Way:
    tokens: tuple[int, ...]
    values: tuple[int, ...] = ()
    """Indices of tokens that end or stand for a value which the model does not get to say."""

    @property
    def later_values(self) -> int:
        """How many there are, but for the one that the text is in."""
        return sum(index > 0 for index in self.values)

    @property
    def rest(self) -> Way:
        """Behind the first token."""
        return Way(self.tokens[1:], tuple(index - 1 for index in self.values if index > 0))


def way_out(
    matcher: LLMatcher, endings: Endings, limit: int, *, thorough: bool = True
) -> Way | None:
    """At most `limit` tokens from the matcher's state to one where the text may end.

    Greedy: forced tokens, the end of a string, the tag that ends free text, a bracket, a value.
    Where the same choice comes again at once, as within `0.000`, the next value is taken: what
    did not help before will not help now. Where none of these may follow the first token that may
    is taken; if that leads nowhere, and thorough, the tokens that may are tried, if they are few.
    None if that does not arrive either. The matcher stays where it is. Takes some dozen
    microseconds a step.
    """
    way = _walk(matcher, endings, limit)
    if way is None and thorough:
        way = _walk(matcher, endings, limit, try_each=True)
    return way


def _walk(
    matcher: LLMatcher, endings: Endings, limit: int, *, try_each: bool = False
) -> Way | None:
    probe, way, values = matcher.deep_copy(), list[int](), list[int]()
    choice, again = b"", 0
    while not probe.is_accepting():
        step = list(probe.compute_ff_tokens())
        if not step:
            mask = bytes(probe.compute_bitmask())
            step = _end(probe, mask, endings)
            if not step:
                again, choice = again + 1 if mask == choice else 0, mask
                step = _value(mask, endings, again)
                values += [len(way)] * (again == 0)
            elif is_inside(mask, endings):
                values.append(len(way))
            if not step:
                others = allowed_tokens(mask, _FEW) if try_each else []
                step = _best(probe, others, endings, limit - len(way)) or first(mask)
        if len(way) + len(step) > limit or probe.try_consume_tokens(step) < len(step) or not step:
            return None
        way += step
    return Way(tuple(way), tuple(values))


def follow(matcher: LLMatcher, way: Sequence[int]) -> bool:
    """Whether these tokens lead from the matcher's state, where it stays, to an end."""
    probe = matcher.deep_copy()
    return probe.try_consume_tokens(list(way)) == len(way) and probe.is_accepting()


def _end(probe: LLMatcher, mask: bytes, endings: Endings) -> list[int]:
    """What ends the string, the free text or the brackets that the state is in; else nothing."""
    if is_inside(mask, endings):
        for token in endings.in_string:
            if allowed(mask, token) and not _still_inside(probe, [token], endings):
                return [token]
        for post in endings.signposts:
            for start in reversed(range(len(post))):  # its beginning may stand there already
                if not _still_inside(probe, post[start:], endings):
                    return list(post[start:])
        return []
    if allowed(mask, endings.letters[0]):
        return []  # within an address or the like, where a bracket closes nothing
    return next(([token] for token in endings.brackets if allowed(mask, token)), [])


def _value(mask: bytes, endings: Endings, again: int) -> list[int]:
    if is_inside(mask, endings):  # a string that is not long enough yet
        return [endings.letters[0]]
    for token in endings.quotes:
        if allowed(mask, token):
            return [token]
    fillers = [token for token in endings.fillers if allowed(mask, token)]
    return [fillers[again % len(fillers)]] if fillers else []


def _best(probe: LLMatcher, tokens: Sequence[int], endings: Endings, limit: int) -> list[int]:
    """The token behind which the end comes soonest; nothing if it does behind none."""
    found = list[tuple[int, int]]()
    for token in tokens:
        ahead = probe.deep_copy()
        ahead.try_consume_tokens([token])
        way = _walk(ahead, endings, limit - 1)
        if way is not None:
            found.append((len(way.tokens), token))
    return [min(found)[1]] if found else []


def is_inside(mask: bytes, endings: Endings) -> bool:
    """Whether a state with this mask lies within a string or free text."""
    return all(allowed(mask, token) for token in endings.letters)


def _still_inside(probe: LLMatcher, tokens: Sequence[int], endings: Endings) -> bool:
    """Would these tokens, if they are legal at all, leave the text where it is?"""
    ahead = probe.deep_copy()
    if ahead.try_consume_tokens(list(tokens)) < len(tokens):
        return True
    return not ahead.is_accepting() and is_inside(ahead.compute_bitmask(), endings)


def allowed(mask: bytes, token: int) -> bool:
    """mask: one bit a token, the lowest bit of a byte first."""
    return bool(mask[token // 8] >> token % 8 & 1)


def first(mask: bytes) -> list[int]:
    """The lowest id in a mask, if there is one."""
    bits = int.from_bytes(mask, "little")
    return [(bits & -bits).bit_length() - 1] if bits else []


def allowed_tokens(mask: bytes, most: int) -> list[int]:
    """The ids in a mask, in order; none at all if there are more than `most`."""
    bits = int.from_bytes(mask, "little")
    if bits.bit_count() > most:
        return []
    found = []
    while bits:
        found.append((bits & -bits).bit_length() - 1)
        bits &= bits - 1
    return found
