"""Every format of tool calls: what it writes it reads, however it is cut, and its grammar holds."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator, Sequence

import jsonschema
import llguidance
import llguidance.hf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessageChunk
from langchain_core.messages.tool import tool_call_chunk
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from tests.fake_engine import byte_tokenizer
from whiflash_adapters.formats.base import Ask, Call, CallFormat, ToolMode
from whiflash_adapters.formats.choose import FORMATS, choose, named
from whiflash_adapters.formats.events import (
    CallArgs,
    CallBroken,
    CallEnd,
    CallStart,
    Event,
    ReasoningPiece,
    TextPiece,
)
from whiflash_adapters.formats.tools import Tool, name_of, parameters_of
from whiflash_engine.errors import ConfigError

TOOLS: list[Tool] = [
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
                    "order": {"enum": ["up", "down"]},
                },
                "required": ["query"],
            },
        },
    },
    {"type": "function", "function": {"name": "now"}},
]
SEARCH: Call = ("search", {"query": 'a "b" < é\n\\ {', "limit": 3, "kinds": ["a"], "order": "up"})
NOW: Call = ("now", {})
EVERY = pytest.mark.parametrize("format_", FORMATS.values(), ids=FORMATS.keys())
MANY = [name for name in FORMATS if name != "harmony"]  # there, a call ends the turn


def tokenizer_of(format_: CallFormat) -> PreTrainedTokenizerFast:
    """Bytes, and the format's markers as tokens of their own where they look like it."""
    tokenizer = byte_tokenizer()
    words = {"<|start|>", "<|call|>"} if format_.name == "harmony" else set()
    for marker in ("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>",
                   "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>", "[TOOL_CALLS]", "[ARGS]",
                   "<|channel|>", "<|message|>", "<|end|>", "<|constrain|>"):  # fmt: skip
        if any(marker in text for text in format_.markers):
            words.add(marker)
    tokenizer.add_tokens([AddedToken(word, special=True) for word in sorted(words)])
    return tokenizer


def read(
    format_: CallFormat, text: str, cuts: Sequence[int] = (), *, reasoning: bool = False
) -> list[Event]:
    parser = format_.parser(TOOLS, reasoning=reasoning)
    edges = [0, *sorted(c % (len(text) + 1) for c in cuts), len(text)]
    events = [e for a, b in itertools.pairwise(edges) for e in parser.feed(text[a:b])]
    return joined([*events, *parser.finish()])


def joined(events: list[Event]) -> list[Event]:
    out: list[Event] = []
    for event in events:
        last = out[-1] if out else None
        if isinstance(event, TextPiece | ReasoningPiece | CallArgs) and type(last) is type(event):
            assert isinstance(last, TextPiece | ReasoningPiece | CallArgs)
            out[-1] = type(event)(last.text + event.text)
        else:
            out.append(event)
    return out


def calls(events: list[Event]) -> list[Call]:
    """The complete ones."""
    found: list[Call] = []
    name = args = ""
    for event in events:
        if isinstance(event, CallStart):
            name, args = event.name, ""
        elif isinstance(event, CallArgs):
            args = event.text
        elif isinstance(event, CallEnd):
            found.append((name, json.loads(args)))
    return found


@EVERY
def test_calls_come_back_however_they_are_cut(format_: CallFormat) -> None:
    wanted = [SEARCH, NOW] if format_.name in MANY else [SEARCH]
    text = format_.write(wanted)
    whole = read(format_, text)
    assert calls(whole) == wanted
    assert not any(isinstance(event, TextPiece | CallBroken) for event in whole)
    for cut in range(len(text) + 1):
        assert read(format_, text, [cut]) == whole
    assert read(format_, text, list(range(len(text)))) == whole


WORDS = st.text(st.sampled_from('ab{}[]"\\<>/ \n,:|é'), max_size=12)
ARGUMENTS = st.fixed_dictionaries(
    {"query": WORDS}, optional={"limit": st.integers(), "kinds": st.lists(st.sampled_from("ab"))}
)


@EVERY
@given(arguments=ARGUMENTS, cuts=st.lists(st.integers(0, 400), max_size=5))
@settings(max_examples=60)
def test_any_arguments_any_cuts(
    format_: CallFormat, arguments: dict[str, object], cuts: list[int]
) -> None:
    text = format_.write(
        [("search", arguments), NOW] if format_.name in MANY else [("search", arguments)]
    )
    assert calls(read(format_, text, cuts))[0] == ("search", arguments)


@EVERY
@given(
    pieces=st.lists(st.integers(0, 60), max_size=6), cuts=st.lists(st.integers(0, 400), max_size=5)
)
@settings(max_examples=80)
def test_broken_text_is_read_alike_however_it_is_cut(
    format_: CallFormat, pieces: list[int], cuts: list[int]
) -> None:
    text = format_.write([SEARCH])
    parts = [text[i : i + 9] for i in range(0, len(text), 9)] + ["word", " ", *format_.think]
    broken = "".join(parts[i % len(parts)] for i in pieces)
    assert read(format_, broken, cuts) == read(format_, broken)


