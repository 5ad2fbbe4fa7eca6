"""What users of local chat models complain of elsewhere, one test each.

Where the engine itself is at stake (constraints under speculation, kept prefixes), the tests of
the decode loop, of constraints and of prefixes go further.
"""

from __future__ import annotations

from typing import Any

import llguidance
import llguidance.hf
import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from pydantic import BaseModel

from tests.fake_engine import FakeEngine, byte_tokenizer
from tests.test_chat import CALL, TOOLS, chat_of, merged
from tests.toys import ToyConstraint, ToyTarget, run, toy_drafters
from tests.toys_text import write_call
from whiflash_adapters.chat import ChatWhiFlash
from whiflash_adapters.errors import InvalidRequestError
from whiflash_engine.config import RouterConfig, RouterName, SamplingConfig
from whiflash_engine.engine import Engine
from whiflash_engine.events import tokens_of

THOUGHT = "<think>\nhm\n</think>\n"


class Answer(BaseModel):
    """A number."""

    n: int


def grammar_of(**call: Any) -> str:
    """The grammar that a call's answer is kept to."""
    chat, engine = chat_of("x")
    chat.bind_tools(TOOLS).invoke("hi", **call)
    return engine.grammars[-1]


def allows(lark: str, text: str) -> bool:
    tokenizer = byte_tokenizer()
    matcher = llguidance.LLMatcher(llguidance.hf.from_tokenizer(tokenizer), lark)
    ids = tokenizer.encode(text, add_special_tokens=False)
    return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


def test_tools_never_reach_the_prompt_of_a_local_model() -> None:
    chat, engine = chat_of("x")
    chat.bind_tools(TOOLS).invoke("hi")
    assert all(name in engine.prompts[0] for name in ("calculate", "search", "what to evaluate"))


@pytest.mark.parametrize("kind", ["array", "string", ["array", "null"]])
def test_arguments_that_are_no_object_are_refused(kind: object) -> None:
    """No call with such arguments could be told."""
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": kind}}}
    with pytest.raises(InvalidRequestError, match=r"tools\[0\] parameters type"):
        chat_of("x")[0].bind_tools([tool]).invoke("hi")


def test_any_with_several_tools_is_not_supported() -> None:
    lark = grammar_of(tool_choice="any")
    assert allows(lark, CALL) and allows(lark, write_call("search", {"query": "x"}))
    assert not allows(lark, "prose")


def test_tool_choice_is_ignored() -> None:
    assert not allows(grammar_of(tool_choice="search"), CALL)
    chat, engine = chat_of("x")
    chat.bind_tools(TOOLS).invoke("hi", tool_choice="none")
    assert "calculate" not in engine.prompts[0] and not allows(engine.grammars[0], CALL)


def test_required_ends_in_endless_prose() -> None:
    lark = grammar_of(tool_choice="required")
    assert not allows(lark, f"Let me think about it. {CALL}")


def test_a_forced_call_kills_the_reasoning() -> None:
    assert allows(grammar_of(tool_choice="required"), THOUGHT + CALL)


def test_a_call_shows_up_as_text() -> None:
    message = chat_of(CALL)[0].bind_tools(TOOLS).invoke("2 * 3?")
    assert message.content == "" and len(message.tool_calls) == 1


def test_a_tool_is_called_on_every_hello() -> None:
    lark = grammar_of()
    assert allows(lark, "Hello!") and allows(lark, "")  # auto leaves the choice to the model


def test_text_and_a_call_in_one_answer_are_impossible() -> None:
    message = chat_of(f"Let me see.\n{CALL}")[0].bind_tools(TOOLS).invoke("2 * 3?")
    assert message.text == "Let me see." and len(message.tool_calls) == 1


def test_parallel_calls_cannot_be_switched_off() -> None:
    lark = grammar_of(parallel_tool_calls=False)
    assert allows(lark, CALL) and not allows(lark, f"{CALL}\n{CALL}")
    assert allows(grammar_of(), f"{CALL}\n{CALL}")


def test_a_malformed_call_ends_the_agent_in_silence() -> None:
    for malformed in ('<tool_call>\n{"name": "calculate", "arguments": {oops}}\n</tool_call>',
                      write_call("launch", {}), write_call("calculate", {})):  # fmt: skip
        assert not allows(grammar_of(), malformed)


def test_half_a_call_is_reported_as_finished() -> None:
    message = chat_of(CALL, max_tokens=len(CALL) - 9)[0].bind_tools(TOOLS).invoke("2 * 3?")
    assert not message.tool_calls and message.invalid_tool_calls
    assert message.response_metadata["finish_reason"] == "length"


def test_the_last_message_may_not_be_a_tools() -> None:
    chat, engine = chat_of("It is 6.")
    asked = AIMessage(
        "", tool_calls=[{"name": "calculate", "args": {"expression": "2*3"}, "id": "1"}]
    )
    chat.invoke([HumanMessage("2 * 3?"), asked, ToolMessage("6", tool_call_id="1")])
    assert "<tool_response>\n6\n</tool_response>" in engine.prompts[0]


def test_pydantic_classes_are_not_supported() -> None:
    assert chat_of('{"n": 3}')[0].with_structured_output(Answer).invoke("hi") == Answer(n=3)


