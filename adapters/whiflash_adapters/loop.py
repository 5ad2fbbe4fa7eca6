"""The tool loop in plain langchain-core: call the model, run its tools, until it answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, AnyMessage, ToolCall, ToolMessage
from langchain_core.tools import BaseTool, tool

Tools = Sequence[BaseTool | Callable[..., str]]


def run_agent(
    model: BaseChatModel, tools: Tools, messages: Sequence[AnyMessage], *, steps: int = 6
) -> Iterator[AIMessage | ToolMessage]:
    """Yield each message as it comes; at most `steps` answers of the model.

    A tool that fails, or that does not exist, tells the model so and does not end the loop.
    """
    by_name = {t.name: t for t in (t if isinstance(t, BaseTool) else tool(t) for t in tools)}
    bound = model.bind_tools(list(by_name.values()))
    history: list[AnyMessage] = list(messages)
    for _ in range(steps):
        answer = bound.invoke(history)
        yield answer
        if not answer.tool_calls:
            return
        results = [_result(by_name.get(call["name"]), call) for call in answer.tool_calls]
        yield from results
        history += [answer, *results]


def _result(chosen: BaseTool | None, call: ToolCall) -> ToolMessage:
    try:
        if chosen is None:
            raise ValueError(f"there is no tool {call['name']!r}")
        content, status = str(chosen.invoke(call["args"])), "success"
    except Exception as error:  # whatever a tool raises, the model should read it
        content, status = f"Error: {error}", "error"
    return ToolMessage(
        content=content, tool_call_id=call["id"] or "", name=call["name"], status=status
    )
