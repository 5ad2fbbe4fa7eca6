"""Whatever the tools and wherever an answer is cut: a call that is returned is a whole one.

`WHIFLASH_CASES=10000 pytest tests/test_stops.py` runs it in full.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

import jsonschema
import pytest
from transformers import PreTrainedTokenizerBase

from tests import toys
from tests.fake_engine import byte_tokenizer
from whiflash_adapters.chat import ChatWhiFlash
from whiflash_engine.checkpoints.resolve import resolve_model
from whiflash_engine.checkpoints.weights import load_config
from whiflash_engine.engine import Engine
from whiflash_engine.text import load_tokenizer

CASES = int(os.environ.get("WHIFLASH_CASES", "60"))
Schema = dict[str, Any]


def schema(rng: random.Random, depth: int = 0) -> Schema:
    """Something a tool's author might have written."""
    kinds = ["string", "integer", "number", "boolean", "enum", "null", "union"]
    kind = rng.choice(kinds + (["object", "array"] if depth < 3 else []))
    if kind == "string":
        return {"type": "string", **rng.choice([{}, {"maxLength": rng.randint(1, 30)}])}
    if kind == "integer":
        low = rng.randint(-50, 50)
        return {"type": "integer", **rng.choice([{}, {"minimum": low, "maximum": low + 60}])}
    if kind == "enum":
        return {"enum": rng.sample(["a", "b c", 'q"uote', 3, None, True], rng.randint(1, 4))}
    if kind == "union":
        return {"anyOf": [schema(rng, depth + 1), {"type": "null"}]}
    if kind == "array":
        least = rng.randint(0, 2)
        items = schema(rng, depth + 1)
        return {"type": "array", "items": items, "minItems": least, "maxItems": least + 3}
    if kind == "object":
        return arguments(rng, depth + 1)
    return {"type": kind}


def arguments(rng: random.Random, depth: int = 0) -> Schema:
    keys = rng.sample(["city", "day", "limit", "ö", "with space", "nested", "x"], rng.randint(0, 4))
    properties = {key: schema(rng, depth) for key in keys}
    required = [key for key in keys if rng.random() < 0.6]
    return {"type": "object", "properties": properties, "required": required}


def tools(rng: random.Random) -> Iterator[Schema]:
    for i in range(rng.randint(1, 3)):
        function = {"name": f"tool_{i}", "description": "", "parameters": arguments(rng)}
        yield {"type": "function", "function": function}


def engine(tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> Engine:
    """Random networks behind a tokenizer."""
    target = toys.tiny_target()
    assert target.config.vocab_size == vocabulary
    stops = (cast(int, tokenizer.eos_token_id),)
    return Engine(target, toys.tiny_drafters(target), tokenizer, stop_token_ids=stops)


def cut_anywhere(engine: Engine, most: int, cases: int) -> None:
    chat = ChatWhiFlash(engine=engine, temperature=1.0)
    whole = broken = 0
    for case in range(cases):
        rng = random.Random(case)
        offered = list(tools(rng))
        by_name = {t["function"]["name"]: t["function"]["parameters"] for t in offered}
        bound = chat.bind_tools(offered, tool_choice=rng.choice(["any", "tool_0"]))
        message = bound.invoke("hi", max_tokens=rng.randint(1, most), seed=case)
        for call in message.tool_calls:
            jsonschema.validate(call["args"], by_name[call["name"]])
        whole += len(message.tool_calls)
        broken += len(message.invalid_tool_calls)
    print(f"{cases} answers, {whole} whole calls, {broken} told as invalid")
    assert whole > cases / 3


@pytest.mark.filterwarnings("ignore")
@pytest.mark.timeout(0)
def test_every_returned_call_parses_and_validates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toys, "TINY", replace(toys.TINY, vocab_size=300, max_positions=4096))
    cut_anywhere(engine(byte_tokenizer(), 300), most=400, cases=CASES)


@pytest.mark.model
@pytest.mark.filterwarnings("ignore")
@pytest.mark.timeout(0)
def test_so_it_does_in_the_tokens_of_the_default_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = resolve_model(None).path
    vocabulary = load_config(folder).vocab_size
    monkeypatch.setattr(toys, "TINY", replace(toys.TINY, vocab_size=vocabulary, max_positions=4096))
    cut_anywhere(engine(load_tokenizer(folder), vocabulary), most=150, cases=CASES // 2)
