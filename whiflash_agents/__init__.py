"""whiflash-agents: a local engine for LLM agents, behind a LangChain chat model.

from whiflash_agents import ChatWhiFlash, Engine, ToolLoop, generate_structured
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from whiflash_adapters.chat import ChatWhiFlash
from whiflash_adapters.tool_loop import ToolLoop, Transcript, generate_structured

if TYPE_CHECKING:
    from whiflash_engine.engine import Engine

__all__ = ["ChatWhiFlash", "Engine", "ToolLoop", "Transcript", "generate_structured"]

if not TYPE_CHECKING:
    # `Engine` brings torch with it, which takes seconds; whoever imports only the chat model
    # should not wait for it. Type checkers see the import above and nothing of this.
    def __getattr__(name: str) -> type[Engine]:
        if name == "Engine":
            from whiflash_engine.engine import Engine

            return Engine
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
