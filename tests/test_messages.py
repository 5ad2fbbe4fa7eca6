"""Every kind of message that LangChain hands over becomes a turn that templates can read."""

from __future__ import annotations

import pytest
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)

from whiflash_adapters.messages import TemplateMessage, to_template
from whiflash_engine.errors import ConfigError

CALL = {"name": "f", "args": {"a": 1}, "id": "call_1", "type": "tool_call"}
TOLD_CALL = {"type": "function", "id": "call_1", "function": {"name": "f", "arguments": {"a": 1}}}


@pytest.mark.parametrize(
    ("message", "turn"),
    [
        (SystemMessage("be brief"), {"role": "system", "content": "be brief"}),
        (HumanMessage("hi", name="bob"), {"role": "user", "content": "hi", "name": "bob"}),
        (ChatMessage(role="critic", content="no"), {"role": "critic", "content": "no"}),
        (
            HumanMessage(["a", {"type": "text", "text": "b"}]),
            {"role": "user", "content": "ab"},
        ),
        (
            AIMessage([{"type": "text", "text": "Let me "}, {"type": "text", "text": "look."}]),
            {"role": "assistant", "content": "Let me look."},
        ),
        (
            AIMessage([{"type": "reasoning", "reasoning": None}, {"type": "text", "text": None}]),
            {"role": "assistant", "content": ""},
        ),
        (
            AIMessage("", tool_calls=[CALL]),
            {"role": "assistant", "content": "", "tool_calls": [TOLD_CALL]},
        ),
        (
            AIMessage(
                [
                    {"type": "text", "text": "so"},
                    {"type": "tool_use", "id": "call_1", "name": "f", "input": {"a": 1}},
                ],
                tool_calls=[CALL],
            ),
            {"role": "assistant", "content": "so", "tool_calls": [TOLD_CALL]},
        ),
        (
            AIMessage("yes", additional_kwargs={"reasoning_content": "hm"}),
            {"role": "assistant", "content": "yes", "reasoning_content": "hm"},
        ),
        (
            AIMessage([{"type": "reasoning", "reasoning": "hm"}, {"type": "text", "text": "yes"}]),
            {"role": "assistant", "content": "yes", "reasoning_content": "hm"},
        ),
        (
            AIMessage("", invalid_tool_calls=[{"name": "f", "args": "{", "id": "x", "error": ""}]),
            {"role": "assistant", "content": ""},
        ),
        (
            ToolMessage("6", tool_call_id="call_1"),
            {"role": "tool", "content": "6", "tool_call_id": "call_1"},
        ),
        (
            ToolMessage("broken", tool_call_id="call_1", status="error"),
            {"role": "tool", "content": "Error: broken", "tool_call_id": "call_1"},
        ),
        (
            ToolMessage("Error: broken", tool_call_id="call_1", status="error"),
            {"role": "tool", "content": "Error: broken", "tool_call_id": "call_1"},
        ),
    ],
)
def test_a_turn(message: BaseMessage, turn: TemplateMessage) -> None:
    assert to_template([message]) == [turn]


def test_order_and_repeated_roles_are_kept() -> None:
    messages = [HumanMessage("a"), HumanMessage("b"), SystemMessage("c"), AIMessage("d")]
    assert [turn["role"] for turn in to_template(messages)] == [
        "user",
        "user",
        "system",
        "assistant",
    ]


def test_a_broken_call_is_told_only_with_its_answer() -> None:
    broken = AIMessage("", invalid_tool_calls=[{"name": "f", "args": "{", "id": "x", "error": ""}])
    [_, asked, _] = to_template([
        HumanMessage("hi"), broken, ToolMessage("no JSON: {", tool_call_id="x", status="error"),
    ])  # fmt: skip
    told = {"type": "function", "id": "x", "function": {"name": "f", "arguments": {}}}
    assert asked == {"role": "assistant", "content": "", "tool_calls": [told]}
    [_, left, _] = to_template([HumanMessage("hi"), broken, ToolMessage("?", tool_call_id="y")])
    assert "tool_calls" not in left


def test_no_messages() -> None:
    with pytest.raises(ConfigError, match=r"messages=\[\]"):
        to_template([])


def test_what_langchain_takes_for_blocks_of_a_tool_is_json() -> None:
    found: list[str | dict[str, str]] = [
        {"type": "file", "name": "a.txt"},
        {"type": "text", "text": "two"},
    ]
    [turn] = to_template([ToolMessage(found, tool_call_id="call_1")])
    assert turn["content"] == '{"type": "file", "name": "a.txt"}\ntwo'
    for block in (
        {"type": "image_url", "image_url": "x"},
        {"type": "file", "base64": "QUJD", "mime_type": "application/pdf"},
        {"type": "document", "source": {"type": "base64", "data": "QUJD"}},
    ):
        with pytest.raises(ConfigError, match=str(block["type"])):
            to_template([ToolMessage([block], tool_call_id="call_1")])


def test_what_cannot_be_told_is_refused() -> None:
    with pytest.raises(ConfigError, match="image"):
        to_template([HumanMessage([{"type": "image", "url": "https://example.org/x.png"}])])
    with pytest.raises(ConfigError, match="function"):
        to_template([FunctionMessage(name="f", content="x")])
