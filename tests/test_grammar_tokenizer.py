"""Tokenizers that grammars can do without: told what is wrong with them, not what broke."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, processors
from transformers import CTRLTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tests.fake_engine import byte_tokenizer
from tests.toys import ToyTarget
from whiflash_engine.config import RouterConfig
from whiflash_engine.constraint import Constraint
from whiflash_engine.engine import Engine
from whiflash_engine.errors import ConfigError

STOP, SIZE = 257, 258
"""Of `byte_tokenizer`: the last of its tokens ends a text."""


def _engine(tokenizer: PreTrainedTokenizerBase, rows: int, stops: tuple[int, ...]) -> Engine:
    return Engine(
        ToyTarget(rows), {}, tokenizer, router=RouterConfig("plain"), stop_token_ids=stops
    )


def _object(engine: Engine) -> Constraint:
    return engine.json_schema({"type": "object", "properties": {}, "additionalProperties": False})


GRAMMARS: list[Callable[[Engine], Constraint]] = [lambda e: e.grammar('start: "a"'), _object]


@pytest.mark.parametrize("grammar", GRAMMARS)
def test_a_tokenizer_written_in_python(
    grammar: Callable[[Engine], Constraint], tmp_path: Path
) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps({"<unk>": 0, "a": 1, "b": 2}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CTRLTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    engine = _engine(tokenizer, 8, (0,))
    with pytest.raises(ConfigError, match="tokenizer='CTRLTokenizer': is written in Python"):
        grammar(engine)


@pytest.mark.parametrize("grammar", GRAMMARS)
@pytest.mark.parametrize("stops", [(), (SIZE,), (400, -1)])
def test_a_model_that_cannot_stop(
    stops: tuple[int, ...], grammar: Callable[[Engine], Constraint]
) -> None:
    engine = _engine(byte_tokenizer(), 300, stops)
    with pytest.raises(ConfigError, match=r"stop_token_ids=.*needs a token to stop with") as caught:
        grammar(engine)
    assert caught.value.value == stops


@pytest.mark.parametrize("rows", [SIZE, 300])
def test_stops_that_the_model_does_not_have_are_left_out(rows: int) -> None:
    engine = _engine(byte_tokenizer(), rows, (rows + 7, STOP, -1))
    constraint = engine.grammar('start: "a"')
    constraint.commit(engine.tokenizer.encode("a"))
    assert constraint.masks([STOP])[1].nonzero()[:, 1].tolist() == [STOP, STOP]


def test_a_decoder_that_llguidance_does_not_know() -> None:
    native = Tokenizer(models.WordLevel({"a": 0, "</s>": 1}, "a"))
    native.decoder = decoders.WordPiece()
    engine = _engine(PreTrainedTokenizerFast(tokenizer_object=native), 2, (1,))
    with pytest.raises(ConfigError, match=r"tokenizer='WordLevel': no grammar .*decoder type"):
        engine.grammar('start: "a"')


def test_more_words_than_the_head_has_rows() -> None:
    with pytest.raises(ConfigError, match=r"tokenizer='BPE': no grammar .*too small; 200 vs"):
        _engine(byte_tokenizer(), 200, (7,)).grammar('start: "a"')


@pytest.mark.parametrize("rows", [SIZE, SIZE + 1])
def test_tokens_added_behind_the_head_are_not_offered(rows: int) -> None:
    """Neither allowed nor forced, though the grammar's text is spelled by one of them."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.add_tokens(["<call>", "{}"])
    native = tokenizer.backend_tokenizer
    native.post_processor = processors.TemplateProcessing(
        single="<pad> $A", special_tokens=[("<pad>", SIZE)]
    )
    engine = _engine(tokenizer, rows, (STOP,))
    assert len(tokenizer) == SIZE + 3 and len(tokenizer.encode("<call>")) == 2
    wanted = tuple(byte_tokenizer().encode("<call>{}"))
    assert engine.grammar('start: "<call>{}"').forced(99) == wanted
    constraint = _object(engine)
    for token in byte_tokenizer().encode("{}"):
        legal, masks = constraint.masks([token])
        assert (legal, masks.shape) == (1, (2, rows)) and masks[0, token]
        constraint.commit([token])
    assert constraint.masks([STOP])[0] == 1
