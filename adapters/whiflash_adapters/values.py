"""The values that a chat model takes when it is built and again per call, and their types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from whiflash_engine.config import RouterConfig, SamplingConfig
from whiflash_engine.errors import ConfigError

Values = Mapping[str, object]

SAMPLING = (
    "max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed",
    "logprobs", "top_logprobs",
)  # fmt: skip
ROUTING = ("router", "balance", "span_bias")
_KINDS: Mapping[str, tuple[type | tuple[type, ...], str]] = {
    **dict.fromkeys(("max_tokens", "top_k", "seed", "top_logprobs"), (int, "a whole number")),
    "logprobs": (bool, "True or False"),
    **dict.fromkeys(
        ("temperature", "top_p", "min_p", "repetition_penalty", "balance", "span_bias"),
        ((int, float), "a number"),
    ),
    "router": (str, "a name"),
}


def check_types(values: Values) -> None:
    """ConfigError for the first of our values that has the wrong type.

    The configurations check ranges only, which would end in a TypeError. The same words when
    a model is built and per call, and "5" is taken for 5 at neither.
    """
    for name, (kind, said) in _KINDS.items():
        if name not in values:
            continue
        value = values[name]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise ConfigError(name, value, f"must be {said}")


def sampling_config(values: Values) -> SamplingConfig:
    check_types(values)  # in a way that mypy cannot follow
    plain = {name: values[name] for name in SAMPLING if "logprobs" not in name}
    top = values["top_logprobs"] if values["logprobs"] else None
    return SamplingConfig(**plain, logprobs=top)  # type: ignore[arg-type]


def router_config(values: Values) -> RouterConfig:
    check_types(values)
    rest = {name: values[name] for name in ("balance", "span_bias", "seed")}
    return RouterConfig(name=values["router"], **rest)  # type: ignore[arg-type]


def template_variables(given: object) -> Values:
    """What is told to the chat template beside messages and tools."""
    if given is None:
        return {}
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise ConfigError("chat_template_kwargs", given, "must be an object with names")
    return given


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
