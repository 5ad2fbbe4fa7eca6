"""`ChatWhiFlash`: the engine as a LangChain chat model."""

from __future__ import annotations

import warnings
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
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
from whiflash_adapters.errors import as_langchain
from whiflash_adapters.formats.choose import named
from whiflash_adapters.generation import PROVIDER, Answer, Trace
from whiflash_adapters.messages import to_template
from whiflash_adapters.page import page
from whiflash_adapters.ports import TokenEngine
from whiflash_adapters.prompt import Prompter
from whiflash_adapters.request import Constrain, Request, Wish, constraining
from whiflash_adapters.slot import Slot, tell
from whiflash_adapters.structured import Method, structured
from whiflash_adapters.tool_choice import resolve
from whiflash_adapters.values import (
    ROUTING,
    SAMPLING,
    check_types,
    router_config,
    sampling_config,
    stop_strings,
)
from whiflash_engine.config import RouterName
from whiflash_engine.errors import ConfigError


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
    neural_router: str | Path | None = None
    """A learned router; None takes the one that ships for the default model's drafters."""
    statistics: str | Path | None = None
    """A small file where what the router has learned of this model's drafters is kept from run
    to run; None keeps nothing."""
    router: RouterName = "auto"
    """Who picks the arm of a round; "plain" drafts nothing."""
    balance: float = 1.0
    """0 maximises tokens a round, 1 tokens a second."""
    span_bias: float = 0.05
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
    logprobs: bool = False
    """Tell in `response_metadata["logprobs"]` how likely each token was to the target."""
    top_logprobs: int = 0
    """With `logprobs`: how many of the likeliest tokens to tell of beside each."""

    constrain: Constrain = "auto"
    """"auto": where tools or a schema are given, a grammar keeps answers to them; what it
    cannot express of a tool's schema is let through. "always": such a schema is refused. "never":
    no grammar; calls are read from whatever the model writes."""
    tool_format: str | None = None
    """How the model writes tool calls, a name of `whiflash_adapters.formats.choose.FORMATS`;
    None goes by its chat template."""

    engine: SkipValidation[TokenEngine | None] = Field(default=None, exclude=True, repr=False)
    """An engine that is loaded already, to share it; the fields that load one are then unused,
    and it routes as it was told to unless `router`, `balance` or `span_bias` is stated here."""
    trace: Path | None = Field(default=None, exclude=True, repr=False)
    """A file: the page of each answer is written there, over that of the last one."""
    on_trace: Callable[[Trace], None] | None = Field(default=None, exclude=True, repr=False)
    """Called after each answer with its rounds."""

    _slot: Slot = PrivateAttr(default_factory=Slot)

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
        own = {name: getattr(self, name) for name in (*SAMPLING, *ROUTING)}
        sampling_config(own)
        router_config(own)
        stop_strings(self.stop, None)
        constraining(self.constrain)
        if self.tool_format is not None:
            named(self.tool_format)
        return self

    @property
    def _llm_type(self) -> str:
        return "whiflash-chat"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        names = (
            "model", "ar_drafter", "diffusion_drafter", "neural_router", "device", "dtype", "stop",
            "constrain", "tool_format", *ROUTING, *SAMPLING,
        )  # fmt: skip
        return {name: getattr(self, name) for name in names} | {"model": self._named}

    @property
    def _named(self) -> str | Path | None:
        """Whose answers these are: LangChain keeps them apart by it."""
        return self.model if self.engine is None else self.engine.model_name

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

        method: "json_schema" keeps the whole answer to the schema by a grammar, "json_mode"
        to any JSON object, "function_calling" makes the schema a tool that must be called.
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
        # on_llm_new_token is called by the base class, for every path.
        with as_langchain():
            request, engine = self._request(messages, stop, kwargs)
            answer = Answer(engine, request)
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
        async with aclosing(from_thread(lambda: self._stream(messages, stop, **kwargs))) as chunks:
            async for chunk in chunks:
                yield chunk

    def _request(
        self, messages: Sequence[BaseMessage], stop: list[str] | None, given: Mapping[str, object]
    ) -> tuple[Request, TokenEngine]:
        """All checks that need no engine, then the engine, then the prompt."""
        own = {name: getattr(self, name) for name in ("model", "constrain", *SAMPLING, *ROUTING)}
        wish = Wish.of(messages, given, own, (self.stop, stop))
        if self.engine is not None and not {*self.model_fields_set, *given} & {*ROUTING}:
            wish = replace(wish, router=None)
        engine, prompter = self._loaded()
        return wish.request(engine, prompter), engine

    def _loaded(self) -> tuple[TokenEngine, Prompter]:
        return self._slot.get(self._load, self.tool_format)

    def _load(self) -> TokenEngine:
        if self.engine is not None:
            return self.engine
        from whiflash_engine.engine import Engine  # torch: only when a model is really used

        return Engine.load(
            model=self.model,
            ar_drafter=self.ar_drafter,
            diffusion_drafter=self.diffusion_drafter,
            neural_router=self.neural_router,
            statistics=self.statistics,
            router=self.router,
            balance=self.balance,
            span_bias=self.span_bias,
            device=self.device,
            dtype=self.dtype,
            seed=self.seed,
            report=tell,
        )
