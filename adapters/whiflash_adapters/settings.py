"""What a chat model can be told, checked; and what holds for a call of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from langchain_core.language_models.chat_models import BaseChatModel
from pydantic import AliasChoices, Field, SkipValidation, model_validator

from whiflash_adapters.field_names import refuse_unknown
from whiflash_adapters.formats.choose import named
from whiflash_adapters.generation import Trace
from whiflash_adapters.ports import TokenEngine
from whiflash_adapters.request import Constrain, constraining
from whiflash_adapters.values import (
    ROUTING,
    SAMPLING,
    Values,
    router_config,
    sampling_config,
    stop_strings,
    template_variables,
)
from whiflash_engine.config import RouterConfig, RouterName, require
from whiflash_engine.errors import ConfigError

# Where something is found. An environment variable that is not set often comes as "".
_NAMING = (
    "model", "ar_drafter", "diffusion_drafter", "neural_router", "statistics", "device", "dtype",
    "trace",
)  # fmt: skip
_USUAL = RouterConfig()
_USUALLY_ROUTED: Values = {
    "router": _USUAL.name, "balance": _USUAL.balance, "span_bias": _USUAL.span_bias,
}  # fmt: skip


class ChatSettings(BaseChatModel):
    """The fields of `ChatWhiFlash`."""

    model: str | Path | None = Field(
        default=None, validation_alias=AliasChoices("model", "model_name")
    )
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
    router: RouterName | None = None
    """Who picks the arm of a round; "plain" drafts nothing. None of these three stated: "auto",
    or as an `engine` that is given was told to."""
    balance: float | None = None
    """0 maximises tokens a round, 1 (the default) tokens a second."""
    span_bias: float | None = None
    """How strongly diffusion is favoured in JSON and AR in reasoning (0.05); 0 is off."""
    device: str | None = None
    dtype: str | None = None
    """"bfloat16", "float32" or "int8" (CPUs; fast, a text of its own); see `Engine.load`."""
    seed: int = 0

    temperature: float = 0.0
    max_tokens: int = 512
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: list[str] | None = None
    """Looked for in the text alone: not in reasoning and calls, nor in the blanks around them."""
    logprobs: bool = False
    """Tell in `response_metadata["logprobs"]` how likely each token was to the target."""
    top_logprobs: int = 0
    """With `logprobs`, and refused without: how many of the likeliest tokens to tell of beside
    each."""

    constrain: Constrain = "auto"
    """"auto": where tools or a schema are given, a grammar keeps answers to them; what it
    cannot express of a tool's schema is let through. "always": such a schema is refused. "never":
    no grammar; calls are read from whatever the model writes."""
    tool_format: str | None = None
    """How the model writes tool calls, a name of `whiflash_adapters.formats.choose.FORMATS`;
    None goes by its chat template."""

    chat_template_kwargs: dict[str, object] | None = None
    """Variables of the model's own chat template: {"enable_thinking": False} for Qwen3,
    {"reasoning_effort": "low"} for gpt-oss."""

    engine: SkipValidation[TokenEngine | None] = Field(default=None, exclude=True, repr=False)
    """An engine that is loaded already, to share it; the fields that load one are then unused,
    and it routes as it was told to unless `router`, `balance` or `span_bias` is stated here."""
    trace: str | Path | None = Field(default=None, exclude=True, repr=False)
    """A file: the page of each answer is written there, over that of the last one."""
    on_trace: Callable[[Trace], None] | None = Field(default=None, exclude=True, repr=False)
    """Called after each answer with its rounds; what it raises becomes a warning."""

    @model_validator(mode="before")
    @classmethod
    def _check_as_given(cls, given: object) -> object:
        """Before pydantic drops what it does not know, and makes 5 of "5"."""
        if isinstance(given, Mapping):
            refuse_unknown(given, cls.model_fields)
            stated = {name: value for name, value in given.items() if value is not None}
            usual = {name: field.default for name, field in cls.model_fields.items()}
            sampling_config({**usual, **stated})
            router_config({**usual, **_USUALLY_ROUTED, **stated})
        return given

    @model_validator(mode="after")
    def _check_values(self) -> Self:
        """Say what is wrong now, not after a model has been loaded."""
        for name in _NAMING:
            value = getattr(self, name)
            empty = isinstance(value, str) and not value.strip()
            require(not empty, name, value, "is empty; None leaves it out")
        _check_logprobs({"top_logprobs": self.top_logprobs, "logprobs": self.logprobs})
        stop_strings(self.stop, None)
        constraining(self.constrain)
        template_variables(self.chat_template_kwargs)
        if self.tool_format is not None:
            named(self.tool_format)
        return self

    @property
    def _identifying_params(self) -> dict[str, Any]:
        names = (
            "model", "ar_drafter", "diffusion_drafter", "neural_router", "device", "dtype", "stop",
            "constrain", "tool_format", "chat_template_kwargs", *ROUTING, *SAMPLING,
        )  # fmt: skip
        return {name: getattr(self, name) for name in names} | {"model": self._named}

    @property
    def _named(self) -> str | Path | None:
        """Whose answers these are: LangChain keeps them apart by it."""
        return self.model if self.engine is None else self.engine.model_name

    def _values(self, given: Values) -> Values:
        """What holds for a call unless it says otherwise. An engine that was given routes as it
        was told to: its router is left out unless the call or a field states one."""
        stated = {name: value for name, value in given.items() if value is not None}
        names = ("model", "constrain", "chat_template_kwargs", *SAMPLING)
        own = {name: getattr(self, name) for name in names}
        # A call that only says logprobs=False takes the model's top_logprobs back with it.
        top = 0 if "logprobs" in stated else own["top_logprobs"]
        _check_logprobs({"top_logprobs": top, "logprobs": own["logprobs"], **stated})
        routed = any(name in stated or getattr(self, name) is not None for name in ROUTING)
        return own | self._routing() if self.engine is None or routed else own

    def _routing(self) -> dict[str, object]:
        """What is stated of it here, and else what is usual."""
        own = {name: getattr(self, name) for name in ROUTING}
        stated = {name: value for name, value in own.items() if value is not None}
        return {**_USUALLY_ROUTED, "seed": self.seed, **stated}


def _check_logprobs(values: Values) -> None:
    top = values["top_logprobs"]
    if top and not values["logprobs"]:
        raise ConfigError("top_logprobs", top, "needs logprobs=True")