@EVERY
def test_half_a_call_is_never_a_call(format_: CallFormat) -> None:
    text = format_.write([SEARCH])
    done = [len(text)]
    if format_.name in ("harmony", "mistral"):  # nothing has to follow the arguments
        done = [text.rindex("}") + 1]
    for end in range(1, min(done)):
        events = read(format_, text[:end])
        if any(isinstance(event, CallEnd) for event in events):
            # a list's call is complete before the list is
            assert format_.name in ("smollm2", "mistral-list", "deepseek-v3", "deepseek-v3.1")
            assert calls(events) == [SEARCH]
        for event in events:
            if isinstance(event, CallBroken):
                told = "".join(e.text for e in events if isinstance(e, CallArgs | CallBroken))
                with pytest.raises(ValueError, match=r"."):
                    json.loads(told)


@EVERY
def test_langchain_makes_no_call_of_half_a_list(format_: CallFormat) -> None:
    wanted = [NOW, SEARCH] if format_.name in MANY else [SEARCH]
    text = format_.write(wanted)
    for end in range(1, len(text)):
        pieces = [
            tool_call_chunk(
                name=event.name if isinstance(event, CallStart) else None,
                args="" if isinstance(event, CallStart) else event.text,
                id="x" if isinstance(event, CallStart) else None,
                index=number,
            )
            for number, event in numbered(read(format_, text[:end]))
            if isinstance(event, CallStart | CallArgs | CallBroken)
        ]
        made = sum(
            (AIMessageChunk(content="", tool_call_chunks=[p]) for p in pieces),
            AIMessageChunk(content=""),
        )
        assert isinstance(made, AIMessageChunk)
        told = [(call["name"], call["args"]) for call in made.tool_calls]
        assert told == wanted[: len(told)], text[:end]


def numbered(events: list[Event]) -> Iterator[tuple[int, Event]]:
    number = -1
    for event in events:
        number += isinstance(event, CallStart)
        yield number, event


@EVERY
@pytest.mark.parametrize("final", [None, {"type": "object", "properties": {"n": {}}}])
def test_what_the_grammar_lets_through_is_read_as_it_was_meant(
    format_: CallFormat, final: dict[str, object] | None
) -> None:
    """Random answers, markers spelled out among them: every call is whole, of a tool on offer,
    with arguments of its schema; and nothing is broken."""
    tokenizer = tokenizer_of(format_)
    engine = llguidance.hf.from_tokenizer(tokenizer)
    tokens = dict(tokenizer.get_added_vocab())
    lark = format_.grammar(Ask(TOOLS, final=final, tokens=tokens))
    schemas = {name_of(tool): parameters_of(tool) for tool in TOOLS}
    parts = [*format_.markers, *format_.think, format_.write([NOW]), format_.write([SEARCH]), "a",
             " ", "\n", '{"n": "', '"}', "{", "</parameter>", "<parameter=limit>\n5"]  # fmt: skip
    spelled = byte_tokenizer()  # whose ids of bytes are the same
    seen = 0
    for seed in range(150):
        rng = random.Random(seed)
        matcher, ids = llguidance.LLMatcher(engine, lark), list[int]()
        for _ in range(12):
            part = rng.choice(parts)
            new = rng.choice([tokenizer, spelled]).encode(part, add_special_tokens=False)
            legal = matcher.validate_tokens(new)
            matcher.consume_tokens(new[:legal])
            ids += new[:legal]
            if matcher.is_stopped():
                break
        if not matcher.is_accepting():
            continue
        text = str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))
        parser = format_.parser(TOOLS, document=final is not None)
        events = [*parser.feed(text), *parser.finish()]
        assert not any(isinstance(event, CallBroken) for event in events), text
        for name, arguments in calls(joined(events)):
            jsonschema.validate(arguments, schemas[name])
        seen += bool(ids)
    assert seen > 5


@EVERY
def test_reasoning_comes_before_text_and_calls(format_: CallFormat) -> None:
    opened, closed = format_.think
    between = "<|start|>assistant" if format_.name == "harmony" else ""
    text = f"hm{closed}{between}{format_.write([SEARCH])}"
    for thought in (read(format_, opened + text), read(format_, text, reasoning=True)):
        assert thought[0] == ReasoningPiece("hm")
        assert calls(thought) == [SEARCH]


def accepts(format_: CallFormat, ask: Ask, text: str) -> bool:
    tokenizer = tokenizer_of(format_)
    tokens = dict(tokenizer.get_added_vocab())
    lark = format_.grammar(
        Ask(ask.tools, ask.mode, ask.parallel, ask.reasoning, ask.strict, ask.final, tokens)
    )
    matcher = llguidance.LLMatcher(llguidance.hf.from_tokenizer(tokenizer), lark)
    assert not matcher.is_error(), (lark, matcher.get_error())
    ids = tokenizer.encode(text, add_special_tokens=False)
    return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


