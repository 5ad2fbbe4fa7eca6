"""ChatWhiFlash against an engine that says what it is told to."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypedDict

import pytest
from langchain_core.exceptions import ContextOverflowError, ModelInvalidRequestError
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.prompt_values import StringPromptValue
from pydantic import BaseModel, ValidationError
from pydantic.v1 import BaseModel as BaseModelV1

from tests.fake_engine import TOOLLESS_TEMPLATE, FakeEngine, byte_tokenizer
from tests.toys_text import write_call
from whiflash_adapters.chat import ChatWhiFlash
from whiflash_adapters.generation import Trace
from whiflash_engine.errors import ConfigError, ConstraintError, PromptTooLongError

CALL = write_call("calculate", {"expression": "2 * 3"})


def calculate(expression: str) -> str:
    """Evaluate an expression.

    Args:
        expression: what to evaluate
    """
    return expression


def search(query: str) -> str:
    """Search."""
    return query


TOOLS = [calculate, search]
FINAL = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


def chat_of(*texts: str, size: int = 3, **fields: Any) -> tuple[ChatWhiFlash, FakeEngine]:
    engine = FakeEngine(*texts, size=size)
    return ChatWhiFlash(engine=engine, **fields), engine


def merged(chunks: list[AIMessageChunk]) -> AIMessageChunk:
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole = whole + chunk
    return whole


def figures(message: AIMessage) -> dict[str, Any]:
    whiflash = message.response_metadata["whiflash"]
    assert isinstance(whiflash, dict)
    return whiflash


ANSWERS = [
    "Grüße, 世界! 👍🏽 done",
    CALL,
    f"Let me see.\n{CALL}\n{write_call('search', {'query': 'ü'})}",
    f"<think>\nhm\n</think>\n\n{CALL}",
    "<think>\nhm\n</think>\n\nyes",
    CALL[:-20],
]


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("size", [1, 4, 1000])
def test_invoke_and_stream_give_the_same_message(answer: str, size: int) -> None:
    def plain(message: AIMessage) -> dict[str, Any]:
        whole = message.model_dump(exclude={"id", "type", "tool_call_chunks", "chunk_position"})
        for call in whole["tool_calls"] + whole["invalid_tool_calls"]:
            assert call.pop("id").startswith("call_")
        told = whole["response_metadata"]["whiflash"]
        for measured in ("seconds", "tokens_per_second", "time_to_first_token"):
            assert told.pop(measured) >= 0
        return whole

    bound = chat_of(answer, size=size)[0].bind_tools(TOOLS)
    chunks = [c for c in bound.stream("hi") if isinstance(c, AIMessageChunk)]
    assert plain(bound.invoke("hi")) == plain(merged(chunks))
    assert all(not (c.content and c.tool_call_chunks) for c in chunks)


def test_text_arrives_as_it_is_written_and_whole() -> None:
    chat, _ = chat_of("Grüße, 世界! 👍🏽 done", size=1)
    texts = [chunk.text for chunk in chat.stream("hi")]
    assert "".join(texts) == "Grüße, 世界! 👍🏽 done"
    assert len([t for t in texts if t]) > 10
    assert not any("\ufffd" in t for t in texts)


def test_a_call_is_parsed_and_streamed_in_pieces() -> None:
    chat, engine = chat_of(f"Let me see.\n{CALL}")
    bound = chat.bind_tools(TOOLS)
    message = bound.invoke([HumanMessage("2 * 3?")])
    assert message.text == "Let me see."
    (call,) = message.tool_calls
    assert (call["name"], call["args"]) == ("calculate", {"expression": "2 * 3"})
    assert message.response_metadata["finish_reason"] == "tool_calls"
    chunks = [c for c in bound.stream("2 * 3?") if isinstance(c, AIMessageChunk)]
    pieces = [c for chunk in chunks for c in chunk.tool_call_chunks]
    assert pieces[0]["name"] == "calculate" and len(pieces) > 3
    assert chunks[-1].chunk_position == "last"
    assert '"calculate"' in engine.prompts[0] and len(engine.grammars) == 2


def test_standard_content_blocks_keep_text_reasoning_and_calls_apart() -> None:
    answer = f"<think>\nhm\n</think>\n\nLet me see.\n{CALL}\n{CALL}"
    bound = chat_of(answer, output_version="v1")[0].bind_tools(TOOLS)
    chunks = [c for c in bound.stream("hi") if isinstance(c, AIMessageChunk)]
    for message in (bound.invoke("hi"), merged(chunks)):
        kinds = [block["type"] for block in message.content_blocks]
        assert kinds == ["reasoning", "text", "tool_call", "tool_call"]


def test_a_cut_call_is_never_valid() -> None:
    answer = f"{CALL}\n{CALL}"
    total = len(answer.encode())
    for limit in range(1, total + 1):
        chat, _ = chat_of(answer, max_tokens=limit)
        message = chat.bind_tools(TOOLS).invoke("hi")
        complete = (limit >= len(CALL)) + (limit >= total)
        assert len(message.tool_calls) == complete
        assert all(c["args"] == {"expression": "2 * 3"} for c in message.tool_calls)
        assert message.response_metadata["finish_reason"] == "length"


@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_stop_strings_cut_wherever_the_chunks_end(size: int) -> None:
    chat, engine = chat_of("one two STOP three", size=size, stop=["STOP"])
    assert chat.invoke("hi").text == "one two "
    assert "".join(c.text for c in chat.stream("hi", stop=["tw"])) == "one "
    assert chat.invoke("hi").response_metadata["finish_reason"] == "stop"
    assert engine.running == 0


def test_a_stop_string_that_never_completes_is_text() -> None:
    chat, _ = chat_of("one two ST", stop=["STOP"])
    assert chat.invoke("hi").text == "one two ST"


@pytest.mark.parametrize("size", [1, 4, 1000])
def test_stop_strings_are_looked_for_in_the_text_alone(size: int) -> None:
    """Those of a ReAct prompt stand in every call; an agent that binds both wants its calls."""
    said = f"<think>\nwhat STOP means\n</think>\n\nLet me see. {CALL}"
    chat, _ = chat_of(said, size=size, stop=["STOP", "expression", "</tool_call>"])
    message = chat.bind_tools(TOOLS).invoke("hi")
    assert [call["args"] for call in message.tool_calls] == [{"expression": "2 * 3"}]
    assert "STOP" in message.additional_kwargs["reasoning_content"]
    cut = chat.bind_tools(TOOLS).invoke("hi", stop=["me"])
    assert cut.text.strip() == "Let" and not cut.tool_calls


def test_a_stream_that_is_left_leaves_nothing_behind() -> None:
    chat, engine = chat_of("a long answer of many rounds")
    stream = chat.stream("hi")
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert engine.running == 0


def test_usage_and_figures() -> None:
    message = chat_of("hello", size=2)[0].invoke("hi")
    usage = message.usage_metadata
    assert usage is not None
    assert usage["output_tokens"] == 6 and usage["total_tokens"] == usage["input_tokens"] + 6
    told = figures(message)
    assert told["rounds"] == 3 and told["acceptance_length"] == 2
    assert told["arms"]["ar"]["tokens"] == 2 and told["switch_seconds"] == pytest.approx(0.0015)
    assert {"tokens_per_second", "time_to_first_token", "spans"} <= told.keys()
    assert told["switches"] == 3 and told["caught_up"] == 0
    assert message.response_metadata["model_name"] == "fake"
    assert message.response_metadata["model_provider"] == "whiflash"


def test_the_first_token_waits_for_the_grammar(monkeypatch: pytest.MonkeyPatch) -> None:
    chat, engine = chat_of("hello")
    compiled = engine.grammar

    def slowly(lark: str, signposts: Sequence[str]) -> Any:
        time.sleep(0.05)
        return compiled(lark, signposts)

    monkeypatch.setattr(engine, "grammar", slowly)
    message = chat.bind_tools(TOOLS).invoke("hi")
    assert figures(message)["time_to_first_token"] >= 0.05


def test_a_download_is_told_on_stderr_and_the_rest_to_who_listens(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from whiflash_engine.engine import Engine

    def load(*, report: Callable[[str], None], **_: object) -> FakeEngine:
        report("fetching x (93 MB)")
        report("unpacking x")
        return FakeEngine("hello")

    monkeypatch.setattr(Engine, "load", load)
    caplog.set_level(logging.INFO, logger="whiflash_agents")
    ChatWhiFlash().invoke("hi")
    told = [(r.name, r.levelname, r.getMessage()) for r in caplog.records]
    assert told == [
        ("whiflash_agents", "WARNING", "fetching x (93 MB)"),
        ("whiflash_agents", "INFO", "unpacking x"),
    ]


def test_reasoning_is_told_apart_and_comes_back_in_the_prompt() -> None:
    chat, engine = chat_of("<think>\nhm\n</think>\n\nyes")
    message = chat.invoke("hi")
    assert (message.text, message.additional_kwargs["reasoning_content"]) == ("yes", "hm")
    chat.invoke([HumanMessage("hi"), message, HumanMessage("and?")])
    assert "<think>\nhm\n</think>\nyes" in engine.prompts[-1]


def test_a_template_without_tools_gets_a_system_block() -> None:
    engine = FakeEngine(CALL, tokenizer=byte_tokenizer(template=TOOLLESS_TEMPLATE))
    bound = ChatWhiFlash(engine=engine).bind_tools(TOOLS)
    question, answer = HumanMessage("2 * 3?"), bound.invoke("2 * 3?")
    call_id = str(answer.tool_calls[0]["id"])
    bound.invoke([question, answer, ToolMessage("6", tool_call_id=call_id)])
    prompt = engine.prompts[-1]
    assert prompt.startswith("<|im_start|>system\nYou may call these functions:")
    assert CALL in prompt and "<tool_response>\n6\n</tool_response>" in prompt


def test_control_tokens_in_messages_open_no_turn() -> None:
    chat, _ = chat_of("ok")
    tokenizer = byte_tokenizer()
    plain = chat.get_num_tokens_from_messages([HumanMessage("x")])
    nasty = chat.get_num_tokens_from_messages([HumanMessage("x<|im_end|>")])
    assert nasty - plain == len("<|im_end|>") > len(tokenizer.encode("<|im_end|>"))


@pytest.mark.parametrize(
    ("choice", "mode", "named"),
    [
        (None, "start: text | lead", 2),
        ("auto", "start: text | lead", 2),
        ("any", "start: lead calls", 2),
        ("required", "start: lead calls", 2),
        (True, "start: lead calls", 2),
        ("search", "start: lead calls", 1),
        ({"type": "function", "function": {"name": "search"}}, "start: lead calls", 1),
        ("none", "start: TEXT", 0),
    ],
)
def test_tool_choice(choice: Any, mode: str, named: int) -> None:
    chat, engine = chat_of("hello")
    chat.bind_tools(TOOLS, tool_choice=choice).invoke("hi")
    assert mode in engine.grammars[0]
    assert engine.grammars[0].count("%json") == named
    assert ("<tools>" in engine.prompts[0]) == (choice != "none")


def test_unknown_tool_name() -> None:
    with pytest.raises(ValueError, match=r"'launch'.*calculate, search"):
        chat_of("hello")[0].bind_tools(TOOLS, tool_choice="launch")
    with pytest.raises(ValueError, match="no tools"):
        chat_of("hello")[0].bind_tools([], tool_choice="any")


class Weather(BaseModel):
    """The weather somewhere."""

    city: str
    degrees: int


class OldWeather(BaseModelV1):
    """The weather somewhere, in the old Pydantic."""

    city: str
    degrees: int


class WeatherDict(TypedDict):
    """The weather somewhere."""

    city: str
    degrees: int


DOCUMENT = '{"city": "Oslo", "degrees": -3}'


def test_structured_output_through_a_forced_call() -> None:
    chat, engine = chat_of(write_call("Weather", {"city": "Oslo", "degrees": -3}))
    bound = chat.with_structured_output(Weather, method="function_calling")
    assert bound.invoke("hi") == Weather(city="Oslo", degrees=-3)
    assert "start: lead calls" in engine.grammars[0]


@pytest.mark.parametrize(
    ("schema", "wanted"),
    [
        (Weather, Weather(city="Oslo", degrees=-3)),
        (OldWeather, OldWeather(city="Oslo", degrees=-3)),
        (WeatherDict, {"city": "Oslo", "degrees": -3}),
        (Weather.model_json_schema(), {"city": "Oslo", "degrees": -3}),
    ],
)
@pytest.mark.parametrize("method", ["json_schema", "json_mode"])
def test_structured_output_through_a_grammar(schema: Any, wanted: Any, method: Any) -> None:
    chat, engine = chat_of(DOCUMENT)
    bound = chat.with_structured_output(schema, method=method)
    assert bound.invoke("hi") == wanted
    assert "document: %json" in engine.grammars[0]
    assert '"degrees"' in engine.grammars[0]
    assert asyncio.run(bound.ainvoke("hi")) == wanted


def test_json_mode_without_a_schema_asks_for_any_object() -> None:
    chat, engine = chat_of(DOCUMENT)
    found = chat.with_structured_output(None, method="json_mode").invoke("hi")
    assert found == {"city": "Oslo", "degrees": -3}
    assert "document: %json" in engine.grammars[0] and '"degrees"' not in engine.grammars[0]


def test_raw_answers_and_what_was_wrong_with_them() -> None:
    chat, _ = chat_of(DOCUMENT, '{"city": "Oslo"')
    bound = chat.with_structured_output(Weather, include_raw=True)
    good, bad = bound.invoke("hi"), bound.invoke("hi")
    assert isinstance(good, dict) and isinstance(bad, dict)
    assert good["parsed"] == Weather(city="Oslo", degrees=-3) and good["parsing_error"] is None
    assert good["raw"].text == DOCUMENT
    assert bad["parsed"] is None and isinstance(bad["parsing_error"], Exception)


def test_tools_and_a_response_format_together() -> None:
    asked = {"type": "json_schema", "json_schema": {"name": "w", "schema": FINAL}}
    chat, engine = chat_of('{"n": 1}')
    assert chat.bind_tools(TOOLS, response_format=asked).invoke("hi").text == '{"n": 1}'
    assert "(document | " in engine.grammars[0] and engine.grammars[0].count("%json") == 3
    chat.invoke("hi", response_format={"type": "text"})
    assert len(engine.grammars) == 1


@pytest.mark.parametrize("asked", ["json", {"type": "xml"}, {"type": "json_schema"}])
def test_a_response_format_that_means_nothing(asked: Any) -> None:
    with pytest.raises(ConfigError, match="response_format"):
        chat_of("hello")[0].invoke("hi", response_format=asked)


def test_structured_output_that_cannot_be() -> None:
    chat, _ = chat_of("hello")
    with pytest.raises(ConfigError, match="method='magic'"):
        chat.with_structured_output(Weather, method="magic")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="schema=None"):
        chat.with_structured_output(None)
    with pytest.raises(ConfigError, match="tools="):
        chat.with_structured_output(Weather, tools=[])


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"max_tokens": 0}, "max_tokens=0"),
        ({"max_tokens": -5}, "max_tokens=-5"),
        ({"temperature": -0.5}, "temperature=-0.5"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"top_p": 0}, "top_p=0"),
        ({"balance": 2}, "balance=2"),
        ({"span_bias": -1}, "span_bias=-1"),
        ({"repetition_penalty": 0}, "repetition_penalty=0"),
        ({"stop": [""]}, "stop="),
        ({"temperature": "hot"}, "temperature='hot'"),
        ({"max_tokens": "5"}, "max_tokens='5'"),
        ({"max_tokens": True}, "max_tokens=True"),
        ({"top_k": 2.5}, "top_k=2.5"),
        ({"seed": [1]}, r"seed=\[1\]"),
        ({"balance": "much"}, "balance='much'"),
        ({"router": 5}, "router=5"),
    ],
)
def test_bad_values_are_told_before_anything_is_loaded(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        ChatWhiFlash(**fields)
    with pytest.raises(ConfigError, match=said):
        chat_of("hello")[0].invoke("hi", **fields)


@pytest.mark.parametrize("stop", ["STOP", 5, [5]])
def test_a_stop_that_is_no_list_of_strings(stop: Any) -> None:
    with pytest.raises(ValidationError, match="stop"):
        ChatWhiFlash(stop=stop)
    with pytest.raises(ConfigError, match=r"stop=.*list of strings"):
        chat_of("hello")[0].invoke("hi", stop=stop)


def test_unknown_router() -> None:
    with pytest.raises(ValidationError, match=r"(?s)router.*'fastest'"):
        ChatWhiFlash(router="fastest")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="router='fastest'"):
        chat_of("hello")[0].invoke("hi", router="fastest")


def test_no_messages() -> None:
    with pytest.raises(ConfigError, match=r"messages=\[\]"):
        chat_of("hello")[0].invoke([])


def test_unknown_argument_of_a_call() -> None:
    with pytest.raises(ConfigError, match="logit_bias"):
        chat_of("hello")[0].invoke("hi", logit_bias={1: 2})
    with pytest.raises(ConfigError, match="model='other'"):
        chat_of("hello")[0].invoke("hi", model="other")


def test_a_prompt_that_does_not_fit() -> None:
    chat = ChatWhiFlash(engine=FakeEngine("hello", context_length=200))
    with pytest.raises(ContextOverflowError, match="200 tokens") as caught:
        chat.invoke("x" * 300)
    assert isinstance(caught.value.__cause__, PromptTooLongError)


def test_the_answer_ends_where_the_context_does() -> None:
    engine = FakeEngine("hello" * 100, context_length=200)
    message = ChatWhiFlash(engine=engine).invoke("hi")
    assert message.usage_metadata is not None
    assert message.usage_metadata["total_tokens"] == 200
    assert message.response_metadata["finish_reason"] == "length"


def test_values_of_a_call_win() -> None:
    chat, engine = chat_of("hello", temperature=0.3, seed=4, router="ar")
    chat.invoke("hi", temperature=0.9, top_k=5, max_tokens=7, seed=None, router="plain")
    sampling, router = engine.samplings[0], engine.routers[0]
    assert (sampling.temperature, sampling.top_k, sampling.max_tokens) == (0.9, 5, 7)
    assert sampling.seed == 4 and router is not None and router.name == "plain"


def test_copies_share_one_engine_and_nothing_is_loaded_early() -> None:
    chat, engine = chat_of("hello")
    ChatWhiFlash()  # would fetch a model otherwise
    chat.bind(stop=["x"]).invoke("hi")
    chat.model_copy(update={"temperature": 0.5}).invoke("hi")
    assert len(engine.prompts) == 2


def test_async_and_batch() -> None:
    chat, _ = chat_of("hello")
    assert [m.text for m in chat.batch(["a", "b", "c"])] == ["hello"] * 3

    async def streamed() -> str:
        return "".join([chunk.text async for chunk in chat.astream("hi")])

    assert asyncio.run(streamed()) == "hello"


def test_an_engine_that_is_given_routes_as_it_was_told_to() -> None:
    chat, engine = chat_of("hello")
    chat.invoke("hi")
    chat.invoke("hi", balance=0.5)
    stated, other = chat_of("hello", router="ar")
    stated.invoke("hi")
    assert engine.routers[0] is None
    assert [None if r is None else r.name for r in (*engine.routers[1:], *other.routers)] == [
        "auto", "ar"
    ]  # fmt: skip


def test_answers_of_another_engine_are_another_models() -> None:
    (one, engine), (two, _) = chat_of("hello"), chat_of("hello")
    engine.model_name = "another"
    assert one._identifying_params != two._identifying_params
    assert one._get_ls_params()["ls_model_name"] == "another"
    assert ChatWhiFlash()._get_ls_params()["ls_model_name"] == "default"


def test_a_page_that_cannot_be_written_costs_no_answer(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    chat, _ = chat_of("hello", trace=tmp_path / "file" / "trace.html")
    with pytest.warns(UserWarning, match=r"trace=.*file"):
        assert chat.invoke("hi").text == "hello"


def test_the_folder_of_a_page_is_made(tmp_path: Path) -> None:
    trace = tmp_path / "new" / "one" / "trace.html"
    chat_of("hello", trace=trace)[0].invoke("hi")
    assert "Who drafted what" in trace.read_text(encoding="utf-8")


def test_a_schema_that_cannot_be_kept_is_told_by_the_name_of_its_tool() -> None:
    def tool(name: str) -> dict[str, object]:
        wrong = {"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}}
        return {"type": "function", "function": {"name": name, "parameters": wrong}}

    chat = chat_of("hello")[0].bind_tools([tool("first"), tool("second")], tool_choice="second")
    with pytest.raises(ConstraintError, match="tool 'second'"):
        chat.invoke("hi", constrain="always")


def test_leaving_a_stream_closes_the_engines_iterator() -> None:
    chat, engine = chat_of("hello there", size=1)

    async def leave() -> int:
        stream = chat._astream([HumanMessage("hi")])
        await anext(stream)
        await stream.aclose()  # type: ignore[attr-defined]
        return engine.running

    assert asyncio.run(leave()) == 0


def test_traces_tell_the_rounds() -> None:
    traces: list[Trace] = []
    chat, _ = chat_of("hello", size=2, on_trace=traces.append)
    chat.invoke("hi")
    (trace,) = traces
    assert [len(r.tokens) for r in trace.rounds] == [2, 2, 2]
    assert "on_trace" not in chat.model_dump() and "engine" not in chat.model_dump()


def test_what_can_be_asked_can_be_counted() -> None:
    chat, engine = chat_of("x")
    forms: list[Any] = [
        "hi", ["hi"], [("human", "hi")], [{"role": "user", "content": "hi"}], [HumanMessage("hi")],
        StringPromptValue(text="hi"),
    ]  # fmt: skip
    chat.invoke("hi")
    ids = engine.tokenizer.encode(engine.prompts[0], add_special_tokens=False)
    assert [chat.get_num_tokens_from_messages(one) for one in forms] == [len(ids)] * len(forms)
    assert chat.get_num_tokens_from_messages([]) == 0


def test_what_cannot_be_bound_is_an_invalid_request_to_langchain() -> None:
    chat, _ = chat_of("x")
    with pytest.raises(ModelInvalidRequestError, match="tool_choice='launch'"):
        chat.bind_tools(TOOLS, tool_choice="launch")
    with pytest.raises(ModelInvalidRequestError, match="method='magic'"):
        chat.with_structured_output(Weather, method="magic")  # type: ignore[arg-type]
    with pytest.raises(ModelInvalidRequestError, match="tools="):
        chat.with_structured_output(Weather, tools=[])


def test_invalid_calls_say_what_was_written() -> None:
    text = '<tool_call>\n{"name": "calculate", "arguments": {"expression": 2 *}}\n</tool_call>'
    message = chat_of(text)[0].bind_tools(TOOLS).invoke("hi")
    assert message.tool_calls == []
    (invalid,) = message.invalid_tool_calls
    assert invalid["name"] == "calculate" and "2 *" in str(invalid["args"])
    assert message.response_metadata["finish_reason"] == "stop"
