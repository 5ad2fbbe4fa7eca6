"""What a chat model can be told, checked; and the engine that comes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from langchain_core.language_models.chat_models import BaseChatModel
from pydantic import Field, PrivateAttr, SkipValidation, model_validator

from whiflash_adapters.formats.choose import named
from whiflash_adapters.generation import Trace
from whiflash_adapters.ports import TokenEngine
from whiflash_adapters.prompt import Prompter
from whiflash_adapters.request import Constrain, constraining
from whiflash_adapters.slot import Slot, tell
from whiflash_adapters.values import (
    ROUTING,
    SAMPLING,
    Values,
    check_types,
    router_config,
    sampling_config,
    stop_strings,
)
from whiflash_engine.config import RouterName


class ChatSettings(BaseChatModel):
    """The fields of `ChatWhiFlash`. Nothing is loaded before the engine is asked for."""

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

    def _values(self, given: Values) -> Values:
        """What holds for a call unless it says otherwise. An engine that was given routes as it
        was told to: its router is left out unless somebody here has stated one."""
        stated = {*self.model_fields_set, *given} & {*ROUTING}
        routing = ROUTING if self.engine is None or stated else ()
        return {name: getattr(self, name) for name in ("model", "constrain", *SAMPLING, *routing)}

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
