"""An answer as it is written, what it cost, and one that is broken off."""

from __future__ import annotations

import asyncio

from langchain_core.messages import AIMessageChunk

from whiflash_agents import ChatWhiFlash


async def whole(chat: ChatWhiFlash) -> None:
    message: AIMessageChunk | None = None
    async for chunk in chat.astream("Write three sentences about the sea."):
        print(chunk.text, end="", flush=True)
        message = chunk if message is None else message + chunk
    assert message is not None
    figures = message.response_metadata["whiflash"]
    print(f"\n\n{figures['tokens_per_second']:.1f} tokens/s")
    for arm, part in figures["arms"].items():
        print(f"{arm}: {part['rounds']} rounds, {part['acceptance_length']:.2f} tokens each")


async def broken_off(chat: ChatWhiFlash, seconds: float) -> None:
    async def read() -> None:
        async for chunk in chat.astream("Count from one to one thousand."):
            print(chunk.text, end="", flush=True)

    try:
        await asyncio.wait_for(read(), seconds)
    except TimeoutError:
        print(" ... enough. The engine is free again.")


async def main() -> None:
    chat = ChatWhiFlash(max_tokens=120)
    await whole(chat)
    await broken_off(chat, 1.0)


if __name__ == "__main__":
    asyncio.run(main())
