"""From a LangChain call to a request of the engine: what is asked for, checked, then encoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast, get_args

from langchain_core.messages import BaseMessage

from whiflash_adapters.formats.base import Ask, CallFormat, ToolMode
from whiflash_adapters.formats.tools import Tool, function_of, is_strict, name_of
from whiflash_adapters.json_values import in_json
from whiflash_adapters.messages import TemplateMessage, to_template
from whiflash_adapters.ports import TokenEngine
from whiflash_adapters.prompt import Prompter
from whiflash_adapters.structured import let_pass, response_schema, with_schema
from whiflash_adapters.tool_choice import ToolChoice, resolve
from whiflash_adapters.values import (
    ROUTING,
    SAMPLING,
    Values,
    router_config,
    sampling_config,
    stop_strings,
    template_variables,
)
from whiflash_engine.config import RouterConfig, SamplingConfig
from whiflash_engine.errors import ConfigError, PromptTooLongError

Constrain = Literal["auto", "always", "never"]

# Told to us by LangChain for others: how a schema came about, and what always holds here.
_UNUSED = ("ls_structured_output_format", "stream_usage")
_PER_CALL = frozenset({
    "tools", "tool_choice", "parallel_tool_calls", "strict", "response_format",
    "constrain", "chat_template_kwargs", *SAMPLING, *ROUTING, *_UNUSED,
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Request:
    """Everything about one answer that is decided before the engine works.

    router: None leaves it to the engine. tools: those told of in the prompt; allowed: those that
    may be called. strict: as in `Ask`.
    """

    prompt: tuple[int, ...]
    format: CallFormat
    sampling: SamplingConfig
    router: RouterConfig | None
    stops: tuple[str, ...] = ()
    grammar: str | None = None
    allowed: tuple[Tool, ...] = ()
    tools: tuple[Tool, ...] = ()
    reasoning: bool = False
    document: bool = False
    strict: bool | None = None


@dataclass(frozen=True, slots=True)
class Wish:
    """One call as it was made, checked as far as it can be without a model.

    The fields that `Request` has too mean the same. variables: of the chat template.
    """

    turns: tuple[TemplateMessage, ...]
    sampling: SamplingConfig
    router: RouterConfig | None
    stops: tuple[str, ...]
    tools: tuple[Tool, ...]
    allowed: tuple[Tool, ...]
    mode: ToolMode
    parallel: bool
    strict: bool | None
    constrained: bool
    final: Mapping[str, object] | None
    variables: Values

    @classmethod
    def of(
        cls,
        messages: Sequence[BaseMessage],
        given: Mapping[str, object],
        own: Values,
        stops: Sequence[object],
    ) -> Wish:
        """given: of the call. own: the model's values, for what the call leaves out or None; no
        router among them leaves routing to the engine. stops: of the model and of the call."""
        turns = to_template(messages)
        _refuse_unknown(given, own)
        values = {**own, **{k: v for k, v in given.items() if k in own and v is not None}}
        constrain = constraining(values.get("constrain"))
        tools = offered(given.get("tools"))
        mode, allowed = resolve(tools, cast("ToolChoice", given.get("tool_choice")))
        final = response_schema(given.get("response_format"))
        parallel, strict = _switch(given, "parallel_tool_calls"), _strict(given, constrain)
        promises = {
            "a forced tool_choice": mode == "required",
            "a response_format": final is not None,
            "parallel_tool_calls=False": parallel is False,
            "strict=True": strict is True or any(map(is_strict, allowed)),
        }
        asked = [name for name, wanted in promises.items() if wanted]
        if constrain == "never" and asked:
            why = f"{' and '.join(asked)} can only be kept to by a grammar"
            raise ConfigError("constrain", constrain, why)
        return cls(
            turns=tuple(turns if final is None else with_schema(turns, final)),
            sampling=sampling_config(values),
            router=router_config(values) if "router" in values else None,
            stops=stop_strings(*stops),
            tools=() if mode == "none" else tools,
            allowed=tuple(allowed),
            mode=mode,
            parallel=parallel is not False,
            strict=strict,
            constrained=constrain != "never" and (bool(tools) or final is not None),
            final=final,
            variables=template_variables(values.get("chat_template_kwargs")),
        )

    def request(self, engine: TokenEngine, prompter: Prompter) -> Request:
        prompt = prompter.encode(self.turns, self.tools, self.variables)
        room = engine.context_length - len(prompt)
        if room < 1:
            raise PromptTooLongError(len(prompt), engine.context_length)
        reasoning = prompter.opens_reasoning(prompt)
        ask = Ask(
            tools=self.allowed, mode=self.mode, parallel=self.parallel, reasoning=reasoning,
            strict=self.strict, final=self.final, tokens=prompter.tokens,
        )  # fmt: skip
        return Request(
            prompt=tuple(prompt),
            format=prompter.format,
            sampling=replace(self.sampling, max_tokens=min(self.sampling.max_tokens, room)),
            router=self.router,
            stops=self.stops,
            grammar=prompter.format.grammar(ask) if self.constrained else None,
            allowed=self.allowed,
            tools=self.tools,
            reasoning=reasoning,
            document=self.final is not None,
            strict=self.strict,
        )


def constraining(given: object) -> Constrain:
    if given not in get_args(Constrain):
        raise ConfigError("constrain", given, f"must be one of {', '.join(get_args(Constrain))}")
    return cast("Constrain", given)


def offered(tools: object) -> tuple[Tool, ...]:
    """The tools of a call, as `bind_tools` makes them, in values of JSON. ConfigError for
    anything else."""
    if tools is None:
        return ()
    if isinstance(tools, str | Mapping) or not isinstance(tools, Sequence):
        raise ConfigError("tools", tools, "must be a list")
    found: dict[str, Tool] = {}
    for i, given in enumerate(tools):
        tool = in_json(f"tools[{i}]", given)
        if not isinstance(tool, Mapping) or not name_of(tool):
            raise ConfigError(f"tools[{i}]", tool, "must be an object with a name, see bind_tools")
        parameters = function_of(tool).get("parameters", {})
        if not isinstance(parameters, Mapping):
            raise ConfigError(f"tools[{i}]", tool, "its parameters must be a JSON schema")
        kinds = parameters.get("type", "object")
        if "object" not in (kinds if isinstance(kinds, list) else [kinds]):
            why = "the arguments of a call are an object, of which its parameters are the schema"
            raise ConfigError(f"tools[{i}] parameters type", kinds, why)
        if not isinstance(function_of(tool).get("strict"), bool | None):
            raise ConfigError(f"tools[{i}]", tool, "its strict must be True or False")
        if name_of(tool) in found:
            raise ConfigError(f"tools[{i}]", name_of(tool), "another tool has this name")
        found[name_of(tool)] = tool
    return tuple(found.values())


def _strict(given: Mapping[str, object], constrain: Constrain) -> bool | None:
    """As `Ask` has it: of the call, or else of its response_format, where only False says
    anything new."""
    asked = _switch(given, "strict")
    if asked is None and let_pass(given.get("response_format")):
        asked = False
    return True if constrain == "always" else asked


def _switch(given: Mapping[str, object], name: str) -> bool | None:
    value = given.get(name)
    if value is None or isinstance(value, bool):
        return value
    raise ConfigError(name, value, "must be True or False")


def _refuse_unknown(given: Mapping[str, object], own: Values) -> None:
    for name, value in given.items():
        if name == "model" and value in (None, own.get("model")):
            continue
        if name not in _PER_CALL and value is not None:
            raise ConfigError(name, value, "cannot be set per call")
