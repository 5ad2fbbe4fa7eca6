"""What a chat model may be told, and how it says that it does not know a word."""

from __future__ import annotations

import re
from typing import Any

import pytest
from pydantic import ValidationError

from tests.test_chat import chat_of
from whiflash_adapters.chat import ChatWhiFlash
from whiflash_adapters.sharing import LOADING
from whiflash_engine.errors import ConfigError


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"temprature": 1.0}, r"temprature=1\.0: .*temprature \(did you mean temperature\?\)"),
        ({"max_new_tokens": 5}, r"max_new_tokens=5: .*did you mean max_tokens"),
        ({"max_completion_tokens": 3}, r"max_completion_tokens=3: .*did you mean max_tokens"),
        ({"qwxz": 1}, r"qwxz=1: no such field: qwxz"),
        ({"tmperature": 1, "rooter": "ar"}, r"tmperature \(.*temperature\?\), rooter \(.*router"),
        ({"_slot": 1}, "_slot=1"),
        ({"model": "a", "model_name": "b"}, "model_name='b': .*model"),
    ],
)
def test_unknown_names_are_told_with_what_was_meant(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        ChatWhiFlash(**given)


def test_a_subclass_may_know_more() -> None:
    class Own(ChatWhiFlash):
        depth: int = 1

    assert Own(depth=2).depth == 2
    with pytest.raises(ValidationError, match=r"depht=2: .*did you mean depth"):
        Own(depht=2)  # type: ignore[call-arg]


def test_model_name_is_another_name_of_model() -> None:
    chat = ChatWhiFlash(model_name="a")  # type: ignore[call-arg]
    assert chat.model == "a" and chat._get_ls_params()["ls_model_name"] == "a"
    assert "model_name" not in chat.model_dump() and chat._identifying_params["model"] == "a"


def test_what_langchain_tells_every_chat_model_is_taken() -> None:
    told: dict[str, Any] = {
        "api_key": "x", "base_url": "x", "timeout": 60, "max_retries": 2, "streaming": True,
        "stream_usage": True, "cache": False, "callbacks": [], "name": "mine", "tags": ["x"],
        "output_version": "v1", "verbose": False, "disable_streaming": True,
    }  # fmt: skip
    chat = ChatWhiFlash(**told)
    assert chat.name == "mine" and chat.output_version == "v1"
    fields = {n: v for n, v in chat.__dict__.items() if n in ChatWhiFlash.model_fields}
    assert ChatWhiFlash(**fields)._identifying_params == chat._identifying_params


@pytest.mark.parametrize("empty", ["", " "])
@pytest.mark.parametrize("name", [*LOADING, "trace"])
def test_nothing_is_looked_for_at_an_empty_place(name: str, empty: str) -> None:
    given: dict[str, Any] = {name: empty}
    with pytest.raises(ValidationError, match=f"{name}='{empty}': is empty"):
        ChatWhiFlash(**given)


def test_top_logprobs_need_logprobs() -> None:
    with pytest.raises(ValidationError, match=r"top_logprobs=2: .*logprobs=True"):
        ChatWhiFlash(top_logprobs=2)
    chat, engine = chat_of("hello")
    wrongs: list[dict[str, Any]] = [{"top_logprobs": 2}, {"top_logprobs": 2, "logprobs": False}]
    for wrong in wrongs:
        with pytest.raises(ConfigError, match=r"top_logprobs=2: .*logprobs=True"):
            chat.invoke("hi", **wrong)
    with pytest.raises(ConfigError, match="top_logprobs=2"):
        chat.model_copy(update={"top_logprobs": 2}).invoke("hi")
    assert engine.prompts == []
    chat.invoke("hi", top_logprobs=2, logprobs=True)
    chat.invoke("hi", top_logprobs=0)
    told, _ = chat_of("hello", logprobs=True, top_logprobs=1)
    told.invoke("hi", top_logprobs=2)
    told.invoke("hi", logprobs=False)  # switches off all of it
    assert [s.logprobs for s in engine.samplings] == [2, None]


WHOLE = dict.fromkeys(("max_tokens", "top_k", "seed", "top_logprobs"), 5)
NUMBERS = dict.fromkeys(
    ("temperature", "top_p", "min_p", "repetition_penalty", "balance", "span_bias"), 0.5
)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        *((name, wrong) for name in WHOLE for wrong in ("5", 5.0, True, [5], -1)
          if (name, wrong) != ("seed", -1)),
        *((name, wrong) for name in NUMBERS for wrong in ("0.5", True, [0.5], -1)),
        *(("logprobs", wrong) for wrong in ("True", 1, 0)),
        *(("router", wrong) for wrong in ("fastest", 3, True)),
    ],
)  # fmt: skip
def test_a_value_is_taken_for_no_other_when_built_and_per_call(name: str, wrong: object) -> None:
    chat, engine = chat_of("hello")
    rest: dict[str, Any] = {"logprobs": True} if name == "top_logprobs" else {}
    given: dict[str, Any] = {**rest, name: wrong}
    told = rf"{name}={re.escape(repr(wrong))}: must"
    with pytest.raises(ValidationError, match=told):
        ChatWhiFlash(**given)
    with pytest.raises(ConfigError, match=told):
        chat.invoke("hi", **given)
    assert engine.prompts == []
    right: dict[str, Any] = {**WHOLE, **NUMBERS}
    if name in right:
        chat.invoke("hi", **rest, **{name: right[name]})
        ChatWhiFlash(**rest, **{name: right[name]})
