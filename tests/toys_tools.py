"""A tool, a call of it, and loops over an engine that says what it is told to."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import ToolMessage

from tests.fake_engine import FakeEngine
from tests.toys_text import write_call
from whiflash_adapters.chat import ChatWhiFlash
from whiflash_adapters.tool_loop import ToolLoop


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


ADD = write_call("add", {"a": 2, "b": 3})


def loop(*texts: str, tools: Any = (add,), **options: Any) -> ToolLoop:
    return ToolLoop(ChatWhiFlash(engine=FakeEngine(*texts)), tools, **options)


def result_of(asked: Any, arguments: dict[str, Any], **options: Any) -> ToolMessage:
    """What the model reads when it calls this one tool."""
    name = asked.name if hasattr(asked, "name") else asked.__name__
    done = loop(write_call(name, arguments), "ok", tools=[asked], **options).run("hi")
    result = done.messages[2]
    assert isinstance(result, ToolMessage)
    assert result.tool_call_id == done.calls[0]["id"] and result.name == name
    return result


class Scripted(GenericFakeChatModel):
    """Any other chat model: what it says is no text of ours."""

    def bind_tools(self, *_: Any, **__: Any) -> Any:
        return self


def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tried again is tried at once."""
    monkeypatch.setattr("tenacity.nap.time", SimpleNamespace(sleep=lambda seconds: None))
