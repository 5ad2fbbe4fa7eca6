"""`ChatWhiFlash`: the engine as a LangChain chat model."""

from __future__ import annotations

import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.exceptions import ContextOverflowError
from langchain_core.language_models import LangSmithParams, LanguageModelInput
from langchain_core.language_models.chat_models import (
    BaseChatModel,
    agenerate_from_stream,
    generate_from_stream,
)
from langchain_core.language_models.model_profile import ModelProfile
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import BaseModel, Field, PrivateAttr, SkipValidation, model_validator

from whiflash_adapters.background import from_thread
from whiflash_adapters.formats.hermes_grammar import grammar
from whiflash_adapters.formats.hermes_text import Tool
from whiflash_adapters.generation import Answer, Request, Trace
from whiflash_adapters.messages import to_template
from whiflash_adapters.ports import TokenEngine
from whiflash_adapters.prompt import Prompter
from whiflash_adapters.structured import Method, response_schema, structured
from whiflash_adapters.tool_choice import ToolChoice, resolve
from whiflash_adapters.values import (
    ROUTING,
    SAMPLING,
    check_types,
    router_config,
    sampling_config,
    stop_strings,
)
from whiflash_engine.config import RouterName
from whiflash_engine.errors import ConfigError, PromptTooLongError

_log = logging.getLogger("whiflash_agents")
# Told to us by LangChain for others: how a schema came about, and what always holds here.
_UNUSED = frozenset({"ls_structured_output_format", "stream_usage"})


