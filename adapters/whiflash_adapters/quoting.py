"""Users' strings in a prompt: whole Unicode, and no control token among them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, TypeVar, cast

import regex

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")

_CUT = "\ufdd0"  # Unicode keeps it for use inside of programs: no text has it


def whole(text: str) -> str:
    """Surrogates joined to the characters that they are halves of. No tokenizer takes a lone one;
    it is replaced, as a decoder would have done."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class Quoting:
    """Tells users' strings from what a template or a format writes around them.

    Both end up in one text. So where a user's string has the text of a control token, it is
    marked for a cut behind that token's first character; whatever is then written around it has
    control tokens, and where the marks are the text is cut before it becomes tokens.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, template: str, markers: Collection[str]
    ) -> None:
        """template, markers: an added token that is in neither, and not special, is a word like
        any other, such as the HTML tags that some vocabularies have."""
        self._tokenizer = tokenizer
        written = "\0".join((template, *markers))
        control = [
            regex.escape(token.content)
            for token in tokenizer.added_tokens_decoder.values()
            if token.special or (token.content in written and not token.content.isspace())
        ]
        self._begins = regex.compile(rf"(?s)(?={'|'.join(control)})(.)") if control else None

    def quoted(self, value: T) -> T:
        """The same strings, lists and mappings (their keys too), quoted throughout."""
        return cast("T", self._quoted(value))

    def ids(self, text: str) -> list[int]:
        """Tokens of a text that holds quoted strings."""
        first, *rest = text.split(_CUT)
        ids = self._encoded(first)
        for piece in rest:
            ids += self._continued(piece)
        return ids

    def _quoted(self, value: object) -> object:
        if isinstance(value, str):
            text = whole(value).replace(_CUT, "")
            return self._begins.sub(rf"\1{_CUT}", text) if self._begins else text
        if isinstance(value, Mapping):
            return {self._quoted(key): self._quoted(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self._quoted(inner) for inner in value]
        return value

    def _continued(self, piece: str) -> list[int]:
        # SentencePiece puts a space before whatever begins a text, but not behind a newline.
        newline, ids = self._encoded("\n"), self._encoded("\n" + piece)
        if ids[: len(newline)] == newline:
            return ids[len(newline) :]
        return self._encoded(piece)

    def _encoded(self, text: str) -> list[int]:
        return cast("list[int]", self._tokenizer.encode(text, add_special_tokens=False))
