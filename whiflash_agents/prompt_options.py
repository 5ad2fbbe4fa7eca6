"""Options of the commands that measure on prompts: whose, which, how many."""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import TYPE_CHECKING

from whiflash_agents.model_options import add_model_options
from whiflash_engine.config import require

if TYPE_CHECKING:
    from whiflash_agents.measure.prompts import Prompt


def add_prompt_options(parser: argparse.ArgumentParser, per_kind: int, tokens: int) -> None:
    """The model, its drafters, the prompts; with these defaults."""
    add_model_options(parser)
    parser.add_argument("--data", type=Path, help="folder of prompts; default: the package's own")
    parser.add_argument(
        "--ids", type=Path, help="file of prompt ids: take only these, in its order"
    )
    parser.add_argument(
        "--shuffle",
        type=int,
        metavar="SEED",
        help="take them in an order drawn by this: other ones, then",
    )
    parser.add_argument("--per-kind", type=int, default=per_kind, help="prompts of each kind")
    parser.add_argument("--tokens", type=int, default=tokens, help="new tokens a prompt")


def chosen_rows(args: argparse.Namespace) -> list[Prompt]:
    """All that may be measured with; what is wrong is told before a model is loaded."""
    from whiflash_agents.measure.prompts import balanced, from_folder, named, shipped

    require(args.tokens > 0, "tokens", args.tokens, "must be at least 1")
    rows = shipped() if args.data is None else list(from_folder(args.data))
    if args.ids is not None:
        rows = named(rows, args.ids)
    if args.shuffle is not None:
        rows = random.Random(args.shuffle).sample(rows, len(rows))
    balanced(rows, args.per_kind)
    return rows
