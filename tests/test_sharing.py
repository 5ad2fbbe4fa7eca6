"""Chat models that are made of the same share one engine; copies follow what they are made of."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from langchain_core import exceptions as core
from langchain_core.runnables import ConfigurableField

from tests.fake_engine import FakeEngine, byte_tokenizer
from tests.test_chat import chat_of
from whiflash_adapters.chat import ChatWhiFlash
from whiflash_adapters.generation import Trace
from whiflash_engine.engine import Engine
from whiflash_engine.errors import ConfigError, ModelNotFoundError

TOKENIZER = byte_tokenizer()


class Loads:
    """Stands in for `Engine.load`: what it was asked for, and engines of that name."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.engines: weakref.WeakSet[FakeEngine] = weakref.WeakSet()

    def __call__(self, **asked: Any) -> FakeEngine:
        self.asked.append(asked)
        if str(asked["model"]).startswith("/does/not"):
            raise ModelNotFoundError(f"no model {asked['model']!r}")
        engine = FakeEngine("hello", tokenizer=TOKENIZER)
        engine.model_name = str(asked["model"])
        self.engines.add(engine)
        return engine


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Loads:
    found = Loads()
    monkeypatch.setattr(Engine, "load", found)
    return found


def answered_by(chat: ChatWhiFlash) -> str:
    return str(chat.invoke("hi").response_metadata["model_name"])


def test_configurable_fields_load_once(loads: Loads) -> None:
    chat = ChatWhiFlash(model="a")
    warm = chat.configurable_fields(temperature=ConfigurableField(id="t"))
    for t in (0.1, 0.9):
        warm.with_config(configurable={"t": t}).invoke("hi")
    chat.invoke("hi")
    (engine,) = loads.engines
    assert len(loads.asked) == 1
    assert [s.temperature for s in engine.samplings] == [0.1, 0.9, 0.0]


@pytest.mark.parametrize(
    "other",
    [{"temperature": 0.5}, {"router": "plain"}, {"seed": 3}, {"tool_format": "llama3"}],
)
def test_what_holds_per_call_loads_nothing_anew(other: dict[str, Any], loads: Loads) -> None:
    one, two = ChatWhiFlash(model="a"), ChatWhiFlash(model=Path("a"), **other)
    for chat in (one, two, one.model_copy(update=other)):
        chat.invoke("hi")
    assert len(loads.asked) == 1


@pytest.mark.parametrize(
    "field",
    ["model", "ar_drafter", "diffusion_drafter", "neural_router", "statistics", "device", "dtype"],
)
def test_what_an_engine_is_loaded_from_tells_it_apart(field: str, loads: Loads) -> None:
    update: dict[str, Any] = {field: "x"}
    one = ChatWhiFlash()
    others = [ChatWhiFlash(**update), one.model_copy(update=update)]
    for chat in (one, *others):
        chat.invoke("hi")
    assert [asked[field] for asked in loads.asked] == [None, "x"]


def test_a_copy_of_another_model_answers_from_it_or_not_at_all(loads: Loads) -> None:
    chat = ChatWhiFlash(model="a")
    assert answered_by(chat) == "a"
    other = chat.model_copy(update={"model": "b"})
    assert (answered_by(other), answered_by(chat)) == ("b", "a")
    with pytest.raises(core.ModelNotFoundError, match="/does/not/exist"):
        chat.model_copy(update={"model": "/does/not/exist"}).invoke("hi")
    chat.model = "b"
    assert answered_by(chat) == "b" and len(loads.asked) == 3


def test_a_copy_of_another_model_holds_its_engine_for_others(loads: Loads) -> None:
    other = ChatWhiFlash(model="a").model_copy(update={"model": "b"})
    warm = other.configurable_fields(temperature=ConfigurableField(id="t"))
    for t in (0.1, 0.9):
        warm.with_config(configurable={"t": t}).invoke("hi")
    assert [asked["model"] for asked in loads.asked] == ["b"]