def plain(format_: CallFormat, text: str) -> str:
    return f"<|channel|>final<|message|>{text}" if format_.name == "harmony" else text


@EVERY
@pytest.mark.parametrize("mode", ["auto", "required", "none"])
def test_grammars(format_: CallFormat, mode: ToolMode) -> None:
    ask = Ask(TOOLS, mode)
    # without an opener a call looks like any JSON text, and nobody looks for one
    called = mode != "none" or format_.name == "llama3"
    thought = "".join([format_.think[0], "hm", format_.think[1]])
    if format_.name == "harmony":
        thought += "<|start|>assistant"
    assert accepts(format_, ask, format_.write([SEARCH])) is called
    assert accepts(format_, ask, format_.write([NOW])) is called
    assert accepts(format_, ask, thought + format_.write([NOW])) is called
    if format_.name in MANY:
        assert accepts(format_, ask, format_.write([SEARCH, NOW])) is called
    if mode == "none":
        return
    if format_.name in MANY:
        assert not accepts(format_, Ask(TOOLS, mode, parallel=False), format_.write([NOW, NOW]))
    assert accepts(format_, ask, plain(format_, "hello")) is (mode != "required")
    assert not accepts(format_, ask, format_.write([("launch", {})]))
    assert not accepts(format_, ask, format_.write([("search", {"query": "x", "limit": "many"})]))
    assert not accepts(format_, ask, format_.write([("search", {"query": "x", "order": "left"})]))
    assert not accepts(format_, ask, format_.write([("now", {"zone": "x"})]))


@EVERY
def test_calls_or_one_document(format_: CallFormat) -> None:
    final = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    ask = Ask(TOOLS, final=final)
    assert accepts(format_, ask, plain(format_, '{"n": 1}'))
    assert accepts(format_, ask, format_.write([NOW]))
    assert not accepts(format_, ask, plain(format_, "hello"))
    assert not accepts(format_, Ask((), "none", final=final), format_.write([NOW]))


@EVERY
@pytest.mark.parametrize("strict", [None, True])
def test_arguments_have_no_bound_but_their_schema_s_own(
    format_: CallFormat, strict: bool | None
) -> None:
    query, kinds = {"type": "string", "maxLength": 2500}, {"type": "array", "maxItems": 70}
    bounded = tool("search", {"query": query, "kinds": kinds})

    def passes(tools: list[Tool], letters: int, items: int) -> bool:
        arguments = {"query": "a" * letters, "kinds": ["a"] * items}
        written = format_.write([("search", arguments)])
        return accepts(format_, Ask(tools, strict=strict), written)

    assert passes(TOOLS, 2501, 71)
    assert passes([bounded], 2500, 70)
    assert not passes([bounded], 2501, 70) and not passes([bounded], 2500, 71)


def tool(name: str, properties: dict[str, object] | None = None) -> Tool:
    """All of its arguments are required."""
    named = properties or {}
    schema = {"type": "object", "properties": named, "required": [*named]}
    return {"type": "function", "function": {"name": name, "parameters": schema}}


def test_a_pattern_that_bare_strings_cannot_be_held_to_is_refused_if_strict() -> None:
    schema = {"type": "object", "properties": {"when": {"type": "string", "format": "date"}}}
    tool: Tool = {"type": "function", "function": {"name": "book", "parameters": schema}}
    named("qwen-coder").grammar(Ask([tool]))
    with pytest.raises(ConfigError, match=r"book\.when.*format"):
        named("qwen-coder").grammar(Ask([tool], strict=True))


@pytest.mark.parametrize(
    ("template", "tokens", "name"),
    [
        ("{{ messages }}", (), "hermes"),
        ("...<tool_call>\\n{...}", (), "hermes"),
        ("<tool_call>\n<function=NAME>", (), "qwen-coder"),
        ("<tool_call>[{", (), "smollm2"),
        ("<|start_header_id|> ... \"parameters\": ", (), "llama3"),
        ("[TOOL_CALLS] [", ("[TOOL_CALLS]",), "mistral-list"),
        ("[TOOL_CALLS]", ("[TOOL_CALLS]", "[ARGS]"), "mistral"),
        ("<｜tool▁sep｜>'```json'", (), "deepseek-v3"),
        ("<｜tool▁sep｜>", (), "deepseek-v3.1"),
        ("<|channel|>analysis", (), "harmony"),
    ],
)  # fmt: skip
def test_a_format_is_known_by_its_template(
    template: str, tokens: tuple[str, ...], name: str
) -> None:
    assert choose(template, tokens).name == name


def test_an_unknown_format_is_named() -> None:
    with pytest.raises(ConfigError, match="tool_format='xml'"):
        named("xml")
