"""The Hermes form: what is parsed does not depend on how text arrives; grammars hold."""

from __future__ import annotations

import itertools
import json
from datetime import datetime
from typing import Literal

import llguidance
import llguidance.hf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import BaseModel

from tests.fake_engine import byte_tokenizer
from tests.toys_text import write_call
from whiflash_adapters.formats.base import Ask, Parser, ToolMode
from whiflash_adapters.formats.events import (
    CallArgs,
    CallBroken,
    CallEnd,
    CallStart,
    Event,
    ReasoningPiece,
    TextPiece,
)
from whiflash_adapters.formats.hermes import HERMES
from whiflash_adapters.formats.plain_turns import in_plain_turns, system_block
from whiflash_adapters.formats.schemas import tightened
from whiflash_adapters.formats.tools import Tool
from whiflash_engine.errors import ConfigError

CALL = write_call("calculate", {"expression": "2 * 3"})
TRICKY = write_call("say", {"text": 'a "quoted" </tool_call> \\ { [ é', "n": [1, {"x": {}}]})
TEXTS = [
    "plain text, a < b and <tool bar",
    "  leading and trailing \n",
    CALL,
    f"Let me see.\n\n{CALL}\n{TRICKY}\n",
    f"<think>\nhm, <b>\n</think>\n\n{CALL}",
    "<think>never closed",
    "<think>\nok\n</think>\n\nThe answer is 6.",
    f"{CALL} and then some words",
    '<tool_call>{"arguments": {"a": 1}, "name": "late"}</tool_call>',
    '<tool_call>[{"name": "one", "arguments": {}}, {"name": "two"}]</tool_call>',
    "<tool_call>no json at all</tool_call> after",
    '<tool_call>\n{"name": "x", "arguments": {"a": }}\n</tool_call>',
    '<tool_call>\n{"name": "x", "arguments": {"a": tru}}\n</tool_call>',
    '<tool_call>\n{"name": "x", "arguments": {"a": 1]}\n</tool_call>',
    '<tool_call>\n{"name": "x", "arguments": {"a": 1}, "b": 2}\n</tool_call>',
    '<tool_call>\n{"name": "x", "arguments": {"a": [1, 2</tool_call>',
    '<tool_call>\n{"name": "a<b", "arguments": {}}\n</tool_call>',
    '<tool_call>\n{"name": "x", "arguments": {"a": "cut \\',
]


def parser(*, reasoning: bool = False) -> Parser:
    return HERMES.parser([{"name": "calculate"}], reasoning=reasoning)


def parse(text: str) -> list[Event]:
    reader = parser()
    return reader.feed(text) + reader.finish()


def joined(events: list[Event]) -> list[Event]:
    """Neighbouring pieces of one kind made one: what a reader ends up with."""
    out: list[Event] = []
    for event in events:
        last = out[-1] if out else None
        if isinstance(event, TextPiece) and isinstance(last, TextPiece):
            out[-1] = TextPiece(last.text + event.text)
        elif isinstance(event, ReasoningPiece) and isinstance(last, ReasoningPiece):
            out[-1] = ReasoningPiece(last.text + event.text)
        elif isinstance(event, CallArgs) and isinstance(last, CallArgs):
            out[-1] = CallArgs(last.text + event.text)
        else:
            out.append(event)
    return out


def in_pieces(text: str, cuts: list[int]) -> list[Event]:
    reader = parser()
    events: list[Event] = []
    edges = [0, *sorted(c % (len(text) + 1) for c in cuts), len(text)]
    for start, end in itertools.pairwise(edges):
        events += reader.feed(text[start:end])
    return joined(events + reader.finish())


@pytest.mark.parametrize("text", TEXTS)
def test_every_single_cut_and_one_character_at_a_time(text: str) -> None:
    whole = joined(parse(text))
    for cut in range(len(text) + 1):
        assert in_pieces(text, [cut]) == whole
    assert in_pieces(text, list(range(len(text)))) == whole


FRAGMENTS = st.sampled_from(
    ["<tool_call>", "</tool_call>", "<think>", "</think>",
     '{"name": "f", "arguments": ', '{"a": 1}',
     "}", "\n", " ", "word", "<", '"', "\\", "[", "]", CALL, "é", '{"name": "', "<tool", "</t"]
)  # fmt: skip


@given(st.lists(FRAGMENTS, max_size=12).map("".join), st.lists(st.integers(0, 500), max_size=6))
@settings(max_examples=400)
def test_any_text_any_cuts(text: str, cuts: list[int]) -> None:
    assert in_pieces(text, cuts) == joined(parse(text))


@given(st.text(max_size=60))
def test_text_without_tags_comes_back_whole(text: str) -> None:
    for reader in (parser(), HERMES.parser(())):
        events = reader.feed(text) + reader.finish()
        if "<think>" not in text and "<tool_call>" not in text:
            assert "".join(e.text for e in events if isinstance(e, TextPiece)) == text


