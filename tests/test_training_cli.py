"""The training commands from argument list to files, on toy material."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tests.training_toys import TEMPLATE, toy_data, toy_model, toy_tokenizer
from whiflash_agents.train_cli import add_train_parser
from whiflash_engine.checkpoints.tensors import read_folder
from whiflash_engine.checkpoints.weights import load_config
from whiflash_engine.errors import ConfigError
from whiflash_engine.loading import load_drafters
from whiflash_engine.training.corpus_options import default_taps
from whiflash_engine.training.miniature import MiniatureOptions, train_miniature
from whiflash_engine.training.mixes import AdapterMix


def run(*arguments: str | Path) -> int:
    parser = argparse.ArgumentParser()
    add_train_parser(parser.add_subparsers(required=True))
    args = parser.parse_args(["train", *map(str, arguments)])
    return int(args.run(args))


def test_corpus_and_both_drafters(tmp_path: Path) -> None:
    vocab = toy_tokenizer(tmp_path / "model")
    toy_model(tmp_path / "model", vocab=vocab, layers=6)
    toy_data(tmp_path / "data")
    (tmp_path / "data" / "mixes" / "train_mix.ids").rename(tmp_path / "data" / "mixes" / "m.ids")
    mixes = tmp_path / "data" / "mixes"
    (mixes / "dev_mix.ids").write_text((mixes / "dev_mix.ids").read_text())
    corpus = (
        "corpus", "--model", tmp_path / "model", "--data", tmp_path / "data", "--output",
        tmp_path / "corpus", "--mix", "m", "--rows", "12", "--dev-rows", "8", "--max-new", "6",
        "--max-prompt", "200", "--composed", "0", "--taps", "1,3,5", "--slots", "4",
    )  # fmt: skip
    assert run(*corpus, "--part", "1,2") == 0
    assert not (tmp_path / "corpus" / "manifest.json").exists(), "the other part is missing"
    assert run(*corpus) == 0
    assert (tmp_path / "corpus" / "manifest.json").exists()
    for name in ("eagle3", "dflash"):
        assert run(
            name, "--model", tmp_path / "model", "--corpus", tmp_path / "corpus", "--run-dir",
            tmp_path / "run" / name, "--output", tmp_path / name, "--epochs", "1", "--batch", "4",
            "--draft-vocab", "200", "--float32",
        ) == 0  # fmt: skip
        with safe_open(tmp_path / name / "model.safetensors", "pt") as file:
            names = set(file.keys())
            assert {"fc.weight", "norm.weight", "d2t", "t2d"} <= names
            assert "lm_head.weight" not in names, "it is the target's own"
            assert list(file.get_tensor("d2t").shape) == [200]


def test_everything_in_miniature(tmp_path: Path) -> None:
    vocab = toy_tokenizer(tmp_path / "base")
    toy_model(tmp_path / "base", vocab=vocab, layers=6)
    toy_data(tmp_path / "data")
    (tmp_path / "template.jinja").write_text(TEMPLATE)
    options = MiniatureOptions(
        model=tmp_path / "base", data=tmp_path / "data", output=tmp_path / "out",
        template=tmp_path / "template.jinja", minutes=0.1, rows=12, corpus_mix="train_mix",
        mix=AdapterMix(gold={}, irrelevant=0, word_problems=0, sums=16, dates=0, searches=0,
                       documentation=0, plain=0), max_new=12, taps=(1, 3, 5), draft_vocab=200,
    )  # fmt: skip
    lines: list[str] = []
    train_miniature(options, lambda line: lines.append(str(dict(line))))
    tensors = read_folder(tmp_path / "base"), read_folder(tmp_path / "out" / "model")
    assert any(not torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])
    config = load_config(tmp_path / "out" / "model")
    loaded = load_drafters(config, tmp_path / "out" / "eagle3", tmp_path / "out" / "dflash")
    assert loaded.arms == ("ar", "diffusion")
    assert any("al" in line for line in lines)
    again = len(lines)
    train_miniature(options, lambda line: lines.append(str(dict(line))))
    assert len(lines) - again < again, "what was done is not done again"


@pytest.mark.parametrize("step", ["adapter", "router"])
def test_no_threads_are_too_few(step: str, tmp_path: Path) -> None:
    toy_tokenizer(tmp_path / "model")
    with pytest.raises(ConfigError, match=r"threads=0"):
        run(
            step, "--model", tmp_path / "model", "--data", tmp_path, "--run-dir", tmp_path / "run",
            "--output", tmp_path / "out", "--threads", "0",
        )  # fmt: skip


def test_taps_follow_the_number_of_layers() -> None:
    assert default_taps(30) == (2, 9, 15, 21, 27)
    assert default_taps(36) == (2, 10, 18, 26, 33)
    with pytest.raises(ConfigError, match="too few"):
        default_taps(6)
