"""One answer: rounds of tokens in, LangChain chunks out."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from langchain_core.messages import AIMessageChunk
from langchain_core.messages.ai import InputTokenDetails, OutputTokenDetails, UsageMetadata

from whiflash_adapters.chunks import PROVIDER, Chunks
from whiflash_adapters.figures import as_data
from whiflash_adapters.formats.events import Event, TextPiece
from whiflash_adapters.logprobs import as_logprobs
from whiflash_adapters.ports import TokenEngine
from whiflash_adapters.refusals import compiled
from whiflash_adapters.request import Request
from whiflash_adapters.stopwatch import Stopwatch
from whiflash_adapters.text import Detokenizer, StopGuard
from whiflash_engine.events import Round, Stats


@dataclass(frozen=True, slots=True)
class Trace:
    """One answer as the engine saw it; enough to tell of it and to run it again."""

    request: Request
    rounds: tuple[Round, ...]
    stats: Stats


class Answer:
    """Iterate once over the chunks; afterwards `trace` is there. An answer that is cancelled
    breaks off and has none."""

    def __init__(
        self, engine: TokenEngine, request: Request, cancelled: threading.Event | None = None
    ) -> None:
        self._engine, self._request, self._cancelled = engine, request, cancelled
        self._rounds: list[Round] = []
        self._chunks = Chunks()
        self.trace: Trace | None = None

    def chunks(self) -> Iterator[AIMessageChunk]:
        request = self._request
        text = Detokenizer(self._engine.tokenizer, request.format.markers)
        guard = StopGuard(request.stops)
        parser = request.format.parser(
            request.tools, reasoning=request.reasoning, document=request.document
        )
        watch = Stopwatch()
        for round_ in watch.timed(self._generated()):
            self._rounds.append(round_)
            yield from self._chunks.of(_cut(parser.feed(text.feed(round_.tokens)), guard))
            if guard.hit:  # the engine may be left between any two rounds
                break
        if self._cancelled is not None and self._cancelled.is_set():
            return
        if not guard.hit:
            rest = [*parser.feed(text.finish()), *parser.finish()]
            yield from self._chunks.of(_cut(rest, guard, last=True))
        self.trace = Trace(
            request,
            tuple(self._rounds),
            Stats.of(
                self._rounds,
                prompt_tokens=len(request.prompt),
                seconds=watch.seconds,
                time_to_first_token=watch.first,
            ),
        )
        yield self._last(guard.hit, self.trace.stats)

    def _generated(self) -> Iterator[Round]:
        # A generator, so that compiling the grammar is part of the first token's time.
        request = self._request
        constraint = None
        if request.grammar is not None:
            constraint = compiled(self._engine, request.grammar, request)
        yield from self._engine.generate(
            request.prompt,
            sampling=request.sampling,
            constraint=constraint,
            router=request.router,
            span="reasoning" if request.reasoning else "text",
            cancelled=self._cancelled,
        )

    def _last(self, stop: str, stats: Stats) -> AIMessageChunk:
        usage = UsageMetadata(
            input_tokens=stats.prompt_tokens,
            output_tokens=stats.tokens,
            total_tokens=stats.prompt_tokens + stats.tokens,
            input_token_details=InputTokenDetails(cache_read=stats.cached),
            output_token_details=OutputTokenDetails(reasoning=self._thought_tokens()),
        )
        reason = "stop"
        if not stop and self._rounds and self._rounds[-1].finish_reason == "length":
            reason = "length"
        elif self._chunks.calls:
            reason = "tool_calls"
        metadata: dict[str, object] = {
            "model_name": self._engine.model_name,
            "model_provider": PROVIDER,
            "finish_reason": reason,
            "whiflash": as_data(stats),
        }
        if stop:
            metadata["stop_sequence"] = stop
        if self._request.sampling.logprobs is not None:
            metadata["logprobs"] = as_logprobs(self._rounds, self._engine.tokenizer)
        return AIMessageChunk(
            content="",
            usage_metadata=usage,
            response_metadata=metadata,
            chunk_position="last",
        )

    def _thought_tokens(self) -> int:
        """Tokens of the reasoning, as the tokenizer would write it."""
        thought = self._chunks.thought
        if not thought:
            return 0
        return len(self._engine.tokenizer.encode(thought, add_special_tokens=False))


def _cut(events: Iterable[Event], guard: StopGuard, *, last: bool = False) -> Iterator[Event]:
    """The events up to the first stop string. It stands in the text: one that stands in a call
    is a part of the call, and one in the reasoning is not meant. last: none follow."""
    for event in events:
        if guard.hit:
            return
        said = guard.feed(event.text) if isinstance(event, TextPiece) else guard.finish()
        if said:
            yield TextPiece(said)
        if not isinstance(event, TextPiece):
            yield event
    if last and (said := guard.finish()):
        yield TextPiece(said)
