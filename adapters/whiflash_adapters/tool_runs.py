"""One call of a tool: in a thread of its own, within its time, tried again where that may help."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as TooLate
from dataclasses import dataclass

from langchain_core.messages import ToolCall
from langchain_core.tools import BaseTool, StructuredTool, Tool
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential

from whiflash_engine.config import require, require_number, require_whole


@dataclass(frozen=True, slots=True)
class Patience:
    """timeout: seconds for one call of a tool, retries included. attempts: how often a call is
    tried when it raises one of `retry_on`."""

    timeout: float | None
    attempts: int
    retry_on: tuple[type[Exception], ...]

    def __post_init__(self) -> None:
        if self.timeout is not None:
            require_number("timeout", self.timeout)
            waitable = 0 < self.timeout <= threading.TIMEOUT_MAX
            require(waitable, "timeout", self.timeout, "must be positive and finite, or None")
        require_whole("attempts", self.attempts)
        require(self.attempts >= 1, "attempts", self.attempts, "must be at least 1")

    def call(self, chosen: BaseTool, call: ToolCall) -> object:
        """What the tool returns, or raises."""
        tries = Retrying(
            stop=stop_after_attempt(self.attempts),
            wait=wait_exponential(0.2, max=5),
            retry=retry_if_exception_type(self.retry_on),
            reraise=True,
        )
        running = _started(lambda: tries(_invoked, chosen, call), f"tool {chosen.name}")
        try:
            return running.result(self.timeout)
        except TooLate:
            if running.done():  # the tool's own
                raise
            raise TimeoutError(f"{chosen.name} took more than {self.timeout:g} seconds") from None


def _invoked(chosen: BaseTool, call: ToolCall) -> object:
    """A whole call, not its arguments alone: LangChain then answers with a message, which has
    JSON in it and an artifact beside it, and gives the call's id to a tool that asks for it."""
    whole = {**call, "id": call["id"] or "", "type": "tool_call"}
    if isinstance(chosen, StructuredTool | Tool) and chosen.func is None:
        return asyncio.run(chosen.ainvoke(whole))
    return chosen.invoke(whole)


def _started(work: Callable[[], object], name: str) -> Future[object]:
    """Runs in a thread that does not keep the process from ending, as those of a pool do. What
    the caller set in its context, callbacks and traces among it, holds there too."""
    result: Future[object] = Future()

    def run() -> None:
        try:
            result.set_result(work())
        except BaseException as error:  # raised again by `result`
            result.set_exception(error)

    caller = contextvars.copy_context()
    threading.Thread(target=caller.run, args=(run,), name=name, daemon=True).start()
    return result
