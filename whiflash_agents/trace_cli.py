"""`whiflash-agents trace`: one answer as a page that shows who drafted what."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

from whiflash_engine.config import RouterName

QUESTION = "Write a short JSON object that describes a cat, then explain each of its keys."


def add_trace_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    trace = subparsers.add_parser("trace", help="a page that shows who drafted what")
    trace.add_argument("question", nargs="?", default=QUESTION)
    trace.add_argument("--output", type=Path, default=Path("trace.html"), help="file of the page")
    trace.add_argument("--model", help="folder, GGUF file or hub id; default: the embedded one")
    trace.add_argument("--router", choices=get_args(RouterName), default="auto")
    trace.add_argument("--max-tokens", type=int, default=200)
    trace.set_defaults(run=_trace)


def _trace(args: argparse.Namespace) -> int:
    from whiflash_adapters.chat import ChatWhiFlash

    chat = ChatWhiFlash(
        model=args.model, router=args.router, max_tokens=args.max_tokens, trace=args.output
    )
    print(chat.invoke(args.question).text)
    print(f"\n{args.output}")
    return 0