def test_an_engine_goes_with_the_last_model_that_is_made_of_it(loads: Loads) -> None:
    one, two = ChatWhiFlash(model="a"), ChatWhiFlash(model="a")
    one.invoke("hi")
    del one
    gc.collect()
    assert len(loads.engines) == 1
    two.invoke("hi")
    assert len(loads.asked) == 1
    del two
    gc.collect()
    assert not loads.engines


def test_threads_that_ask_at_once_load_once(loads: Loads) -> None:
    together = threading.Barrier(4)

    def ask(_: int) -> ChatWhiFlash:
        together.wait()
        chat = ChatWhiFlash(model="a")
        together.wait()
        chat.invoke("hi")
        return chat

    with ThreadPoolExecutor(4) as pool:
        assert len(list(pool.map(ask, range(4)))) == 4
    assert len(loads.asked) == 1


def test_loading_that_failed_is_tried_again(loads: Loads, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**_: object) -> FakeEngine:
        raise ModelNotFoundError("no network")

    chat = ChatWhiFlash(model="a")
    with monkeypatch.context() as patched:
        patched.setattr(Engine, "load", broken)
        with pytest.raises(core.ModelNotFoundError, match="no network"):
            chat.invoke("hi")
    assert answered_by(chat) == "a"


def test_a_given_engine_keeps_its_router_unless_another_is_stated() -> None:
    chat, engine = chat_of("hello")
    warm = chat.configurable_fields(temperature=ConfigurableField(id="t"))
    warm.with_config(configurable={"t": 0.1}).invoke("hi")
    chat.invoke("hi", router=None)
    chat.invoke("hi", router="plain")
    ChatWhiFlash(engine=engine, router="auto").invoke("hi")
    ChatWhiFlash(engine=engine, balance=0.5).invoke("hi")
    told = [None if r is None else (r.name, r.balance) for r in engine.routers]
    assert told == [None, None, ("plain", 1.0), ("auto", 1.0), ("auto", 0.5)]


@pytest.mark.parametrize(
    "copied",
    [
        copy.copy,
        copy.deepcopy,
        lambda chat: chat.model_copy(deep=True),
        lambda chat: chat.model_copy(update={"temperature": 0.5}, deep=True),
    ],
)
def test_copies_never_copy_an_engine(
    copied: Callable[[ChatWhiFlash], ChatWhiFlash], loads: Loads
) -> None:
    heard: list[Trace] = []
    given, engine = chat_of("hello", on_trace=heard.append, stop=["x"])
    again = copied(given)
    assert again.engine is engine and again.invoke("hi").text == "hello" and len(heard) == 1
    loaded = ChatWhiFlash(model="a")
    before = copied(loaded)
    for chat in (loaded, before, copied(loaded)):
        chat.invoke("hi")
    assert len(loads.asked) == 1


def test_a_deep_copy_shares_nothing_else() -> None:
    chat, _ = chat_of("hello", stop=["x"])
    deep = chat.model_copy(deep=True)
    assert deep.stop == ["x"] and deep.stop is not chat.stop


def test_a_pickled_model_loads_where_it_comes_back(loads: Loads, tmp_path: Path) -> None:
    chat = ChatWhiFlash(model="a", temperature=0.5, trace=tmp_path / "x.html")
    data = pickle.dumps(chat)
    chat.invoke("hi")
    assert len(pickle.dumps(chat)) < 10_000
    del chat
    gc.collect()
    back = pickle.loads(data)
    assert (back.model, back.temperature, back.trace) == ("a", 0.5, tmp_path / "x.html")
    assert not loads.engines
    assert answered_by(back.model_copy(update={"trace": None})) == "a" and len(loads.asked) == 2


def test_a_given_engine_is_not_pickled() -> None:
    chat, _ = chat_of("hello")
    with pytest.raises(ConfigError, match=r"engine='fake': .*pickle"):
        pickle.dumps(chat)