class ChatWhiFlash(BaseChatModel):
    """A local model, drafted by EAGLE-3 and DFlash, as a LangChain chat model.

    Without arguments it is the embedded default model. Nothing is loaded before the first
    answer. Every sampling field may also be given per call: `chat.invoke(x, temperature=0.7)`.
    """

    model: str | Path | None = None
    """A local folder, a GGUF file or a hub id; None is the embedded default."""
    ar_drafter: str | Path | None = None
    """EAGLE-3 checkpoint; None takes the one that ships for the default model."""
    diffusion_drafter: str | Path | None = None
    """DFlash checkpoint; None takes the one that ships for the default model."""
    router: RouterName = "auto"
    """Who picks the arm of a round; "plain" drafts nothing."""
    balance: float = 1.0
    """0 maximises tokens a round, 1 tokens a second."""
    span_bias: float = 0.1
    """How strongly diffusion is favoured in JSON and AR in reasoning; 0 is off."""
    device: str | None = None
    dtype: str | None = None
    seed: int = 0

    temperature: float = 0.0
    max_tokens: int = 512
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: list[str] | None = None

    engine: SkipValidation[TokenEngine | None] = Field(default=None, exclude=True, repr=False)
    """An engine that is loaded already, to share it; the fields that load one are then unused."""
    on_trace: Callable[[Trace], None] | None = Field(default=None, exclude=True, repr=False)
    """Called after each answer with its rounds."""

    _slot: _Slot = PrivateAttr(default_factory=lambda: _Slot())

    @model_validator(mode="before")
    @classmethod
    def _check_types(cls, given: Any) -> Any:
        """Before pydantic makes 5 of "5"."""
        if isinstance(given, Mapping):
            check_types(given)
        return given

    @model_validator(mode="after")
    def _check_values(self) -> Self:
        """Say what is wrong now, not after a model has been loaded."""
        sampling_config(self._values({}))
        router_config(self._values({}))
        stop_strings(self.stop, None)
        return self

    @property
    def _llm_type(self) -> str:
        return "whiflash-chat"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        names = (
            "model", "ar_drafter", "diffusion_drafter", "device", "dtype", "stop",
            *ROUTING, *SAMPLING,
        )  # fmt: skip
        return {name: getattr(self, name) for name in names}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop, **kwargs)
        params.setdefault("ls_model_name", str(self.model or "default"))
        return params

    def _resolve_model_profile(self) -> ModelProfile:
        return {
            "text_inputs": True,
            "text_outputs": True,
            "tool_calling": True,
            "tool_choice": True,
            "structured_output": True,
            "reasoning_output": True,
        }

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

        method: "json_schema" keeps the whole answer to the schema by a grammar, "json_mode"
        to any JSON object, "function_calling" makes the schema a tool that must be called.
        include_raw: {"raw", "parsed", "parsing_error"} instead of the parsed answer.
        """
        if kwargs:
            raise ConfigError(next(iter(kwargs)), next(iter(kwargs.values())), "is not known here")
        if method == "function_calling" and schema is not None:
            return super().with_structured_output(schema, include_raw=include_raw)
        return structured(self.bind, schema, method=method, include_raw=include_raw, strict=strict)

    def get_token_ids(self, text: str) -> list[int]:
        prompter = self._loaded()[1]
        return prompter.plain(text)

    def get_num_tokens_from_messages(
        self,
        messages: list[BaseMessage],
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool] | None = None,
        **_: Any,
    ) -> int:
        """Tokens of the whole prompt, chat template and tools included."""
        specs = [convert_to_openai_tool(tool) for tool in tools or ()]
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
        # on_llm_new_token is called by the base class, for every path.
        request, engine = self._request(messages, stop, kwargs)
        answer = Answer(engine, request)
        try:
            for chunk in answer.chunks():
                yield ChatGenerationChunk(message=chunk)
        except PromptTooLongError as error:
            raise ContextOverflowError(str(error)) from error
        if self.on_trace is not None and answer.trace is not None:
            self.on_trace(answer.trace)

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
        async for chunk in from_thread(lambda: self._stream(messages, stop, **kwargs)):
            yield chunk

    def _request(
        self, messages: Sequence[BaseMessage], stop: list[str] | None, given: Mapping[str, Any]
    ) -> tuple[Request, TokenEngine]:
        """All checks that need no engine, then the engine, then the prompt."""
        turns = to_template(messages)
        stops = stop_strings(self.stop, stop)
        values = self._values(given)
        sampling, router = sampling_config(values), router_config(values)
        specs: Sequence[Tool] = given.get("tools") or ()
        choice: ToolChoice = given.get("tool_choice")
        mode, allowed = resolve(specs, choice)
        final = response_schema(given.get("response_format"))
        self._refuse_unknown(given)

        engine, prompter = self._loaded()
        prompt = prompter.encode(turns, () if mode == "none" else specs)
        room = engine.context_length - len(prompt)
        if room < 1:
            error = PromptTooLongError(len(prompt), engine.context_length)
            raise ContextOverflowError(str(error)) from error
        reasoning = prompter.opens_reasoning(prompt)
        text = None
        if specs or final is not None:
            text = grammar(
                allowed,
                mode,
                parallel=given.get("parallel_tool_calls") is not False,
                tags_are_tokens=prompter.tags_are_tokens,
                reasoning=reasoning,
                strict=given.get("strict") is True,
                final=final,
            )
        sampling = replace(sampling, max_tokens=min(sampling.max_tokens, room))
        tools = mode != "none"
        return Request(tuple(prompt), sampling, router, stops, text, tools, reasoning), engine

    def _values(self, given: Mapping[str, Any]) -> dict[str, object]:
        """What holds for a call: its own values; None means as the model was built."""
        own = {name: getattr(self, name) for name in (*SAMPLING, *ROUTING)}
        return own | {k: v for k, v in given.items() if k in own and v is not None}

    def _refuse_unknown(self, given: Mapping[str, Any]) -> None:
        known = {
            "tools", "tool_choice", "parallel_tool_calls", "strict", "response_format",
            *SAMPLING, *ROUTING, *_UNUSED,
        }  # fmt: skip
        for name, value in given.items():
            if name == "model" and value in (None, self.model):
                continue
            if name not in known and value is not None:
                raise ConfigError(name, value, "cannot be set per call")

    def _loaded(self) -> tuple[TokenEngine, Prompter]:
        return self._slot.get(self._load)

    def _load(self) -> TokenEngine:
        if self.engine is not None:
            return self.engine
        from whiflash_engine.engine import Engine  # torch: only when a model is really used

        return Engine.load(
            model=self.model,
            ar_drafter=self.ar_drafter,
            diffusion_drafter=self.diffusion_drafter,
            router=self.router,
            balance=self.balance,
            span_bias=self.span_bias,
            device=self.device,
            dtype=self.dtype,
            seed=self.seed,
            report=_tell,
        )


def _tell(said: str) -> None:
    # Unless logging is set up otherwise, Python shows warnings on stderr and nothing below
    # them: a first answer that waits for a download should not be silent. The steps of it, and
    # unpacking, are for those who listen.
    _log.log(logging.WARNING if "fetching" in said else logging.INFO, "%s", said)


class _Slot:
    """The engine, once somebody needs it; shared by all copies of a model."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._content: tuple[TokenEngine, Prompter] | None = None

    def get(self, load: Callable[[], TokenEngine]) -> tuple[TokenEngine, Prompter]:
        with self._lock:
            if self._content is None:
                engine = load()
                self._content = engine, Prompter(engine.tokenizer)
            return self._content
