"""The way out of a document: which tokens would end it soonest.

A generation under a grammar must not stop in the middle of a tool call. So that it need not,
the constraint asks at every state how many tokens the end is away, and lets nothing else
through once they are as many as there are left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llguidance import LLMatcher


@dataclass(frozen=True, slots=True)
class Endings:
    """Tokens that a short end of a document is made of, the quickest first."""

    letters: tuple[int, ...]
    """Where all of these may follow, the text is inside a string, or free."""
    in_string: tuple[int, ...]
    elsewhere: tuple[int, ...]
    signposts: tuple[tuple[int, ...], ...]
    """Where free text must not end, one of these leads out of it."""

    @classmethod
    def of(cls, encode: Callable[[str], Sequence[int]]) -> Endings:
        """encode: a text's token ids; where a single token is wanted, others are left out."""

        def single(*texts: str) -> tuple[int, ...]:
            found = [encode(text) for text in texts]
            return tuple(ids[0] for ids in found if len(ids) == 1)

        return cls(
            letters=single("Q", "z", "7"),
            in_string=single('"}', '"]', '"'),
            elsewhere=single("}", "]", '""', "0", "null", "true", "{}", "[]", '"', "1"),
            signposts=(tuple(encode("</think>")), tuple(encode("<tool_call>"))),
        )


def way_out(matcher: LLMatcher, endings: Endings, limit: int) -> tuple[int, ...] | None:
    """At most `limit` tokens from the matcher's state to one where the text may end.

    Greedy, each step by its state alone, so that whoever takes the first step finds the rest
    of the way before him: forced tokens, the end of a string, the tag that ends free text,
    an ending that is allowed, any allowed token. None if that does not arrive. The matcher
    stays where it is. Takes some microseconds a step.
    """
    probe = matcher.deep_copy()
    way: list[int] = []
    while not probe.is_accepting():
        step = probe.compute_ff_tokens() or _step(probe, endings)
        if len(way) + len(step) > limit or probe.try_consume_tokens(step) < len(step) or not step:
            return None
        way += step
    return tuple(way)


def _step(probe: LLMatcher, endings: Endings) -> list[int]:
    mask = probe.compute_bitmask()
    if _inside(mask, endings):
        for token in endings.in_string:
            if _allowed(mask, token) and not _still_inside(probe, [token], endings):
                return [token]
        for post in endings.signposts:
            for start in reversed(range(len(post))):  # its beginning may stand there already
                if not _still_inside(probe, post[start:], endings):
                    return list(post[start:])
    for token in endings.elsewhere:
        if _allowed(mask, token):
            return [token]
    bits = int.from_bytes(mask, "little")
    return [(bits & -bits).bit_length() - 1] if bits else []


def _inside(mask: bytes, endings: Endings) -> bool:
    return all(_allowed(mask, token) for token in endings.letters)


def _still_inside(probe: LLMatcher, tokens: Sequence[int], endings: Endings) -> bool:
    """Would these tokens, if they are legal at all, leave the text where it is?"""
    ahead = probe.deep_copy()
    if ahead.try_consume_tokens(list(tokens)) < len(tokens):
        return True
    return not ahead.is_accepting() and _inside(ahead.compute_bitmask(), endings)


def _allowed(mask: bytes, token: int) -> bool:
    """mask: one bit a token, the lowest bit of a byte first."""
    return bool(mask[token // 8] >> token % 8 & 1)


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
