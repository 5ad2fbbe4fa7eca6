"""What a token adds to the text, in each way of writing tokens: its bytes, and its blank."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.fake_engine import byte_tokenizer
from whiflash_adapters.text import Detokenizer
from whiflash_engine.router.spans import SpanDetector
from whiflash_engine.text import TokenBytes

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
WORDS = [
    "\u2581",
    "\u2581Hello",
    "\u2581\u2581",
    "\u00e9",
    "ing",
    "Ġ",
    "{",
    "}",
    '"',
    "<tool_call>",
]
PIECES = ["<unk>", "<s>", "</s>", *BYTES, *WORDS]


def _llama() -> PreTrainedTokenizerFast:
    """As converters write the tokenizers of Llama 2, Mistral 7B and Gemma."""
    native = Tokenizer(
        models.Unigram([(p, -float(len(p) < 2)) for p in PIECES], unk_id=0, byte_fallback=True)
    )
    native.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    native.decoder = decoders.Sequence([
        decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
        decoders.Strip(" ", 1, 0),
    ])  # fmt: skip
    return PreTrainedTokenizerFast(tokenizer_object=native, unk_token="<unk>", eos_token="</s>")


def _metaspace() -> PreTrainedTokenizerFast:
    native = Tokenizer(models.BPE({p: i for i, p in enumerate(PIECES)}, [], byte_fallback=True))
    native.pre_tokenizer = pre_tokenizers.Metaspace()
    native.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return PreTrainedTokenizerFast(tokenizer_object=native, unk_token="<unk>", eos_token="</s>")


def _spelled(tokenizer: PreTrainedTokenizerFast, pieces: Sequence[str]) -> list[bytes]:
    spell = TokenBytes(tokenizer)
    return [spell(tokenizer.convert_tokens_to_ids(piece)) for piece in pieces]


@pytest.mark.parametrize("make", [_llama, _metaspace])
def test_sentencepiece(make: Callable[[], PreTrainedTokenizerFast]) -> None:
    tokenizer = make()
    assert _spelled(tokenizer, BYTES) == [bytes([byte]) for byte in range(256)]
    assert _spelled(tokenizer, WORDS) == [
        b" ", b" Hello", b"  ", "\u00e9".encode(), b"ing", "Ġ".encode(), b"{", b"}", b'"',
        b"<tool_call>",
    ]  # fmt: skip


@pytest.mark.parametrize("make", [_llama, _metaspace])
def test_its_spans_are_those_of_the_text(make: Callable[[], PreTrainedTokenizerFast]) -> None:
    tokenizer = make()
    detector = SpanDetector(TokenBytes(tokenizer))
    found = []
    for piece in ("\u2581Hello", "<0x0A>", "\u2581", "{", '"', "ing", '"', "}"):
        detector.advance([tokenizer.convert_tokens_to_ids(piece)])
        found.append(detector.span)
    assert found == ["text"] * 3 + ["json"] * 4 + ["text"]


@pytest.mark.parametrize("nested", [False, True])
def test_byte_level_letters_are_bytes_and_added_tokens_are_not(nested: bool) -> None:
    tokenizer = byte_tokenizer(tags=True)
    added = ["\u00e9", "<\uff5ctool\u2581call\uff5c>", "<0x0A>", "Ġ!"]
    tokenizer.add_tokens(added)
    if nested:
        native = tokenizer.backend_tokenizer
        native.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Fuse()])
    text = " \u00e8\n{"
    spell = TokenBytes(tokenizer)
    assert [spell(token) for token in tokenizer.encode(text)] == [
        bytes([byte]) for byte in text.encode()
    ]
    assert _spelled(tokenizer, added) == [word.encode() for word in added]
    assert _spelled(tokenizer, ["<think>", "<|im_end|>"]) == [b"<think>", b"<|im_end|>"]


def test_a_row_of_the_head_without_a_token_adds_nothing() -> None:
    for tokenizer in (byte_tokenizer(), _llama()):
        assert TokenBytes(tokenizer)(9999) == b""


@pytest.mark.parametrize("make", [_llama, _metaspace])
@pytest.mark.parametrize("dropped", [["</s>"], ["</s>", "<s>"], []])
def test_a_word_keeps_its_blank_behind_tokens_that_are_dropped(
    make: Callable[[], PreTrainedTokenizerFast], dropped: list[str]
) -> None:
    tokenizer = make()
    tokenizer.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>"})
    text = Detokenizer(tokenizer)
    feeds = (["\u2581Hello"], dropped, ["\u2581Hello"], ["ing", *dropped], ["\u2581Hello"])
    said = [text.feed(tokenizer.convert_tokens_to_ids(pieces)) for pieces in feeds]
    assert said == ["Hello", "", " Hello", "ing", " Hello"] and text.finish() == ""
