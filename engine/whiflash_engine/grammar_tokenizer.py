"""A tokenizer as grammars need it: readable by llguidance, no larger than the model's head."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llguidance import LLTokenizer
from tokenizers import Tokenizer

from whiflash_engine.config import require
from whiflash_engine.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_BEFORE = "Q"


def native_tokenizer(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """What a tokenizer is made around. ConfigError for one that is written in Python."""
    native = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(native, Tokenizer):
        why = "is written in Python; grammars need one that could be saved as tokenizer.json"
        raise ConfigError("tokenizer", type(tokenizer).__name__, why)
    return native


@dataclass(frozen=True, slots=True)
class GrammarTokenizer:
    """guide: llguidance's form. stops: the ids that may end a text."""

    guide: LLTokenizer
    stops: frozenset[int]
    _native: Tokenizer
    _rows: int

    @classmethod
    def of(cls, tokenizer: Tokenizer, rows: int, stops: Sequence[int]) -> GrammarTokenizer:
        """rows: of the model's head, beyond which no token can be generated.

        Raises ConfigError for a tokenizer that llguidance cannot read, and where none of `stops`
        could ever be generated: no text would end.
        """
        own = _within(tokenizer, rows)
        # a model's files may name more of them than it has
        known = [t for t in stops if 0 <= t < rows and own.id_to_token(t) is not None]
        why = "a grammar needs a token to stop with that the model can generate"
        require(bool(known), "stop_token_ids", tuple(stops), why)
        try:
            guide = LLTokenizer(own.to_str(), n_vocab=rows, eos_token=known)
        except ValueError as error:
            why = f"no grammar can be compiled for it: {error}"
            raise ConfigError("tokenizer", type(own.model).__name__, why) from error
        return cls(guide, frozenset(known), own, rows)

    def encode(self, text: str) -> list[int]:
        """The tokens of a text within another: some tokenizers put a blank before the first."""
        start, whole = (self._ids(t) for t in (_BEFORE, _BEFORE + text))
        within = whole[: len(start)] == start
        return whole[len(start) :] if within else self._ids(text)

    @property
    def vocabulary(self) -> dict[str, int]:
        """Tokens as the tokenizer writes them, those that the head has a row for."""
        vocabulary: dict[str, int] = self._native.get_vocab()
        return {piece: token for piece, token in vocabulary.items() if token < self._rows}

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._native.encode(text, add_special_tokens=False).ids
        return ids


def _within(tokenizer: Tokenizer, rows: int) -> Tokenizer:
    """A copy that pads and cuts nothing: what the caller's object does would spoil ours.

    Added tokens behind the head's rows are left out: whoever adds one (to pad with, say) often
    leaves the model as it was, and must not be offered it.
    """
    text = tokenizer.to_str()
    if any(token >= rows for token in tokenizer.get_added_tokens_decoder()):
        told = json.loads(text)
        told["added_tokens"] = [token for token in told["added_tokens"] if token["id"] < rows]
        text = json.dumps(told)
    copy = Tokenizer.from_str(text)
    copy.no_padding()
    copy.no_truncation()
    return copy