def test_structured_output_is_none_or_prose() -> None:
    chat, engine = chat_of('{"n": 3}')
    chat.with_structured_output(Answer).invoke("hi")
    assert allows(engine.grammars[0], '{"n": 3}')
    assert not any(allows(engine.grammars[0], text) for text in ("", "null", "Three."))


def test_schema_and_thinking_do_not_go_together() -> None:
    chat, engine = chat_of(THOUGHT + '{"n": 3}')
    said = chat.with_structured_output(Answer, include_raw=True).invoke("hi")
    assert isinstance(said, dict) and said["parsed"] == Answer(n=3)
    assert said["raw"].additional_kwargs["reasoning_content"] == "hm"
    assert allows(engine.grammars[0], THOUGHT + '{"n": 3}')


def test_with_a_schema_tools_are_never_called() -> None:
    schema = {
        "type": "json_schema",
        "json_schema": {"name": "a", "schema": Answer.model_json_schema()},
    }
    lark = grammar_of(response_format=schema)
    assert allows(lark, CALL) and allows(lark, '{"n": 3}') and not allows(lark, "Three.")


def test_nobody_knows_which_strategy_an_agent_takes() -> None:
    assert chat_of("x")[0].profile["structured_output"] is True  # type: ignore[index]


def test_tools_switch_streaming_off() -> None:
    chunks = list(chat_of(f"Let me see.\n{CALL}")[0].bind_tools(TOOLS).stream("hi"))
    assert len([c for c in chunks if c.text]) > 2
    assert len([c for c in chunks if isinstance(c, AIMessageChunk) and c.tool_call_chunks]) > 2


async def test_there_is_no_async() -> None:
    chat, _ = chat_of("yes indeed")
    assert (await chat.ainvoke("hi")).text == "yes indeed"
    assert len([c async for c in chat.astream("hi") if c.text]) > 2


def test_streamed_calls_are_broken_json() -> None:
    for size in range(1, 9):
        stream = chat_of(CALL, size=size)[0].bind_tools(TOOLS).stream("hi")
        whole = merged([chunk for chunk in stream if isinstance(chunk, AIMessageChunk)])
        assert not whole.invalid_tool_calls
        assert whole.tool_calls[0]["args"] == {"expression": "2 * 3"}


def test_the_prompt_is_echoed() -> None:
    assert chat_of("yes")[0].invoke("say yes").text == "yes"


def test_stop_sequences_are_not_honoured() -> None:
    chat, _ = chat_of("one two three", stop=["three"])
    assert chat.invoke("hi").text == "one two "
    assert chat.invoke("hi", stop=["two"]).text == "one "  # with the model's own, not against it
    assert "".join(c.text for c in chat.stream("hi", stop=["two"])) == "one "


def test_reasoning_is_lost() -> None:
    message = chat_of(THOUGHT + "yes")[0].invoke("hi")
    assert message.additional_kwargs["reasoning_content"] == "hm" and message.text == "yes"
    assert [block["type"] for block in message.content_blocks] == ["reasoning", "text"]


def test_an_empty_thought_in_the_prompt_confuses_the_parser() -> None:
    opened = "{% for m in messages %}{{ m.content }}{% endfor %}<think>\n"
    engine = FakeEngine("hm</think>\n\nyes", tokenizer=byte_tokenizer(template=opened))
    message = ChatWhiFlash(engine=engine).invoke("hi")
    assert (message.additional_kwargs["reasoning_content"], message.text) == ("hm", "yes")


def test_history_is_run_again_every_turn(engine: Engine) -> None:
    chat = ChatWhiFlash(engine=engine, max_tokens=8)
    first = chat.invoke([HumanMessage("hello there, how are you?")])
    second = chat.invoke([HumanMessage("hello there, how are you?"), first, HumanMessage("so?")])
    usage = second.usage_metadata
    assert usage is not None and first.usage_metadata is not None
    assert usage["input_token_details"]["cache_read"] >= first.usage_metadata["input_tokens"] - 1


def test_there_are_no_logprobs() -> None:
    assert "logprobs" in chat_of("yes", logprobs=True)[0].invoke("hi").response_metadata


@pytest.mark.parametrize("arm", ["ar", "diffusion", "random"])
def test_constraints_are_dropped_under_speculation(arm: RouterName) -> None:
    target = ToyTarget(9, seed=5)
    names: tuple[tuple[RouterName, ToyConstraint | None], ...] = (
        (arm, ToyConstraint(9)), ("plain", ToyConstraint(9)), (arm, None),
    )  # fmt: skip
    texts = [
        tokens_of(run(target, toy_drafters(target), [1, 2], sampling=SamplingConfig(max_tokens=50),
                      router=RouterConfig(name), constraint=constraint))
        for name, constraint in names
    ]  # fmt: skip
    assert texts[0] == texts[1] != texts[2]


def test_drafts_against_the_grammar_waste_the_targets_time() -> None:
    target = ToyTarget(9, seed=5)
    rounds = run(target, toy_drafters(target), [1, 2], sampling=SamplingConfig(max_tokens=50),
                 router=RouterConfig("ar"), constraint=ToyConstraint(9))  # fmt: skip
    cut = [r for r in rounds if r.verified <= len(r.proposed)]
    assert cut  # the target never saw what stood behind the first forbidden token
