"""LangChain messages as chat templates want them: plain dicts, text content, dict arguments."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Literal, NotRequired, TypedDict

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)

from whiflash_engine.errors import ConfigError


class TemplateFunction(TypedDict):
    name: str
    arguments: Mapping[str, object]


class TemplateCall(TypedDict):
    type: Literal["function"]
    id: str
    function: TemplateFunction


class TemplateMessage(TypedDict):
    """One turn, with the keys that chat templates on the hub read."""

    role: str
    content: str
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[TemplateCall]]
    tool_call_id: NotRequired[str]
    name: NotRequired[str]


def to_template(messages: Sequence[BaseMessage]) -> list[TemplateMessage]:
    """Every message becomes one turn; consecutive turns of one role are left as they are."""
    if not messages:
        raise ConfigError("messages", [], "there is nothing to answer")
    return [_turn(message) for message in messages]


def _turn(message: BaseMessage) -> TemplateMessage:
    turn: TemplateMessage = {"role": _role(message), "content": _text(message)}
    if message.name:
        turn["name"] = message.name
    if isinstance(message, AIMessage):
        reasoning = _reasoning(message)
        if reasoning:
            turn["reasoning_content"] = reasoning
        if message.tool_calls:  # invalid calls are left out: nobody answered them
            turn["tool_calls"] = [
                {
                    "type": "function",
                    "id": call["id"] or "",
                    "function": {"name": call["name"], "arguments": call["args"]},
                }
                for call in message.tool_calls
            ]
    if isinstance(message, ToolMessage):
        turn["tool_call_id"] = message.tool_call_id
        if message.status == "error" and not turn["content"].lower().startswith("error"):
            turn["content"] = "Error: " + turn["content"]
    return turn


def _role(message: BaseMessage) -> str:
    if isinstance(message, SystemMessage):
        return "system"
    if isinstance(message, HumanMessage):
        return "user"
    if isinstance(message, AIMessage):
        return "assistant"
    if isinstance(message, ToolMessage):
        return "tool"
    if isinstance(message, ChatMessage):
        return message.role
    raise ConfigError("messages", message.type, "a chat template has no such kind of message")


_SEEN_OR_HEARD = ("image", "image_url", "audio", "video")


def _text(message: BaseMessage) -> str:
    """Text blocks joined; calls and reasoning are told elsewhere, images cannot be told. What
    else a tool found is told as JSON."""
    if isinstance(message.content, str):
        return message.content
    texts: list[str] = []
    for block in message.content:
        if isinstance(block, str):
            texts.append(block)
        elif block.get("type") == "text":
            texts.append(str(block.get("text", "")))
        elif isinstance(message, ToolMessage) and block.get("type") not in _SEEN_OR_HEARD:
            texts.append(json.dumps(block, ensure_ascii=False))  # LangChain guesses from a "type"
        elif not isinstance(message, AIMessage):
            kind = block.get("type", "unknown")
            raise ConfigError("messages", kind, "only text blocks can be read by this model")
    return "\n".join(texts)


def _reasoning(message: AIMessage) -> str:
    told = message.additional_kwargs.get("reasoning_content")
    if isinstance(told, str):
        return told
    if isinstance(message.content, str):
        return ""
    blocks = [block for block in message.content if isinstance(block, dict)]
    return "".join(str(b.get("reasoning", "")) for b in blocks if b.get("type") == "reasoning")
