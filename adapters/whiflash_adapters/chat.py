"""`ChatWhiFlash`: the engine as a LangChain chat model."""

from __future__ import annotations

import threading
import warnings
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import LangSmithParams, LanguageModelInput
from langchain_core.language_models.chat_models import agenerate_from_stream, generate_from_stream
from langchain_core.language_models.model_profile import ModelProfile
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from pydantic import BaseModel

from whiflash_adapters.background import FromThread
from whiflash_adapters.chunks import PROVIDER
from whiflash_adapters.errors import as_langchain
from whiflash_adapters.generation import Answer, Trace
from whiflash_adapters.json_schemas import as_tool
from whiflash_adapters.messages import to_template
from whiflash_adapters.page import page
from whiflash_adapters.ports import TokenEngine
from whiflash_adapters.profile import profile_of
from whiflash_adapters.request import Request, Wish, offered
from whiflash_adapters.sharing import ChatSharing
from whiflash_adapters.structured import Method, structured
from whiflash_adapters.tool_choice import resolve
from whiflash_adapters.values import template_variables
from whiflash_engine.checkpoints.context import context_length
from whiflash_engine.errors import ConfigError


class ChatWhiFlash(ChatSharing):
    """A local model, drafted by EAGLE-3 and DFlash, as a LangChain chat model.

    Without arguments it is the embedded default model. Nothing is loaded before the first
    answer. Every sampling field may also be given per call: `chat.invoke(x, temperature=0.7)`.
    """

    @property
    def _llm_type(self) -> str:
        return "whiflash-chat"

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop, **kwargs)
        params["ls_provider"] = PROVIDER
        params["ls_model_name"] = str(kwargs.get("model") or self._named or "default")
        return params

    def _resolve_model_profile(self) -> ModelProfile:
        length = context_length(self.model) if self.engine is None else self.engine.context_length
        return profile_of(constrained=self.constrain != "never", context_length=length)

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | bool | dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """A copy that knows these tools.

        tool_choice: "auto" (default), "none", "any" or "required", a tool's name, or
        {"type": "function", "function": {"name": ...}}. `parallel_tool_calls=False` allows
        one call at most. Calls are kept to the tools' names and schemas by a grammar.
        """
        with as_langchain():
            specs = [as_tool(tool) for tool in tools]
            resolve(specs, tool_choice)
        if tool_choice is not None:
            kwargs["tool_choice"] = tool_choice
        return self.bind(tools=specs, **kwargs)

    def with_structured_output(
        self,
        schema: dict[str, Any] | type | None = None,
        *,
        method: Method = "json_schema",
        include_raw: bool = False,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, dict[str, Any] | BaseModel]:
        """Answers of this schema: a Pydantic class, a TypedDict class or a JSON schema.

        method: "json_schema" keeps the whole answer to the schema by a grammar, "json_mode" does
        so too, or to any JSON object where there is no schema, "function_calling" makes the
        schema a tool that must be called.
        include_raw: {"raw", "parsed", "parsing_error"} instead of the parsed answer.
        strict: False lets through what no grammar can keep to, for a Pydantic class to validate
        afterwards.
        """
        with as_langchain():
            if kwargs:
                name, value = next(iter(kwargs.items()))
                raise ConfigError(name, value, "is not known here")
            return structured(
                self.bind, schema, method=method, include_raw=include_raw, strict=strict
            )

    def get_token_ids(self, text: str) -> list[int]:
        prompter = self._loaded()[1]
        return prompter.plain(text)

    def get_num_tokens_from_messages(
        self,
        messages: LanguageModelInput,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool] | None = None,
    ) -> int:
        """Tokens of the whole prompt, chat template and tools included; of no messages, none.

        Whoever trims a history asks about any part of one. Where the template refuses that as a
        prompt, the tokens are estimated turn by turn.
        """
        if not messages:
            return 0
        with as_langchain():
            turns = to_template(self._convert_input(messages).to_messages())
            specs = offered([as_tool(tool) for tool in tools or ()])
            variables = template_variables(self.chat_template_kwargs)
            return self._loaded()[1].count(turns, specs, variables)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return generate_from_stream(self._stream(messages, stop, **kwargs))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        yield from self._answered(messages, stop, kwargs)

    def _answered(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None,
        given: Mapping[str, object],
        cancelled: threading.Event | None = None,
    ) -> Iterator[ChatGenerationChunk]:
        # on_llm_new_token is called by the base class, for every path.
        with as_langchain():
            request, engine = self._request(messages, stop, given)
            answer = Answer(engine, request, cancelled)
            for chunk in answer.chunks():
                yield ChatGenerationChunk(message=chunk)
        if answer.trace is not None:
            self._tell(answer.trace, engine)

    def _tell(self, trace: Trace, engine: TokenEngine) -> None:
        """An answer is worth more than its page: whatever goes wrong with that is a warning."""
        if self.on_trace is not None:
            with _warning("on_trace", self.on_trace):
                self.on_trace(trace)
        if self.trace is not None:
            with _warning("trace", self.trace):
                Path(self.trace).parent.mkdir(parents=True, exist_ok=True)
                Path(self.trace).write_text(page(trace, engine.tokenizer), encoding="utf-8")

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return await agenerate_from_stream(self._astream(messages, stop, **kwargs))

    def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        return FromThread(lambda left: self._answered(messages, stop, kwargs, left))

    def _request(
        self, messages: Sequence[BaseMessage], stop: list[str] | None, given: Mapping[str, object]
    ) -> tuple[Request, TokenEngine]:
        """All checks that need no engine, then the engine, then the prompt."""
        wish = Wish.of(messages, given, self._values(given), (self.stop, stop))
        engine, prompter = self._loaded()
        return wish.request(engine, prompter), engine


@contextmanager
def _warning(field: str, value: object) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        warnings.warn(f"{field}={value}: {type(error).__name__}: {error}", stacklevel=3)
