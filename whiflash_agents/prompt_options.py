"""Options of the commands that measure on prompts: whose, which, how many."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from whiflash_engine.config import require

if TYPE_CHECKING:
    from whiflash_agents.measure.prompts import Prompt


def add_prompt_options(parser: argparse.ArgumentParser, per_kind: int, tokens: int) -> None:
    """The model, its drafters, the prompts; with these defaults."""
    parser.add_argument("--model", help="folder, GGUF file or hub id; default: the embedded model")
    parser.add_argument("--ar-drafter", help="folder of an EAGLE-3 checkpoint")
    parser.add_argument("--diffusion-drafter", help="folder of a DFlash checkpoint")
    parser.add_argument("--data", type=Path, help="folder of prompts; default: the package's own")
    parser.add_argument("--ids", type=Path, help="file of prompt ids: take only these, in order")
    parser.add_argument("--per-kind", type=int, default=per_kind, help="prompts of each kind")
    parser.add_argument("--tokens", type=int, default=tokens, help="new tokens a prompt")


def chosen_rows(args: argparse.Namespace) -> list[Prompt]:
    """All that may be measured with; what is wrong is told before a model is loaded."""
    from whiflash_agents.measure.prompts import balanced, from_folder, named, shipped

    require(args.tokens > 0, "tokens", args.tokens, "must be at least 1")
    rows = shipped() if args.data is None else list(from_folder(args.data))
    if args.ids is not None:
        rows = named(rows, args.ids)
    balanced(rows, args.per_kind)
    return rows


def say(text: str) -> None:
    """Progress goes to stderr: the last line of stdout is the result."""
    print(text, file=sys.stderr, flush=True)
