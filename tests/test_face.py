"""What `whiflash_agents` offers, and that looking at it costs nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import whiflash_agents
from whiflash_adapters.chat import ChatWhiFlash

ROOT = Path(__file__).parent.parent


def test_everything_that_is_promised_is_there() -> None:
    from whiflash_engine.engine import Engine

    assert {"ChatWhiFlash", "Engine", "ToolLoop", "generate_structured"} <= {
        *whiflash_agents.__all__
    }
    assert all(hasattr(whiflash_agents, name) for name in whiflash_agents.__all__)
    assert whiflash_agents.ChatWhiFlash is ChatWhiFlash
    assert whiflash_agents.Engine is Engine


def test_nothing_else_is() -> None:
    with pytest.raises(AttributeError, match="Motor"):
        whiflash_agents.Motor  # type: ignore[attr-defined]  # noqa: B018


def test_looking_at_it_does_not_import_torch() -> None:
    code = (
        "from whiflash_agents import ChatWhiFlash; import whiflash_agents.demo;"
        "ChatWhiFlash().bind_tools([]);"
        "from whiflash_agents.cli import build_parser; build_parser().format_help()"
    )
    path = [str(ROOT), str(ROOT / "engine"), str(ROOT / "adapters")]
    code = f"import sys; sys.path[:0] = {path!r}; {code}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
