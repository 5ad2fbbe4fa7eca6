"""The command line says one line when something of ours is wrong."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import pytest

from whiflash_agents.cli import build_parser, main


@pytest.mark.parametrize("command", ["demo", "train", "bench", "lossless"])
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    assert left.value.code == 0
    assert f"whiflash-agents {command}" in capsys.readouterr().out


def test_our_errors_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--max-tokens", "0"]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("whiflash-agents: max_tokens=0") and "\n" not in said


def test_a_model_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--model", "./no/such/folder", "hello"]) == 2
    assert "no/such/folder" in capsys.readouterr().err


def test_unknown_router_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["demo", "--router", "fastest"])
    assert left.value.code == 2 and "fastest" in capsys.readouterr().err


def test_a_command_is_needed() -> None:
    with pytest.raises(SystemExit):
        build_parser().parse_args([])


def test_the_version_is_told_before_torch_is_loaded() -> None:
    program = """
import sys
from whiflash_agents.cli import main
try:
    main(["--version"])
finally:
    assert "torch" not in sys.modules
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True
    )
    assert ran.stdout == f"whiflash-agents {version('whiflash-agents')}\n"
