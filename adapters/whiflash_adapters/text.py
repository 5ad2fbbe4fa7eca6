"""From tokens to text, piece by piece: characters that are whole, stop strings that are not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_REPLACEMENT = "\ufffd"  # what decoding shows for half a character


class Detokenizer:
    """Text of the tokens so far, as far as its characters are complete.

    Special tokens are dropped, except those that occur in `markers`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, markers: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.get_added_vocab()
        read = {id_ for tag, id_ in added.items() if any(tag in marker for marker in markers)}
        # `all_special_ids` knows only those with a part to play, such as the beginning of a text
        control = {id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._dropped = frozenset(control | set(tokenizer.all_special_ids)) - read
        self._ids: list[int] = []
        self._told = 0  # ids[:_told] are in the text already; they stay as left context

    def feed(self, ids: Sequence[int]) -> str:
        new = [i for i in ids if i not in self._dropped]
        if not new:  # what came last stays the left context
            return ""
        self._ids += new
        text = self._pending()
        if text.endswith(_REPLACEMENT):
            return ""
        self._ids, self._told = self._ids[self._told :], len(self._ids) - self._told
        return text

    def finish(self) -> str:
        """What is left, incomplete characters and all."""
        return self._pending()

    def _pending(self) -> str:
        # Decoding with the left context keeps the spaces that some tokenizers put between
        # tokens, and strip at the beginning.
        before = self._decode(self._ids[: self._told])
        return self._decode(self._ids)[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        text = self._tokenizer.decode(
            ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        assert isinstance(text, str)
        return text


class StopGuard:
    """Lets text through up to the first stop string, which it swallows.

    Text that may be the beginning of a stop string is held back. The stop string that is
    complete first wins, so the cut does not depend on how the text arrives.

    hit: that one, once it was there.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.hit = ""

    def feed(self, text: str) -> str:
        if self.hit:
            return ""
        text = self._held + text
        starts = [(text.find(stop), stop) for stop in self._stops]
        ends = [(at + len(stop), at, stop) for at, stop in starts if at >= 0]
        if ends:
            (_, at, self.hit), self._held = min(ends), ""
            return text[:at]
        keep = max((overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        held, self._held = self._held, ""
        return held


def overlap(text: str, marker: str) -> int:
    """Length of the longest end of `text` that is a proper beginning of `marker`."""
    longest = min(len(text), len(marker) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(marker[:n])), 0)
