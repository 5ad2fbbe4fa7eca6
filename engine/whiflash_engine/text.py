"""The little the engine knows of text: which bytes a token stands for, which token stops."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from whiflash_engine.checkpoints.fields import Fields
from whiflash_engine.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_BYTE = re.compile("<0x([0-9A-F]{2})>")
_BLANK = "\u2581"
"""How SentencePiece writes a byte that no other token spells, and a blank."""


class TokenBytes:
    """Token id -> the UTF-8 bytes it adds to the text. Remembers what it was asked."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, bytes] = {}
        decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
        # Asked, not looked up: the part that does it may stand anywhere inside of others. And
        # asked once, because other kinds of tokenizers write words in the same letters.
        byte_level = decoder is not None and decoder.decode(["a\u0120a"]) == "a a"
        self._alphabet = _byte_alphabet() if byte_level else {}
        self._literal = tokenizer.added_tokens_decoder if byte_level else {}

    def __call__(self, token: int) -> bytes:
        if token not in self._known:
            self._known[token] = self._spell(token)
        return self._known[token]

    def _spell(self, token: int) -> bytes:
        piece = self._tokenizer.convert_ids_to_tokens(token)
        if isinstance(piece, str):
            if self._alphabet:
                return self._letters(token, piece)
            if byte := _BYTE.fullmatch(piece):
                return bytes.fromhex(byte[1])
            if _BLANK in piece:
                return piece.replace(_BLANK, " ").encode()
        text: str = self._tokenizer.decode([token])
        return text.encode()

    def _letters(self, token: int, piece: str) -> bytes:
        """Of byte-level BPE; an added token is no letters but its own text."""
        if token in self._literal or any(c not in self._alphabet for c in piece):
            return piece.encode()
        return bytes(self._alphabet[c] for c in piece)


def _byte_alphabet() -> dict[str, int]:
    """The printable character that byte-level BPE (GPT-2) writes for each byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    moved = [b for b in range(256) if b not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(moved)}


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder, chat template included; runs no code of the folder."""
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # the native parser of tokenizer.json raises just that
        raise CheckpointError(folder, f"the tokenizer cannot be read: {error}") from error
    return tokenizer


def stop_token_ids(folder: Path, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Every id that the model's files name as an end of generation.

    Raises CheckpointError for a file that is no JSON object or names no whole numbers.
    """
    ids: list[int] = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    for name in ("generation_config.json", "config.json"):
        if (folder / name).is_file():
            fields, key = Fields.read(folder / name), "eos_token_id"
            if isinstance(fields.get(key), list):
                ids += fields.integers(key) or ()
            elif fields.has(key):
                ids.append(fields.integer(key))
    return tuple(dict.fromkeys(ids))
