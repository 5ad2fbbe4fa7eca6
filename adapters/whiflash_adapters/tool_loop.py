"""The tool loop without a framework: call the model, run its tools, until it answers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as TooLate
from dataclasses import dataclass
from typing import TypeVar, cast

from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolCall, ToolMessage
from langchain_core.tools import BaseTool, StructuredTool, Tool, tool
from pydantic import BaseModel
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential

from whiflash_engine.config import require

Tools = Sequence[BaseTool | Callable[..., object]]
Model = TypeVar("Model", bound=BaseModel)

TRANSIENT: tuple[type[Exception], ...] = (ConnectionError, TimeoutError)
"""What is worth another attempt: the world, not the tool, was at fault."""


@dataclass(frozen=True, slots=True)
class Transcript:
    """All that was said, the question first.

    finished: the model answered without calling a tool; False when the steps ran out.
    """

    messages: tuple[AnyMessage, ...]
    finished: bool

    @property
    def answer(self) -> str:
        """Text of the model's last message."""
        said = [message for message in self.messages if isinstance(message, AIMessage)]
        return said[-1].text if said else ""

    @property
    def calls(self) -> list[ToolCall]:
        return [call for m in self.messages if isinstance(m, AIMessage) for call in m.tool_calls]


class ToolLoop:
    """Runs a chat model with tools: plain functions, coroutines too (schemas come from their
    signatures and docstrings), or LangChain tools.

    A tool that fails, that takes too long, or that does not exist tells the model so and does
    not end the loop.
    """

    def __init__(
        self,
        model: BaseChatModel,
        tools: Tools,
        *,
        steps: int = 6,
        timeout: float | None = 30.0,
        attempts: int = 3,
        retry_on: tuple[type[Exception], ...] = TRANSIENT,
    ) -> None:
        """steps: answers of the model at most. timeout: seconds for one call of a tool, retries
        included; a function cannot be interrupted, so it goes on in its thread, unheard.
        attempts: how often a call is tried when it raises one of `retry_on`."""
        require(steps >= 1, "steps", steps, "must be at least 1")
        require(timeout is None or timeout > 0, "timeout", timeout, "must be positive, or None")
        require(attempts >= 1, "attempts", attempts, "must be at least 1")
        own = [t if isinstance(t, BaseTool) else tool(t) for t in tools]
        self._tools = {t.name: t for t in own}
        require(len(self._tools) == len(own), "tools", [t.name for t in own], "names must differ")
        self._model = model.bind_tools(own)
        self._steps, self._timeout = steps, timeout
        self._attempts, self._retry_on = attempts, retry_on

    def run(self, prompt: str | Sequence[AnyMessage]) -> Transcript:
        """To the end, or until the steps run out."""
        history = _history(prompt)
        said = [*self.stream(history)]
        return Transcript(
            (*history, *said), bool(said) and isinstance(said[-1], AIMessage)
            and not said[-1].tool_calls,
        )  # fmt: skip

    def stream(self, prompt: str | Sequence[AnyMessage]) -> Iterator[AIMessage | ToolMessage]:
        """Each message as it comes."""
        history = _history(prompt)
        for _ in range(self._steps):
            answer = self._model.invoke(history)
            yield answer
            if not answer.tool_calls:
                return
            results = []
            for call in answer.tool_calls:
                results.append(self._result(call))
                yield results[-1]
            history += [answer, *results]

    def _result(self, call: ToolCall) -> ToolMessage:
        try:
            said = self._called(call)
            if not isinstance(said, ToolMessage):
                said = ToolMessage(str(said), tool_call_id="")
        except Exception as error:  # whatever a tool raises, the model should read it
            text = f"Error: {error or type(error).__name__}"
            said = ToolMessage(text, tool_call_id="", status="error")
        # a message that the tool made itself need not know whom it answers
        return said.model_copy(update={"tool_call_id": call["id"] or "", "name": call["name"]})

    def _called(self, call: ToolCall) -> object:
        chosen = self._tools.get(call["name"])
        if chosen is None:
            names = ", ".join(self._tools)
            raise ValueError(f"there is no tool {call['name']!r}; the tools are: {names}")
        tries = Retrying(
            stop=stop_after_attempt(self._attempts),
            wait=wait_exponential(0.2, max=5),
            retry=retry_if_exception_type(self._retry_on),
            reraise=True,
        )
        running = _started(lambda: tries(_invoked, chosen, call), f"tool {chosen.name}")
        try:
            return running.result(self._timeout)
        except TooLate:
            if running.done():  # the tool's own
                raise
            raise TimeoutError(f"{chosen.name} took more than {self._timeout:g} seconds") from None


def _invoked(chosen: BaseTool, call: ToolCall) -> object:
    """A whole call, not its arguments alone: LangChain then answers with a message, which has
    JSON in it and an artifact beside it, and gives the call's id to a tool that asks for it."""
    whole = {**call, "id": call["id"] or "", "type": "tool_call"}
    if isinstance(chosen, StructuredTool | Tool) and chosen.func is None:
        return asyncio.run(chosen.ainvoke(whole))
    return chosen.invoke(whole)


def _started(work: Callable[[], object], name: str) -> Future[object]:
    """Runs in a thread that does not keep the process from ending, as those of a pool do."""
    result: Future[object] = Future()

    def run() -> None:
        try:
            result.set_result(work())
        except BaseException as error:  # raised again by `result`
            result.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return result


def generate_structured(
    model: BaseChatModel, schema: type[Model], prompt: str | Sequence[AnyMessage]
) -> Model:
    """An instance of a Pydantic class, filled in by the model.

    Raises langchain_core's OutputParserException if what it says breaks a rule that a grammar
    cannot hold (a validator of the class, say).
    """
    return cast(Model, model.with_structured_output(schema).invoke(_history(prompt)))


def _history(prompt: str | Sequence[AnyMessage]) -> list[AnyMessage]:
    return [HumanMessage(prompt)] if isinstance(prompt, str) else list(prompt)
