"""`ChatWhiFlash`: the engine as a LangChain chat model."""

from __future__ import annotations

import threading
import warnings
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import LangSmithParams, LanguageModelInput
from langchain_core.language_models.chat_models import agenerate_from_stream, generate_from_stream
from langchain_core.language_models.model_profile import ModelProfile
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import BaseModel

from whiflash_adapters.background import from_thread
from whiflash_adapters.errors import as_langchain
from whiflash_adapters.generation import PROVIDER, Answer, Trace
from whiflash_adapters.messages import to_template
from whiflash_adapters.page import page
from whiflash_adapters.ports import TokenEngine
from whiflash_adapters.request import Request, Wish
from whiflash_adapters.settings import ChatSettings
from whiflash_adapters.structured import Method, structured
from whiflash_adapters.tool_choice import resolve
from whiflash_engine.errors import ConfigError


class ChatWhiFlash(ChatSettings):
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
        params.setdefault("ls_model_name", str(self._named or "default"))
        return params

    def _resolve_model_profile(self) -> ModelProfile:
        profile: ModelProfile = {
            "text_inputs": True,
            "text_outputs": True,
            "tool_calling": True,
            "tool_choice": True,
            "tool_call_streaming": True,
            "structured_output": self.constrain != "never",
            "reasoning_output": True,
            "temperature": True,
            "open_weights": True,
        }
        if self.engine is not None:  # otherwise only loading it would tell
            profile["max_input_tokens"] = self.engine.context_length - 1
        return profile

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
        specs = [convert_to_openai_tool(tool) for tool in tools]
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
        """
        if kwargs:
            raise ConfigError(next(iter(kwargs)), next(iter(kwargs.values())), "is not known here")
        if method == "function_calling" and schema is not None:
            chosen = self.model_copy(update={"constrain": "always"}) if strict else self
            return super(ChatWhiFlash, chosen).with_structured_output(
                schema, include_raw=include_raw
            )
        return structured(self.bind, schema, method=method, include_raw=include_raw, strict=strict)

    def get_token_ids(self, text: str) -> list[int]:
        prompter = self._loaded()[1]
        return prompter.plain(text)

    def get_num_tokens_from_messages(
        self,
        messages: list[BaseMessage],
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool] | None = None,
    ) -> int:
        """Tokens of the whole prompt, chat template and tools included."""
        specs = [convert_to_openai_tool(tool) for tool in tools or ()]
        with as_langchain():
            return len(self._loaded()[1].encode(to_template(messages), specs))

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
        if self.on_trace is not None:
            self.on_trace(trace)
        if self.trace is not None:
            try:
                self.trace.write_text(page(trace, engine.tokenizer), encoding="utf-8")
            except OSError as error:  # an answer is worth more than its page
                warnings.warn(f"trace={self.trace}: {error}", stacklevel=2)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return await agenerate_from_stream(self._astream(messages, stop, **kwargs))

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        chunks = from_thread(lambda left: self._answered(messages, stop, kwargs, left))
        async with aclosing(chunks):
            async for chunk in chunks:
                yield chunk

    def _request(
        self, messages: Sequence[BaseMessage], stop: list[str] | None, given: Mapping[str, object]
    ) -> tuple[Request, TokenEngine]:
        """All checks that need no engine, then the engine, then the prompt."""
        wish = Wish.of(messages, given, self._values(given), (self.stop, stop))
        engine, prompter = self._loaded()
        return wish.request(engine, prompter), engine
