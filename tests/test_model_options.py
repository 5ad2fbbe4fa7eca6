"""Every command that loads a model takes the same options for it, and loads what they say."""

from __future__ import annotations

import argparse
from typing import Any

import pytest

from whiflash_agents.cli import build_parser, main
from whiflash_agents.model_options import add_model_options, load_engine
from whiflash_engine.engine import Engine


@pytest.mark.parametrize(
    "command", ["demo", "trace", "bench", "lossless", "evaluate drafters", "evaluate agents"]
)
def test_every_command_takes_them(command: str) -> None:
    given = ["--model", "m", "--ar-drafter", "a", "--diffusion-drafter", "d"]
    where = ["--device", "cuda:1", "--dtype", "bfloat16"]
    args = build_parser().parse_args([*command.split(), *given, *where])
    assert (args.model, args.ar_drafter, args.diffusion_drafter) == ("m", "a", "d")
    assert (args.device, args.dtype) == ("cuda:1", "bfloat16")


@pytest.mark.parametrize(
    ("option", "said"),
    [(["--device", "cuda:99"], "device='cuda:99'"), (["--dtype", "int4"], "dtype='int4'")],
)
def test_what_cannot_be_computed_with_is_told(
    option: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "--per-kind", "1", *option]) == 2
    assert said in capsys.readouterr().err


def test_they_are_what_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[Any] = []
    monkeypatch.setattr(Engine, "load", lambda *given, **named: loaded.append((given, named)))
    parser = argparse.ArgumentParser()
    add_model_options(parser)
    load_engine(parser.parse_args([]))
    load_engine(parser.parse_args(["--model", "m", "--ar-drafter", "a"]), dtype="float32")
    told = parser.parse_args(["--device", "cpu", "--dtype", "bfloat16"])
    load_engine(told, dtype="float32")
    (none, usual), (one, named), (_, placed) = loaded
    assert none == (None,) and one == ("m",)
    assert usual["ar_drafter"] is usual["dtype"] is None
    assert (named["ar_drafter"], named["diffusion_drafter"]) == ("a", None)
    assert named["dtype"] == "float32" and named["device"] is None
    assert (placed["device"], placed["dtype"]) == ("cpu", "bfloat16")