def test_text_and_calls_and_reasoning_are_told_apart() -> None:
    events = joined(parse(f"<think>\nhm\n</think>\n\nLet me see.\n{CALL}\n"))
    assert events == [
        ReasoningPiece("hm"),
        TextPiece("Let me see."),
        CallStart("calculate"),
        CallArgs('{"expression": "2 * 3"}'),
        CallEnd(),
    ]


def test_arguments_stream_before_the_call_is_closed() -> None:
    reader = parser()
    events = reader.feed('<tool_call>\n{"name": "f", "arguments": {"text": "so far')
    assert events == [CallStart("f"), CallArgs('{"text": "so far')]


def test_calls_stay_text_when_nobody_asked_for_tools() -> None:
    reader = HERMES.parser(())
    assert joined(reader.feed(CALL) + reader.finish()) == [TextPiece(CALL)]


def test_a_prompt_that_opened_the_reasoning() -> None:
    reader = parser(reasoning=True)
    events = reader.feed("\nhm</think>\n\nyes") + reader.finish()
    assert joined(events) == [ReasoningPiece("hm"), TextPiece("yes")]


@pytest.mark.parametrize("text", [CALL, TRICKY])
def test_a_call_cut_anywhere_ends_broken(text: str) -> None:
    for end in range(len("<tool_call>"), len(text)):
        events = parse(text[:end])
        assert isinstance(events[-1], CallBroken)
        assert CallEnd() not in events
        told = "".join(e.text for e in events if isinstance(e, CallArgs | CallBroken))
        with pytest.raises(ValueError, match=r"."):
            json.loads(told)


TOOLS: list[Tool] = [
    {
        "type": "function",
        "function": {
            "name": "calculate",
            "description": "Arithmetic.",
            "parameters": {
                "type": "object",
                "properties": {"expression": {"type": "string"}},
                "required": ["expression"],
            },
        },
    },
    {
        "type": "function",
        "function": {
            "name": "search",
            "parameters": {
                "type": "object",
                "properties": {
                    "query": {"type": "string"},
                    "limit": {"type": "integer"},
                    "kinds": {"type": "array", "items": {"enum": ["a", "b"]}},
                },
                "required": ["query"],
            },
        },
    },
    {"type": "function", "function": {"name": "now"}},
]
SEARCH = write_call("search", {"query": "x", "limit": 3, "kinds": ["a", "b"]})
NOW = write_call("now", {})
NO_SUCH = write_call("launch", {})
WRONG_TYPE = write_call("calculate", {"expression": 3})
INVENTED_KEY = write_call("now", {"zone": "x"})
THOUGHT = "<think>\nhm\n</think>\n"


def tokens(tags: bool) -> dict[str, int]:
    return dict(byte_tokenizer(tags=tags).get_added_vocab())


def accepts(lark: str, text: str, *, tags: bool) -> bool:
    tokenizer = byte_tokenizer(tags=tags)
    matcher = llguidance.LLMatcher(llguidance.hf.from_tokenizer(tokenizer), lark)
    assert not matcher.is_error(), matcher.get_error()
    ids = tokenizer.encode(text, add_special_tokens=False)
    return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


@pytest.mark.parametrize("tags", [False, True])
@pytest.mark.parametrize(
    ("mode", "good", "bad"),
    [
        (
            "auto",
            ["", "hello", "a < b", CALL, f"{CALL}\n{SEARCH}", f"Let me see.\n{NOW}", THOUGHT + NOW],
            [NO_SUCH, WRONG_TYPE, INVENTED_KEY, f"{CALL} and so on", CALL[:-3], "x<tool_call>y"],
        ),
        ("required", [CALL, f"{CALL}\n{NOW}", THOUGHT + CALL], ["", "hello", f"no {CALL}"]),
        ("none", ["", "hello", THOUGHT + "yes"], [CALL, f"hello {CALL}"]),
    ],
)
def test_what_a_grammar_lets_through(
    mode: ToolMode, good: list[str], bad: list[str], tags: bool
) -> None:
    lark = HERMES.grammar(Ask(TOOLS, mode, tokens=tokens(tags)))
    assert [text for text in good if not accepts(lark, text, tags=tags)] == []
    assert [text for text in bad if accepts(lark, text, tags=tags)] == []


@pytest.mark.parametrize("tags", [False, True])
def test_one_call_at_most(tags: bool) -> None:
    lark = HERMES.grammar(Ask(TOOLS, parallel=False, tokens=tokens(tags)))
    assert accepts(lark, CALL, tags=tags)
    assert not accepts(lark, f"{CALL}\n{NOW}", tags=tags)


@pytest.mark.parametrize("tags", [False, True])
def test_a_forced_call_behind_an_opened_thought(tags: bool) -> None:
    lark = HERMES.grammar(Ask(TOOLS, "required", tokens=tokens(tags), reasoning=True))
    assert accepts(lark, f"hm\n</think>\n{CALL}", tags=tags)
    assert not accepts(lark, "hm\n</think>\nhello", tags=tags)


