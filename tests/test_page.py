"""The trace page: everything is there, and nothing in it can run."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.fake_engine import FakeEngine
from tests.test_chat import chat_of
from tests.toys_text import write_call
from whiflash_adapters.chat import ChatWhiFlash
from whiflash_adapters.generation import Trace

HOSTILE = """</span><script>alert(1)</script><img src=x onerror=alert(2)> "' --> é 👍🏽"""


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.tips: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        self.tips += [value or "" for name, value in attrs if name == "data-tip"]

    def handle_data(self, data: str) -> None:
        self.text += data


def read(path: Path) -> Reader:
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    return reader


def test_a_hostile_answer_stays_text(tmp_path: Path) -> None:
    path = tmp_path / "trace.html"
    ChatWhiFlash(engine=FakeEngine(HOSTILE, size=4), trace=path).invoke("hi")
    found = read(path)
    assert HOSTILE in found.text
    assert not {"script", "img", "link", "iframe"} & set(found.tags)
    assert found.attributes <= {
        "lang", "charset", "http-equiv", "content", "name", "class", "data-tip", "style",
    }  # fmt: skip
    assert "default-src 'none'" in path.read_text(encoding="utf-8")


def test_every_round_tells_its_figures(tmp_path: Path) -> None:
    path = tmp_path / "trace.html"
    call = write_call("search", {"query": "x"})
    engine = FakeEngine("one", call)
    chat = ChatWhiFlash(engine=engine, trace=path)
    chat.invoke("hi")
    chat.invoke("hi", tools=[{"name": "search"}])  # written over the first
    found = read(path)
    assert call in found.text and "one" not in found.text.split("Who drafted what")[1]
    rounds = {tip.split(":")[0] for tip in found.tips}
    assert len(rounds) == -(-(len(call) + 1) // 3)
    for word in ("drafted 2, accepted 2", "entropy 0.50 nats", "ms: prompt", "tool call"):
        assert any(word in tip for tip in found.tips)
    assert "AR (EAGLE-3)" in found.text and "diffusion (DFlash)" in found.text


def test_a_copy_takes_a_path_in_words(tmp_path: Path) -> None:
    path = tmp_path / "trace.html"
    chat, _ = chat_of("hello")
    assert chat.model_copy(update={"trace": str(path)}).invoke("hi").text == "hello"
    assert "hello" in read(path).text


def test_no_answer_is_lost_to_who_hears_of_it(tmp_path: Path) -> None:
    def deaf(_: Trace) -> None:
        raise KeyError("ears")

    path = tmp_path / "trace.html"
    chat, _ = chat_of("hello", on_trace=deaf, trace=path)
    with pytest.warns(UserWarning, match="on_trace=.*deaf.*KeyError: 'ears'"):
        assert chat.invoke("hi").text == "hello"
    assert "hello" in read(path).text
    wrong = chat.model_copy(update={"on_trace": None, "trace": 5})
    with pytest.warns(UserWarning, match="trace=5"):
        assert wrong.invoke("hi").text == "hello"
