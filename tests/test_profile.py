"""What a chat model says of itself: its profile, and whose answers these are."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from langchain.agents.middleware import SummarizationMiddleware
from langchain_core.caches import InMemoryCache

from tests.fake_engine import FakeEngine
from tests.test_chat import chat_of
from whiflash_adapters.chat import ChatWhiFlash
from whiflash_engine.checkpoints.context import EMBEDDED, context_length
from whiflash_engine.checkpoints.resolve import resolve_model
from whiflash_engine.checkpoints.shipped import DEFAULT_NAME, UNTOUCHED_NAME
from whiflash_engine.engine import Engine


def folder_of(config: object, place: Path) -> Path:
    place.mkdir(exist_ok=True)
    (place / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return place


def test_summaries_at_a_fraction_need_no_loaded_model() -> None:
    SummarizationMiddleware(model=ChatWhiFlash(), trigger=("fraction", 0.5))


def test_the_embedded_models_context_is_known_before_it_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert {DEFAULT_NAME, UNTOUCHED_NAME} < {*EMBEDDED}
    assert {context_length(name) for name in (None, *EMBEDDED)} == {8192}


def test_to_ask_for_a_context_no_torch_is_needed() -> None:
    asked = "from whiflash_engine.checkpoints.context import context_length as c; c(None)"
    run = f"import sys; sys.path[:] = {sys.path!r}; {asked}; print('torch' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", run], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "False"


@pytest.mark.model
def test_the_embedded_models_context_is_what_its_own_config_says() -> None:
    for name in (DEFAULT_NAME, UNTOUCHED_NAME):
        assert context_length(resolve_model(name).path) == context_length(name)


def test_a_folders_context_is_in_its_config(tmp_path: Path) -> None:
    folder = folder_of({"max_position_embeddings": 512}, tmp_path / "a")
    assert context_length(folder) == context_length(str(folder)) == 512
    profile = ChatWhiFlash(model=folder).profile
    assert profile is not None and profile["max_input_tokens"] == 511


@pytest.mark.parametrize("config", [{}, [], {"max_position_embeddings": "many"}])
def test_a_context_that_is_not_told_is_unknown(config: object, tmp_path: Path) -> None:
    folder = folder_of(config, tmp_path / "a")
    assert context_length(folder) is None
    profile = ChatWhiFlash(model=folder).profile
    assert profile is not None and "max_input_tokens" not in profile


@pytest.mark.parametrize("model", ["./none", "a/b/c", "x.gguf", "no-org/no-model", "\0", "x" * 999])
def test_a_model_that_is_not_here_has_no_context_yet(model: str) -> None:
    assert context_length(model) is None


def test_a_hub_models_context_is_in_the_hubs_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder_of({"max_position_embeddings": 256}, tmp_path / "snapshot")
    config = str(tmp_path / "snapshot" / "config.json")
    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache",
        lambda repo, name: config if (repo, name) == ("org/name", "config.json") else None,
    )
    assert context_length("org/name") == 256
    assert context_length("org/other") is None


def test_a_copys_profile_is_its_own_models(tmp_path: Path) -> None:
    folder = folder_of({"max_position_embeddings": 512}, tmp_path / "a")
    chat = ChatWhiFlash()
    profile = chat.model_copy(update={"model": folder}).profile
    assert profile is not None and profile["max_input_tokens"] == 511
    assert chat.profile is not None and chat.profile["max_input_tokens"] == 8191
    stated = ChatWhiFlash(profile={"max_input_tokens": 100})
    assert stated.model_copy(update={"model": folder}).profile == {"max_input_tokens": 100}


def test_a_copy_is_known_by_its_own_model() -> None:
    chat = ChatWhiFlash(model="a")
    assert "model='a'" in str(chat._serialized)
    other = chat.model_copy(update={"model": "b"})
    assert other._identifying_params["model"] == other._get_ls_params()["ls_model_name"] == "b"
    assert "model='b'" in str(other._serialized)
    assert chat._get_llm_string() != other._get_llm_string()


def test_a_given_engine_is_the_name_whatever_else_is_stated() -> None:
    chat, _ = chat_of("hello", model="a")
    assert chat._identifying_params["model"] == chat._get_ls_params()["ls_model_name"] == "fake"
    assert chat._get_ls_params(model="asked")["ls_model_name"] == "asked"


def test_a_cached_answer_is_not_another_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Engine, "load", lambda *, model, **_: FakeEngine(f"I am {model}"))
    chat = ChatWhiFlash(model="a", cache=InMemoryCache())
    copied = chat.model_copy(update={"model": "b"})
    assert [c.invoke("hi").text for c in (chat, copied, chat)] == ["I am a", "I am b", "I am a"]
