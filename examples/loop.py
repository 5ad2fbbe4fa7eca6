"""Functions as tools, without any framework."""

from __future__ import annotations

from datetime import date

from whiflash_agents import ChatWhiFlash, ToolLoop


def days_between(start: str, end: str) -> int:
    """Count the days between two dates.

    Args:
        start: first date, YYYY-MM-DD
        end: last date, YYYY-MM-DD
    """
    return (date.fromisoformat(end) - date.fromisoformat(start)).days


def main() -> None:
    loop = ToolLoop(ChatWhiFlash(), [days_between], steps=4, timeout=5.0)
    done = loop.run("How many days are there between 2026-03-01 and 2026-12-24?")
    for message in done.messages:
        message.pretty_print()
    assert done.finished


if __name__ == "__main__":
    main()
