"""`whiflash-agents demo`: an agent with real tools, and what its drafters did for it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from itertools import islice
from typing import TYPE_CHECKING, get_args

from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from rich.console import Console
from rich.text import Text

from whiflash_adapters.chat import ChatWhiFlash
from whiflash_adapters.generation import Trace
from whiflash_adapters.ports import TokenEngine
from whiflash_adapters.stopwatch import Stopwatch
from whiflash_adapters.tool_loop import ToolLoop
from whiflash_agents.demo_tools import calculate, current_time, search_docs
from whiflash_agents.model_options import add_model_options, load_engine
from whiflash_agents.report import (
    Replay,
    arms_table,
    coloured,
    legend,
    pieces,
    printable,
    speed_lines,
)
from whiflash_engine.config import RouterConfig, RouterName, SamplingConfig
from whiflash_engine.events import Stats, tokens_of

if TYPE_CHECKING:
    from argparse import _SubParsersAction

QUESTIONS = (
    "What is 1234 * 56?",
    "What time is it in Tokyo?",
    "Look it up in the docs: which license does whiflash-agents have?",
)
STEPS = 4
DEMO_TOOLS = [tool(f, parse_docstring=True) for f in (current_time, calculate, search_docs)]
Message = AIMessage | ToolMessage


def add_demo_parser(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("demo", help="ask an agent with three local tools")
    parser.add_argument("question", nargs="*", help="your own questions; else three of ours")
    add_model_options(parser)
    parser.add_argument("--router", default="auto", choices=get_args(RouterName))
    parser.add_argument("--max-tokens", type=int, default=160, help="per answer (%(default)s)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0 when a tool really ran, or when the questions were the user's."""
    console = Console()
    SamplingConfig(max_tokens=args.max_tokens)  # says what is wrong before a model is loaded
    with console.status("Loading the model ..."):
        engine = load_engine(
            args, router=args.router, report=lambda said: console.print(Text(printable(said)))
        )
    return demo(
        engine,
        args.question or QUESTIONS,
        router=args.router,
        max_tokens=args.max_tokens,
        console=console,
        own=bool(args.question),
        dtype=engine.target.precision,
    )


def demo(
    engine: TokenEngine,
    questions: Sequence[str],
    *,
    router: RouterName,
    max_tokens: int,
    console: Console,
    own: bool,
    dtype: str,
    loop: Callable[[ChatWhiFlash, str], Iterator[Message]] | None = None,
) -> int:
    traces: list[Trace] = []
    chat = ChatWhiFlash(engine=engine, router=router, max_tokens=max_tokens, on_trace=traces.append)
    replays: list[Replay] = []
    tools_ran = 0
    for question in questions:
        console.print(_labelled("Question", question, "bold"))
        first = len(traces)
        for message in (loop or agent_loop())(chat, question):
            if isinstance(message, ToolMessage):
                tools_ran += message.status != "error" and not message.text.startswith("Error")
                console.print(_labelled("Result", message.text))
            else:
                _print_answer(console, engine, traces[-1], message)
        # Interleaved, so that both ways of decoding see the same state of the machine.
        replays += [_replayed(engine, trace) for trace in traces[first:]]
        console.print()
    console.print(Text("Colours: ") + legend(r.arm for trace in traces for r in trace.rounds))
    console.print(arms_table(replays))
    for line in speed_lines(replays, dtype):
        console.print(Text(line))
    if not tools_ran:
        console.print(Text("No tool was called successfully.", style="red"))
    return 0 if tools_ran or own else 1


def agent_loop() -> Callable[[ChatWhiFlash, str], Iterator[Message]]:
    """LangChain's agent where it is installed, else the same loop in langchain-core."""
    return _langchain_loop if find_spec("langchain") else _plain_loop


def _plain_loop(chat: ChatWhiFlash, question: str) -> Iterator[Message]:
    return ToolLoop(chat, DEMO_TOOLS, steps=STEPS).stream(question)


def _langchain_loop(chat: ChatWhiFlash, question: str) -> Iterator[Message]:
    from langchain.agents import create_agent
    from langgraph.errors import GraphRecursionError

    agent = create_agent(chat, list(DEMO_TOOLS))
    updates = agent.stream(
        {"messages": [HumanMessage(question)]},
        {"recursion_limit": 2 * STEPS},
        stream_mode="updates",
    )
    try:
        for update in updates:
            for node in update.values():
                yield from node["messages"]
    except GraphRecursionError:
        return  # the model went on calling tools; what it did is in the transcript


def _print_answer(console: Console, engine: TokenEngine, trace: Trace, message: AIMessage) -> None:
    label = "Model" if message.tool_calls or message.invalid_tool_calls else "Answer"
    console.print(_label(label) + coloured(pieces(engine, trace)))
    for call in message.tool_calls:
        arguments = ", ".join(
            f"{k}={json.dumps(v, ensure_ascii=False)}" for k, v in call["args"].items()
        )
        console.print(_labelled("Tool call", f"{call['name']}({arguments})", "yellow"))


def _replayed(engine: TokenEngine, trace: Trace) -> Replay:
    """The same prompt under the same grammar, for as many tokens, without drafts."""
    request = trace.request
    tokens = tokens_of(trace.rounds)
    # max_tokens stays what it was: a grammar brings its document to an end before that
    plain = engine.generate(
        request.prompt,
        sampling=request.sampling,
        constraint=None
        if request.grammar is None
        else engine.grammar(request.grammar, request.format.signposts),
        router=RouterConfig("plain"),
    )
    watch = Stopwatch()
    rounds = list(islice(watch.timed(plain), len(tokens)))  # a token each
    stats = Stats.of(
        rounds, prompt_tokens=len(request.prompt), seconds=watch.seconds,
        time_to_first_token=watch.first,
    )  # fmt: skip
    return Replay(trace.stats, stats, tokens_of(rounds) == tokens)


def _labelled(label: str, text: str, style: str = "") -> Text:
    return _label(label) + Text(printable(text), style=style)


def _label(label: str) -> Text:
    return Text(f"{label:<10}", style="dim")
