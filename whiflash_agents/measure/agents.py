"""What agents gain: turns whose beginning is not run again, and tokens that a grammar forces.

Both are measured against the same engine without the one thing, in turns, in one process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import TYPE_CHECKING, TypedDict

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from torch import Tensor

from whiflash_adapters.chat import ChatWhiFlash
from whiflash_agents.demo_tools import calculate, current_time, search_docs
from whiflash_agents.measure.prompts import Prompt
from whiflash_agents.measure.start import PromptStart
from whiflash_engine.config import RouterConfig
from whiflash_engine.constraint import Constraint
from whiflash_engine.engine import REUSE_BYTES, Engine
from whiflash_engine.errors import ConstraintError
from whiflash_engine.events import Round, Seconds, tokens_of

if TYPE_CHECKING:
    from langchain_core.runnables import Runnable

QUESTIONS = (
    "What is 17 times 23?",
    "And what is that plus 1000?",
    "What time is it in Tokyo?",
    "What is 15% of 2400?",
    "What does the documentation say about the router?",
    "Multiply 12 by 12.",
)


_TOOLS = {one.__name__: tool(one) for one in (calculate, current_time, search_docs)}


class Turn(TypedDict):
    """Seconds to the first token, medians over the repeats."""

    prompt: int
    cached: int
    kept: float
    run_again: float
    equal: bool


def measure_turns(engine: Engine, repeats: int, report: Callable[[str], None]) -> list[Turn]:
    """An agent conversation of six turns, with the sequences of earlier turns kept and without.

    The history is the same for both: each turn is answered by both, the answer of the one that
    keeps nothing goes on, and a call is answered by its tool.
    """
    seen: dict[int, list[Turn]] = {}
    for repeat in range(repeats):
        kept, again = (_bound(engine, reuse_bytes) for reuse_bytes in (REUSE_BYTES, 0))
        messages: list[BaseMessage] = []
        for number, question in enumerate(QUESTIONS, 1):
            messages.append(HumanMessage(question))
            pair = (kept, again) if (repeat + number) % 2 else (again, kept)
            answers = {id(model): model.invoke(messages) for model in pair}
            one, other = answers[id(kept)], answers[id(again)]
            seen.setdefault(number, []).append(_turn(one, other))
            messages += [other, *_results(other)]
        report(f"turns: {repeat + 1}/{repeats}")
    return [_middle(turns) for _, turns in sorted(seen.items())]


def _bound(engine: Engine, reuse_bytes: int) -> Runnable[list[BaseMessage], AIMessage]:
    """The same networks in an engine of their own, with one arm, so that nothing else differs."""
    own = Engine(
        engine.target, engine.drafters, engine.tokenizer, model_name=engine.model_name,
        stop_token_ids=engine.stop_token_ids, reuse_bytes=reuse_bytes,
    )  # fmt: skip
    own.grammar("start: /a/")  # whose first takes a second
    chat = ChatWhiFlash(engine=own, router="ar", max_tokens=48)
    return chat.bind_tools(list(_TOOLS.values()))


def _results(answer: AIMessage) -> Iterator[ToolMessage]:
    for call in answer.tool_calls:
        yield _TOOLS[call["name"]].invoke({**call, "type": "tool_call"})


def _turn(kept: AIMessage, again: AIMessage) -> Turn:
    told = [message.response_metadata["whiflash"] for message in (kept, again)]
    usage = kept.usage_metadata
    assert usage is not None
    first = [float(one["time_to_first_token"]) for one in told]
    said = [(m.content, [(c["name"], c["args"]) for c in m.tool_calls]) for m in (kept, again)]
    return {
        "prompt": usage["input_tokens"], "cached": int(told[0]["cached_tokens"]),
        "kept": first[0], "run_again": first[1], "equal": said[0] == said[1],
    }  # fmt: skip


def _middle(turns: Sequence[Turn]) -> Turn:
    return {
        "prompt": turns[-1]["prompt"],
        "cached": turns[-1]["cached"],
        "kept": round(median(t["kept"] for t in turns), 3),
        "run_again": round(median(t["run_again"] for t in turns), 3),
        "equal": all(t["equal"] for t in turns),
    }


class Forced(TypedDict):
    """forced_share: of the tokens, those that cost no drafter. ratio: tokens a second against
    the same without them. mask_share: of the seconds, those spent on masks. What else a matcher
    does is booked where it happens: looking for forced tokens as offer, moving on as commit."""

    prompts: int
    tokens: int
    forced_share: float
    ratio: float
    mask_share: float
    equal: bool


def measure_forced(
    engine: Engine, prompts: Sequence[Prompt], tokens: int, report: Callable[[str], None]
) -> dict[str, Forced]:
    """Routed decoding under a grammar, with forced tokens drafted for free and without."""
    runs: dict[str, list[tuple[list[Round], list[Round]]]] = {}
    usable = [prompt for prompt in prompts if prompt.kind in ("tool", "json")]
    for number, prompt in enumerate(usable):
        try:
            start = PromptStart(engine, prompt, tokens)
            pair: dict[bool, list[Round]] = {}
            first = len(runs.get(prompt.kind, ())) % 2 == 0
            for free in (first, not first):
                sequence = start.rewound(grammar=True)
                if not free and sequence.constraint is not None:
                    sequence.constrain(Unforced(sequence.constraint))
                pair[free] = start.decoded(RouterConfig(), sequence)
        except ConstraintError:
            continue
        runs.setdefault(prompt.kind, []).append((pair[True], pair[False]))
        report(f"forced: {number + 1}/{len(usable)} {prompt.id}")
    return {kind: _forced(pairs) for kind, pairs in runs.items()}


def _forced(pairs: Sequence[tuple[list[Round], list[Round]]]) -> Forced:
    made = [sum(len(r.tokens) for pair in pairs for r in pair[i]) for i in (0, 1)]
    spent = [sum((r.seconds for pair in pairs for r in pair[i]), Seconds()) for i in (0, 1)]
    free = sum(min(r.forced, r.accepted) for with_, _ in pairs for r in with_)
    return {
        "prompts": len(pairs),
        "tokens": made[0],
        "forced_share": round(free / made[0], 3),
        "ratio": round((made[0] / spent[0].decoding) / (made[1] / spent[1].decoding), 3),
        "mask_share": round(spent[0].mask / spent[0].decoding, 4),
        "equal": all(tokens_of(one) == tokens_of(other) for one, other in pairs),
    }


class Unforced:
    """`Constraint` that never says what it forces."""

    def __init__(self, inner: Constraint) -> None:
        self._inner = inner

    @property
    def length(self) -> int:
        return self._inner.length

    @property
    def narrowed(self) -> bool:
        return self._inner.narrowed

    def close_by(self, total: int) -> None:
        self._inner.close_by(total)

    def masks(self, draft: Sequence[int]) -> tuple[int, Tensor]:
        return self._inner.masks(draft)

    def forced(self, limit: int) -> tuple[int, ...]:
        return ()

    def commit(self, tokens: Sequence[int]) -> None:
        self._inner.commit(tokens)

    def rollback(self, count: int) -> None:
        self._inner.rollback(count)
