"""`whiflash-agents trace`: one answer, coloured by who drafted it, here and as a page."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

from whiflash_agents.model_options import add_model_options, load_engine, say
from whiflash_agents.writable import require_writable, unwritable
from whiflash_engine.config import RouterName, SamplingConfig, require

QUESTION = "Write a short JSON object that describes a cat, then explain each of its keys."


def add_trace_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    trace = subparsers.add_parser("trace", help="a page that shows who drafted what")
    trace.add_argument("question", nargs="?", default=QUESTION)
    trace.add_argument("--output", type=Path, default=Path("trace.html"), help="file of the page")
    add_model_options(trace)
    trace.add_argument("--router", choices=get_args(RouterName), default="auto")
    trace.add_argument("--max-tokens", type=int, default=200)
    trace.set_defaults(run=_trace)


def _trace(args: argparse.Namespace) -> int:
    SamplingConfig(max_tokens=args.max_tokens)  # says what is wrong before a model is loaded
    folder = args.output.parent
    require(folder.is_dir(), "output", str(args.output), f"there is no folder {str(folder)!r}")
    require(not args.output.is_dir(), "output", str(args.output), "is a folder")
    require_writable("output", args.output)
    from rich.console import Console

    from whiflash_adapters.chat import ChatWhiFlash
    from whiflash_adapters.generation import Trace
    from whiflash_adapters.page import page
    from whiflash_agents.report import coloured, legend, pieces, strip

    told: list[Trace] = []
    engine = load_engine(args, router=args.router)
    chat = ChatWhiFlash(
        engine=engine, router=args.router, max_tokens=args.max_tokens, on_trace=told.append
    )
    chat.invoke(args.question)
    console, (trace,) = Console(), told
    console.print(coloured(pieces(engine, trace)))
    console.print()
    console.print(legend(r.arm for r in trace.rounds))
    console.print(strip(trace.rounds))
    console.print(
        f"{trace.stats.tokens} tokens in {trace.stats.rounds} rounds, "
        f"{trace.stats.acceptance_length:.2f} a round"
    )
    # here, not by the chat: it would only warn, and the page is what was asked for
    try:
        args.output.write_text(page(trace, engine.tokenizer), encoding="utf-8")
    except OSError as error:
        say(f"whiflash-agents: {unwritable('output', args.output, error)}")
        return 1
    console.print(f"Every round's figures: {args.output}", markup=False, soft_wrap=True)
    return 0
