"""The tool loop without a framework: call the model, run its tools, until it answers."""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar, cast

from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, ToolCall, ToolMessage
from pydantic import BaseModel

from whiflash_adapters.conversation import Prompt, conversation
from whiflash_adapters.own_tools import Tools, own_tools
from whiflash_adapters.tool_results import failure, in_text, reads_text_only, result
from whiflash_adapters.tool_runs import Patience
from whiflash_engine.config import require, require_whole

Model = TypeVar("Model", bound=BaseModel)

TRANSIENT: tuple[type[Exception], ...] = (ConnectionError, TimeoutError)
"""What is worth another attempt: the world, not the tool, was at fault."""


@dataclass(frozen=True, slots=True)
class Transcript:
    """All that was said, the question first.

    returned: the result of a tool with `return_direct`, which is then the answer: as it came,
    while among the messages stands what the model can read of it.
    """

    messages: tuple[BaseMessage, ...]
    returned: ToolMessage | None = None

    @property
    def finished(self) -> bool:
        """There is an answer; not when the steps ran out, or the last call could not be read."""
        if self.returned is not None:
            return True
        last = self.messages[-1] if self.messages else None
        return isinstance(last, AIMessage) and not (last.tool_calls or last.invalid_tool_calls)

    @property
    def answer(self) -> str:
        """Text of what a tool returned as the answer, or of the model's last message."""
        if self.returned is not None:
            return self.returned.text
        said = [message for message in self.messages if isinstance(message, AIMessage)]
        return said[-1].text if said else ""

    @property
    def calls(self) -> list[ToolCall]:
        return [call for m in self.messages if isinstance(m, AIMessage) for call in m.tool_calls]


class ToolLoop:
    """Runs a chat model with tools: plain functions, coroutines too (schemas come from their
    signatures and docstrings), or LangChain tools.

    A tool that fails, that takes too long, that returns what the model cannot read, or that does
    not exist tells the model so and does not end the loop; nor does a call whose arguments cannot
    be read. A tool with `return_direct` ends it with its result.
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
        require_whole("steps", steps)
        require(steps >= 1, "steps", steps, "must be at least 1")
        self._steps, self._patience = steps, Patience(timeout, attempts, retry_on)
        self._tools = own_tools(tools)
        self._model = model.bind_tools(list(self._tools.values()))
        self._text_only = reads_text_only(model)

    def run(self, prompt: Prompt) -> Transcript:
        """To the end, or until the steps run out."""
        history = conversation(prompt)
        said = [*self._said(history)]
        returned = [m for m in said if isinstance(m, ToolMessage) and self._returns(m)]
        told = [self._readable(m) if isinstance(m, ToolMessage) else m for m in said]
        return Transcript((*history, *told), returned[-1] if returned else None)

    def stream(self, prompt: Prompt) -> Iterator[AIMessage | ToolMessage]:
        """Each message as it comes."""
        return self._said(conversation(prompt))

    def _said(self, history: list[BaseMessage]) -> Iterator[AIMessage | ToolMessage]:
        for _ in range(self._steps):
            answer = self._model.invoke(history)
            yield answer
            results = []
            for message in self._results(answer):
                results.append(message)
                yield message
            if not results or any(self._returns(message) for message in results):
                return
            history = [*history, answer, *results]

    def _results(self, answer: AIMessage) -> Iterator[ToolMessage]:
        for call in answer.tool_calls:
            # a message that the tool made itself need not know whom it answers
            said = _to(call["id"] or "", call["name"], self._result(call))
            # the model does not read what is returned as the answer
            yield said if self._returns(said) else self._readable(said)
        for broken in answer.invalid_tool_calls:
            name, id_ = broken["name"], broken["id"]
            if name and id_:  # else there is nothing to answer to
                why = f"the arguments of this call are no JSON object: {broken['args']}"
                yield _to(id_, name, failure(why))

    def _result(self, call: ToolCall) -> ToolMessage:
        chosen = self._tools.get(call["name"])
        if chosen is None:
            names = ", ".join(self._tools)
            return failure(f"there is no tool {call['name']!r}; the tools are: {names}")
        try:
            return result(self._patience.call(chosen, call))
        # whatever a tool raises, the model should read it
        except (Exception, CancelledError) as error:
            return failure(str(error) or type(error).__name__)

    def _readable(self, message: ToolMessage) -> ToolMessage:
        """As the model can read it."""
        return in_text(message) if self._text_only else message

    def _returns(self, message: ToolMessage) -> bool:
        """Whether it is an answer; an error is not, and the model may do better."""
        chosen = self._tools.get(message.name or "")
        return chosen is not None and chosen.return_direct and message.status != "error"


def _to(id_: str, name: str, said: ToolMessage) -> ToolMessage:
    """The same, as the answer to this call."""
    return said.model_copy(update={"tool_call_id": id_, "name": name})


def generate_structured(model: BaseChatModel, schema: type[Model], prompt: Prompt) -> Model:
    """An instance of a Pydantic class, filled in by the model.

    Raises langchain_core's OutputParserException if what it says breaks a rule that a grammar
    cannot hold (a validator of the class, say).
    """
    return cast(Model, model.with_structured_output(schema).invoke(conversation(prompt)))
