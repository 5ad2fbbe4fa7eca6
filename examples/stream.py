"""An answer as it is written, then what it cost."""

from __future__ import annotations

from langchain_core.messages import AIMessageChunk

from whiflash_agents import ChatWhiFlash


def main() -> None:
    chat = ChatWhiFlash(temperature=0.0, max_tokens=120)
    whole: AIMessageChunk | None = None
    for chunk in chat.stream("Write three sentences about the sea."):
        print(chunk.text, end="", flush=True)
        whole = chunk if whole is None else whole + chunk
    assert whole is not None
    figures = whole.response_metadata["whiflash"]
    print(f"\n\n{figures['tokens_per_second']:.1f} tokens/s")
    for arm, part in figures["arms"].items():
        print(f"{arm}: {part['rounds']} rounds, {part['acceptance_length']:.2f} tokens each")


if __name__ == "__main__":
    main()
