"""What a format's parser reads, as LangChain's chunks."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator

from langchain_core.messages import AIMessageChunk
from langchain_core.messages.tool import tool_call_chunk

from whiflash_adapters.formats.events import (
    CallArgs,
    CallBroken,
    CallEnd,
    CallStart,
    Event,
    ReasoningPiece,
    TextPiece,
)

PROVIDER = "whiflash"


class Chunks:
    """Of one answer. calls: those that are complete so far. thought: the reasoning so far.

    Text and calls never share a chunk, nor an index with one another: LangChain's content blocks
    would lose one of them.
    """

    def __init__(self) -> None:
        self.calls = 0
        self.thought = ""
        self._index = -1  # of the block being told: a stretch of text or reasoning, or a call
        self._kind: type[Event] | None = None

    def of(self, events: Iterable[Event]) -> Iterator[AIMessageChunk]:
        for event in events:
            if isinstance(event, CallStart) or (
                isinstance(event, TextPiece | ReasoningPiece) and type(event) is not self._kind
            ):
                self._index, self._kind = self._index + 1, type(event)
            if isinstance(event, TextPiece):
                yield _said(content=event.text)
            elif isinstance(event, ReasoningPiece):
                self.thought += event.text
                yield _said(additional_kwargs={"reasoning_content": event.text})
            elif isinstance(event, CallStart):
                yield self._call(event.name, f"call_{uuid.uuid4().hex}", "")
            elif isinstance(event, CallArgs | CallBroken):
                yield self._call(None, None, event.text)
            elif isinstance(event, CallEnd):
                self.calls += 1

    def _call(self, name: str | None, call_id: str | None, args: str) -> AIMessageChunk:
        return AIMessageChunk(
            content="",
            tool_call_chunks=[tool_call_chunk(name=name, args=args, id=call_id, index=self._index)],
            response_metadata={"model_provider": PROVIDER},
        )


def _said(content: str = "", additional_kwargs: dict[str, object] | None = None) -> AIMessageChunk:
    return AIMessageChunk(
        content=content,
        additional_kwargs=additional_kwargs or {},
        response_metadata={"model_provider": PROVIDER},
    )
