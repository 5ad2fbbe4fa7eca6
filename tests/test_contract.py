"""What LangChain's users rely on beyond messages: errors, usage, logprobs, formats, constraints."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core import exceptions as core
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from langchain_core.messages import AIMessage, HumanMessage
from pydantic import ValidationError

from tests.fake_engine import FakeEngine
from tests.test_chat import CALL, TOOLS, chat_of
from whiflash_adapters.chat import ChatWhiFlash
from whiflash_adapters.formats.llama3 import LLAMA3
from whiflash_engine.errors import ConfigError, ConstraintError, PromptTooLongError

ODD = {"type": "object", "properties": {"n": {"type": "array", "uniqueItems": True}}}


def test_errors_are_ours_and_langchains() -> None:
    chat, _ = chat_of("yes")
    with pytest.raises(core.ModelInvalidRequestError, match="temperature=-1") as bad:
        chat.invoke("hi", temperature=-1.0)
    assert isinstance(bad.value, ConfigError) and bad.value.field == "temperature"
    with pytest.raises(
        core.ModelInvalidRequestError, match=r"response_format: .*uniqueItems"
    ) as refused:
        chat.with_structured_output(ODD).invoke("hi")
    assert isinstance(refused.value, ConstraintError)
    small = ChatWhiFlash(engine=FakeEngine("yes", context_length=8))
    with pytest.raises(core.ContextOverflowError) as long:
        small.invoke("hi")
    assert isinstance(long.value, PromptTooLongError) and long.value.limit == 8
    with pytest.raises(core.ModelNotFoundError, match="no-such-folder"):
        ChatWhiFlash(model="./no-such-folder").invoke("hi")


def test_fallbacks_act_on_langchains_own_classes() -> None:
    small = ChatWhiFlash(engine=FakeEngine("yes", context_length=8))
    spare = FakeListChatModel(responses=["spare"])
    both = small.with_fallbacks([spare], exceptions_to_handle=(core.ContextOverflowError,))
    assert both.invoke("hi").content == "spare"


def test_reasoning_tokens_are_counted() -> None:
    chat, engine = chat_of("<think>\nhm, so\n</think>\n\nyes")
    message = chat.invoke("hi")
    usage = message.usage_metadata
    assert usage is not None
    assert usage["output_token_details"] == {"reasoning": len("hm, so")}  # a token a byte
    assert chat_of("yes")[0].invoke("hi").usage_metadata["output_token_details"] == {"reasoning": 0}  # type: ignore[index]
    again = [HumanMessage("hi"), message, HumanMessage("sure?")]
    chat.invoke(again)
    assert "hm, so" in engine.prompts[-1]  # and accepted back


def test_logprobs_in_openais_shape() -> None:
    chat, engine = chat_of("yes", logprobs=True, top_logprobs=1)
    told: Any = chat.invoke("hi").response_metadata["logprobs"]["content"]
    assert [one["token"] for one in told] == ["y", "e", "s", "<|im_end|>"]
    assert told[0] == {
        "token": "y",
        "logprob": -0.5,
        "top_logprobs": [{"token": "y", "logprob": -0.5}],
    }
    assert engine.samplings[-1].logprobs == 1
    assert "logprobs" not in chat.invoke("hi", logprobs=False).response_metadata
    with pytest.raises(ValidationError, match="logprobs"):
        ChatWhiFlash(logprobs=1)  # type: ignore[arg-type]


def test_never_means_no_grammar_and_no_promise() -> None:
    chat, engine = chat_of(CALL, constrain="never")
    message = chat.bind_tools(TOOLS).invoke("2 * 3?")
    assert message.tool_calls[0]["name"] == "calculate" and engine.grammars == []
    for promise in (
        {"tools": [], "response_format": {"type": "json_object"}},
        {"tools": [{"name": "f"}], "tool_choice": "any"},
    ):
        with pytest.raises(ConfigError, match="constrain='never'"):
            chat.invoke("hi", **promise)
    assert not chat.profile["structured_output"]  # type: ignore[index]


def test_always_refuses_what_auto_lets_through() -> None:
    tool = {"name": "f", "description": "", "parameters": ODD}
    chat, engine = chat_of("yes")
    chat.bind_tools([tool]).invoke("hi")
    with pytest.raises(ConstraintError, match=r"tool 'f': .*uniqueItems"):
        chat.bind_tools([tool]).invoke("hi", constrain="always")
    with pytest.raises(ConfigError, match="constrain='maybe'"):
        chat.invoke("hi", constrain="maybe")
    assert len(engine.prompts) == 1  # the refusal came before any work


def test_another_format_is_asked_for_forced_and_read() -> None:
    said = LLAMA3.write([("search", {"query": "x"})])
    chat, engine = chat_of(said, tool_format="llama3")
    message = chat.bind_tools(TOOLS, tool_choice="any").invoke("x?")
    assert [(c["name"], c["args"]) for c in message.tool_calls] == [("search", {"query": "x"})]
    assert message.content == "" and '"\\"parameters\\""' in engine.grammars[0]
    with pytest.raises(ValidationError, match="tool_format"):
        ChatWhiFlash(tool_format="xml")


def test_a_copy_may_write_calls_in_another_form() -> None:
    chat, engine = chat_of("x")
    chat.bind_tools(TOOLS).invoke("hi")
    chat.model_copy(update={"tool_format": "llama3"}).bind_tools(TOOLS).invoke("hi")
    assert "parameters" not in engine.grammars[0].split("%json")[0]
    assert "parameters" in engine.grammars[1].split("%json")[0]


def test_a_profile_and_tracing_parameters() -> None:
    chat, engine = chat_of("yes", temperature=0.5)
    assert chat.profile["max_input_tokens"] == engine.context_length - 1  # type: ignore[index]
    params = chat._get_ls_params()
    assert params["ls_provider"] == "whiflash" and params["ls_temperature"] == 0.5
    message = chat.invoke("hi")
    assert isinstance(message, AIMessage)
    assert message.response_metadata["model_provider"] == params["ls_provider"]


def test_what_a_grammar_cannot_end_comes_back_invalid_not_half_done() -> None:
    chat, _ = chat_of(CALL, max_tokens=len(CALL) - 5)
    message = chat.bind_tools(TOOLS).invoke("2 * 3?")
    assert message.tool_calls == [] and len(message.invalid_tool_calls) == 1
    assert message.response_metadata["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"tools": 5}, "tools=5"),
        ({"tools": {"name": "f"}}, "tools="),
        ({"tools": [print]}, r"tools\[0\]"),
        ({"tools": [{"type": "function", "function": {}}]}, r"tools\[0\]"),
        ({"tools": [{"name": "f", "parameters": "x"}]}, r"tools\[0\].*schema"),
        ({"tools": [{"name": "f"}, {"name": "f"}]}, r"tools\[1\]='f'"),
        ({"tools": [{"name": "f"}], "parallel_tool_calls": "no"}, "parallel_tool_calls='no'"),
        ({"strict": "yes"}, "strict='yes'"),
    ],
)
def test_what_is_wrong_with_a_call_is_named(given: dict[str, Any], said: str) -> None:
    chat, engine = chat_of("x")
    with pytest.raises(core.ModelInvalidRequestError, match=said):
        chat.invoke("hi", **given)
    assert engine.prompts == []


def test_strict_holds_for_function_calling_too() -> None:
    chat, _ = chat_of("x")
    odd = {"title": "odd", "description": "", **ODD}
    with pytest.raises(ConstraintError, match="tool 'odd'"):
        chat.with_structured_output(odd, method="function_calling", strict=True).invoke("hi")
    with pytest.raises(ConfigError, match="schema=None"):
        chat.with_structured_output(None, method="function_calling")
