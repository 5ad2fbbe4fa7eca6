"""The values that a chat model takes when it is built and again per call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from whiflash_adapters.json_values import in_json
from whiflash_engine.config import RouterConfig, SamplingConfig, require
from whiflash_engine.errors import ConfigError

Values = Mapping[str, object]

SAMPLING = (
    "max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed",
    "logprobs", "top_logprobs",
)  # fmt: skip
ROUTING = ("router", "balance", "span_bias")
T = TypeVar("T", SamplingConfig, RouterConfig)


def sampling_config(values: Values) -> SamplingConfig:
    """ConfigError for the first value of a wrong type or range."""
    asked, top = values["logprobs"], values["top_logprobs"]
    require(isinstance(asked, bool), "logprobs", asked, "must be True or False")
    counts = isinstance(top, int) and not isinstance(top, bool) and top >= 0
    require(counts, "top_logprobs", top, "must be a whole number, 0 or more")
    plain = {name: values[name] for name in SAMPLING if "logprobs" not in name}
    return _checked(SamplingConfig, {**plain, "logprobs": top if asked else None})


def router_config(values: Values) -> RouterConfig:
    """The same for what routes."""
    rest = {name: values[name] for name in ("balance", "span_bias", "seed")}
    return _checked(RouterConfig, {"name": values["router"], **rest})


def _checked(config: Callable[..., T], values: Values) -> T:
    """A configuration checks the types of its values itself."""
    return config(**values)


def template_variables(given: object) -> Values:
    """What is told to the chat template beside messages and tools, in values of JSON."""
    if given is None:
        return {}
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise ConfigError("chat_template_kwargs", given, "must be an object with names")
    plain = in_json("chat_template_kwargs", given)
    assert isinstance(plain, dict)
    return plain


def stop_strings(of_model: object, of_call: object) -> tuple[str, ...]:
    """Those of the model and those of the call, each once."""
    stops: list[str] = []
    for given in (of_model, of_call):
        # One string is a sequence of strings too: it would stop at each of its letters.
        if isinstance(given, str) or not isinstance(given, Sequence | None):
            raise ConfigError("stop", given, "must be a list of strings")
        for stop in given or ():
            if not isinstance(stop, str):
                raise ConfigError("stop", given, "must be a list of strings")
            if not stop:
                raise ConfigError("stop", given, "an empty stop string would stop at once")
            stops.append(stop)
    return tuple(dict.fromkeys(stops))
