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
    """Tokens that a short end of a JSON document is made of, the quickest first."""

    letters: tuple[int, ...]
    """Where all of these may follow, the text is inside a string."""
    in_string: tuple[int, ...]
    elsewhere: tuple[int, ...]

    @classmethod
    def of(cls, encode: Callable[[str], Sequence[int]]) -> Endings:
        """encode: a text's token ids; texts that are no single token are left out."""

        def single(*texts: str) -> tuple[int, ...]:
            found = [encode(text) for text in texts]
            return tuple(ids[0] for ids in found if len(ids) == 1)

        return cls(
            letters=single("Q", "z", "7"),
            in_string=single('"}', '"]', '"'),
            elsewhere=single("}", "]", '""', "0", "null", "true", "{}", "[]", '"', "1"),
        )


def way_out(matcher: LLMatcher, endings: Endings, limit: int) -> tuple[int, ...] | None:
    """At most `limit` tokens from the matcher's state to one where the text may end.

    Greedy, each step by its state alone: forced tokens, then the first ending that is
    allowed, then the allowed token with the lowest id. None if that does not arrive. The
    matcher stays where it is. Takes some microseconds a step.
    """
    probe = matcher.deep_copy()
    way: list[int] = []
    while not probe.is_accepting():
        step = probe.compute_ff_tokens() or _step(probe.compute_bitmask(), endings)
        if len(way) + len(step) > limit or probe.try_consume_tokens(step) < len(step) or not step:
            return None
        way += step
    return tuple(way)


def _step(mask: bytes, endings: Endings) -> list[int]:
    """mask: one bit a token, the lowest bit of a byte first."""

    def allowed(token: int) -> bool:
        return bool(mask[token // 8] >> token % 8 & 1)

    inside = all(map(allowed, endings.letters))
    for token in endings.in_string if inside else endings.elsewhere:
        if allowed(token):
            return [token]
    bits = int.from_bytes(mask, "little")
    return [(bits & -bits).bit_length() - 1] if bits else []