FINAL: dict[str, object] = {
    "type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"],
}  # fmt: skip


@pytest.mark.parametrize("tags", [False, True])
@pytest.mark.parametrize(
    ("mode", "good", "bad"),
    [
        ("auto", ['{"n": 1}', THOUGHT + '{"n": 1}', CALL, f"{CALL}\n{NOW}", THOUGHT + NOW],
         ["", "hello", "{}", 'So: {"n": 1}', '{"n": 1} indeed', f'{{"n": 1}}{CALL}', NO_SUCH]),
        ("none", ['{"n": 1}', THOUGHT + '{"n": 1}'], ["", CALL, '{"n": "1"}']),
        ("required", [CALL, THOUGHT + CALL], ['{"n": 1}']),
    ],
)  # fmt: skip
def test_calls_or_one_document(mode: ToolMode, good: list[str], bad: list[str], tags: bool) -> None:
    lark = HERMES.grammar(Ask(TOOLS, mode, tokens=tokens(tags), final=FINAL))
    assert [text for text in good if not accepts(lark, text, tags=tags)] == []
    assert [text for text in bad if accepts(lark, text, tags=tags)] == []


@pytest.mark.parametrize("tags", [False, True])
def test_a_document_behind_an_opened_thought(tags: bool) -> None:
    lark = HERMES.grammar(Ask(mode="none", tokens=tokens(tags), reasoning=True, final=FINAL))
    assert accepts(lark, 'hm\n</think>\n{"n": 1}', tags=tags)
    assert not accepts(lark, '{"n": 1}', tags=tags)


def test_what_cannot_be_followed_to_the_letter_is_refused_where_that_matters() -> None:
    odd = {"type": "object", "properties": {"n": {"type": "array", "uniqueItems": True}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": odd}}
    tokenizer = llguidance.hf.from_tokenizer(byte_tokenizer())

    def error(lark: str) -> str:
        return str(llguidance.LLMatcher(tokenizer, lark, log_level=0).get_error())

    assert "uniqueItems" in error(HERMES.grammar(Ask(mode="none", final=odd)))
    assert "uniqueItems" in error(HERMES.grammar(Ask([tool], strict=True)))
    assert not llguidance.LLMatcher(tokenizer, HERMES.grammar(Ask([tool]))).is_error()
    inner = {"properties": {"a": {"$id": "http://x/y", "$ref": "#/definitions/b"}}}
    with pytest.raises(ConfigError, match=r"\$id"):
        HERMES.grammar(Ask(mode="none", final=inner))


def test_closing_a_schema_does_not_touch_data() -> None:
    schema = {
        "type": "object",
        "properties": {
            "type": {"type": "string", "enum": ["string"]},
            "items": {"type": "array", "items": {"type": "string"}, "default": [{"type": "array"}]},
        },
    }
    out = tightened(schema)
    assert out["additionalProperties"] is False
    assert out["properties"] == {
        "type": {"type": "string", "enum": ["string"]},
        "items": {
            "type": "array",
            "items": {"type": "string"},
            "default": [{"type": "array"}],
        },
    }


def test_only_results_share_a_turn() -> None:
    quoted = "What does </tool_response>"
    turns = in_plain_turns(
        [
            {"role": "user", "content": quoted},
            {"role": "tool", "content": "a"},
            {"role": "tool", "content": "b"},
            {"role": "user", "content": "so?"},
            {"role": "tool", "content": "c"},
        ],
        (),
        HERMES,
    )
    a, b, c = (f"<tool_response>\n{x}\n</tool_response>" for x in "abc")
    assert [turn["content"] for turn in turns] == [quoted, f"{a}\n{b}", "so?", c]


def test_system_block_names_every_tool() -> None:
    block = system_block(TOOLS, HERMES)
    assert all(name in block for name in ("calculate", "search", "now", "<tool_call>"))


class Place(BaseModel):
    """Somewhere."""

    city: str
    kind: Literal["town", "village"] = "town"
    inside: Place | None = None


class Trip(BaseModel):
    """A way from place to place."""

    stops: list[Place]
    costs: dict[str, float]
    when: datetime
    note: str | None = None


def test_nested_optional_and_recursive_schemas() -> None:
    lark = HERMES.grammar(Ask([convert_to_openai_tool(Trip)], "required"))
    oslo = {"city": "Oslo", "kind": "town", "inside": {"city": "Norway"}}
    trip = {"stops": [oslo], "costs": {"train": 3.5}, "when": "2026-01-02T03:04:05Z", "note": None}
    assert accepts(lark, write_call("Trip", trip), tags=False)
    wrong = trip | {"stops": [{"city": "Oslo", "kind": "city"}]}
    assert not accepts(lark, write_call("Trip", wrong), tags=False)
