"""Agents as LangChain and LangGraph build them, on the real default model."""

from __future__ import annotations

from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from pydantic import BaseModel, Field

from whiflash_agents import ChatWhiFlash
from whiflash_agents.demo_tools import calculate
from whiflash_engine.engine import Engine

pytestmark = [pytest.mark.model, pytest.mark.filterwarnings("ignore")]


class Weather(BaseModel):
    """The weather somewhere."""

    city: str = Field(max_length=40)
    degrees: int = Field(ge=-60, le=60)


@pytest.fixture(scope="module")
def chat(default_engine: Engine) -> ChatWhiFlash:
    return ChatWhiFlash(engine=default_engine, max_tokens=128)


ASK = {"messages": [HumanMessage("It is 18 degrees in Lisbon. What is the weather like?")]}


@pytest.mark.parametrize("strategy", [ToolStrategy, ProviderStrategy])
def test_a_structured_response_without_tools(chat: ChatWhiFlash, strategy: Any) -> None:
    agent: Any = create_agent(chat, tools=[], response_format=strategy(Weather))
    assert isinstance(agent.invoke(ASK)["structured_response"], Weather)


@pytest.mark.parametrize("strategy", [ToolStrategy, ProviderStrategy])
def test_tools_together_with_a_response_format(chat: ChatWhiFlash, strategy: Any) -> None:
    agent: Any = create_agent(chat, tools=[calculate], response_format=strategy(Weather))
    out = agent.invoke(ASK, {"recursion_limit": 12})
    assert isinstance(out["structured_response"], Weather)


def test_a_bare_schema_takes_the_providers_way(chat: ChatWhiFlash) -> None:
    agent: Any = create_agent(chat, tools=[], response_format=Weather)
    out = agent.invoke(ASK)
    assert isinstance(out["structured_response"], Weather)
    assert not any(m.tool_calls for m in out["messages"] if isinstance(m, AIMessage))


def test_every_streaming_mode_tells_the_same_story(chat: ChatWhiFlash) -> None:
    agent: Any = create_agent(chat, tools=[calculate])
    ask = {"messages": [HumanMessage("What is 17 * 23?")]}
    told = {m: [] for m in ("values", "updates", "messages")}  # type: dict[str, list[Any]]
    for mode, data in agent.stream(ask, stream_mode=list(told)):
        told[mode].append(data)
    final = told["values"][-1]["messages"]
    assert any(isinstance(m, ToolMessage) and "391" in m.text for m in final)
    updated = [m for u in told["updates"] for part in u.values() for m in part["messages"]]
    assert [m.id for m in updated] == [m.id for m in final[1:]]
    last = final[-1]
    chunks = [c for c, _ in told["messages"] if isinstance(c, AIMessageChunk) and c.id == last.id]
    assert "".join(c.text for c in chunks) == last.text != ""
    assert len(chunks) > 1


async def test_async_agents_stream_tokens(chat: ChatWhiFlash) -> None:
    agent: Any = create_agent(chat, tools=[calculate])
    ask = {"messages": [HumanMessage("What is 6 * 7?")]}
    pieces = [c async for c, _ in agent.astream(ask, stream_mode="messages")]
    calls = [c for c in pieces if isinstance(c, AIMessageChunk) and c.tool_call_chunks]
    assert len(calls) > 1 and any(isinstance(c, ToolMessage) for c in pieces)
