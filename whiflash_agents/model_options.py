"""Options of the commands that load a model: which one, which drafters, where it runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from whiflash_engine.config import RouterName
    from whiflash_engine.engine import Engine


def say(text: str) -> None:
    """Progress goes to stderr: the last line of stdout is the result."""
    print(text, file=sys.stderr, flush=True)


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """What `load_engine` goes by."""
    parser.add_argument("--model", help="folder, GGUF file or hub id; default: the embedded model")
    add_drafter_options(parser)
    add_device_options(parser)


def add_device_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device", help='"cpu", "cuda" or "cuda:N"; default: a GPU if there is one'
    )
    parser.add_argument(
        "--dtype",
        help='"bfloat16", "float32" or "int8" (CPUs: fast, a little rounded); '
        "default: bfloat16 where that is fast, else float32",
    )


def add_drafter_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ar-drafter", help="folder or hub id of an EAGLE-3 checkpoint")
    parser.add_argument("--diffusion-drafter", help="folder or hub id of a DFlash checkpoint")


def load_engine(
    args: argparse.Namespace,
    *,
    router: RouterName = "auto",
    dtype: str | None = None,
    report: Callable[[str], None] = say,
) -> Engine:
    """dtype: where the command's user says nothing of it."""
    from whiflash_engine.engine import Engine  # torch: only when a model is really used

    return Engine.load(
        args.model, ar_drafter=args.ar_drafter, diffusion_drafter=args.diffusion_drafter,
        router=router, device=args.device, dtype=args.dtype or dtype, report=report,
    )  # fmt: skip
