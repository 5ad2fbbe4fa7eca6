"""A corpus: the target's own responses and its features, on toy data."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import torch

from tests.training_toys import TAPS, toy_corpus, toy_data, toy_model, toy_tokenizer
from whiflash_engine.checkpoints.shipped import SMOLLM2_TOOLS
from whiflash_engine.errors import CheckpointError, ConfigError
from whiflash_engine.training.chat import HubTokenizer
from whiflash_engine.training.corpus import Corpus
from whiflash_engine.training.corpus_options import CorpusOptions
from whiflash_engine.training.corpus_prompts import corpus_prompts, kept_prompts, short_enough
from whiflash_engine.training.corpus_writer import write_corpus
from whiflash_engine.training.drafter_parts import make_batch
from whiflash_engine.training.generate import BatchGenerator, Job
from whiflash_engine.training.llama import load_llama
from whiflash_engine.training.rows import KINDS, PromptRow


def silent(_: Mapping[str, float | str]) -> None:
    pass


def test_a_prompt_that_is_too_long_keeps_the_tools_that_fit_the_request(tmp_path: Path) -> None:
    toy_tokenizer(tmp_path)
    tokenizer = HubTokenizer(tmp_path, SMOLLM2_TOOLS.template)
    tools = tuple(
        json.loads(json.dumps({"function": {"name": name, "description": "d" * 40}}))
        for name in ("get_weather", "book_flight", "play_music")
    )
    asked = ({"role": "user", "content": "Play some music"},)
    row = PromptRow("x-1", "tool", "s", json.loads(json.dumps(asked)), tools)
    whole = len(tokenizer.encode(tokenizer.render(row.messages, tools)))
    one = len(tokenizer.encode(tokenizer.render(row.messages, tools[2:])))
    kept = [short_enough(row, tokenizer, longest) for longest in (whole, whole - 1, one, one - 1)]
    assert [None if p is None else p.tools for p in kept] == [
        tools, (tools[0], tools[2]), tools[2:], None
    ]  # fmt: skip
    called = {
        "role": "assistant",
        "tool_calls": [{"function": {"name": "get_weather", "arguments": {}}}],
    }
    history = [*asked, called, {"role": "tool", "content": "music"}]
    later = replace(row, messages=tuple(json.loads(json.dumps(history))))
    most = len(tokenizer.encode(tokenizer.render(later.messages, tools[:1])))
    short = short_enough(later, tokenizer, most)
    assert short is not None and short.tools == tools[:1], "what was called stays on offer"
    assert short_enough(later, tokenizer, most - 1) is None
    bare = replace(row, tools=())
    assert short_enough(bare, tokenizer, 5) is None


def corpus_options(root: Path, seed: int = 0) -> CorpusOptions:
    if not (root / "model").exists():
        vocab = toy_tokenizer(root / "model")
        toy_model(root / "model", vocab=vocab)
        toy_data(root / "data")
    return CorpusOptions(
        model=root / "model", data=root / "data", output=root / f"corpus{seed}",
        mix="train_mix", dev_mix="dev_mix", rows=12, dev_rows=8, composed_tools=0.0,
        max_prompt=200, max_new=6, taps=TAPS, slots=4, chunk=5, seed=seed,
    )  # fmt: skip


def rows_of(folder: Path) -> str:
    return "".join(p.read_text() for p in sorted(folder.rglob("rows-*.jsonl")))


def test_the_same_seed_gives_the_same_corpus_also_when_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = corpus_options(tmp_path / "a")
    write_corpus(options, silent)
    again = corpus_options(tmp_path / "b")
    calls = 0

    def stop_at_second_chunk(_: Mapping[str, float | str]) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_corpus(again, stop_at_second_chunk)
    assert not (again.output / "manifest.json").exists()
    write_corpus(again, silent)
    assert rows_of(options.output) == rows_of(again.output)
    assert rows_of(options.output)
    other = corpus_options(tmp_path / "a", seed=1)
    write_corpus(other, silent)
    assert rows_of(options.output) != rows_of(other.output)
    kinds = {sample.kind for sample in Corpus(options.output, "train").samples}
    assert kinds == {"tool", "json", "reason", "chat"}


def test_half_of_the_json_rows_are_decoded_under_their_schema(tmp_path: Path) -> None:
    options = replace(corpus_options(tmp_path, seed=1), max_new=40, dev_rows=16, rows=16)
    write_corpus(options, silent)
    tokenizer = HubTokenizer(options.model)
    rows = [json.loads(line) for line in rows_of(options.output).splitlines()]
    told = [row for row in rows if row["grammar"]]
    assert told and {row["kind"] for row in told} <= {"json", "tool"}
    assert any(row["kind"] == "json" and not row["grammar"] for row in rows)
    for row in told:
        text = tokenizer.decode(row["response"])
        assert isinstance(json.loads(text.removesuffix(tokenizer.stop_text))["n"], bool)
        assert 0 in row["forced"], "an object begins with a brace"
        assert set(row["overruled"]) <= set(range(len(row["response"])))
    manifest = json.loads((options.output / "manifest.json").read_text())
    assert sorted(manifest["prompts"]["train"] + manifest["prompts"]["dev"]) == sorted(
        row["id"] for row in rows
    )
    assert manifest["counts"]["dev"].get("grammar_rows", 0) + manifest["counts"]["train"].get(
        "grammar_rows", 0
    ) == len(told)


def test_without_features_the_target_has_them_again(tmp_path: Path) -> None:
    options = corpus_options(tmp_path)
    write_corpus(options, silent)
    bare = replace(options, output=tmp_path / "bare", features=False)
    write_corpus(bare, silent)
    assert rows_of(bare.output) == rows_of(options.output)
    assert not list(bare.output.rglob("*.npy")) and list(options.output.rglob("*.npy"))
    with pytest.raises(CheckpointError, match=r"made otherwise is here .features."):
        write_corpus(replace(bare, features=True), silent)
    target = load_llama(options.model, torch.float32)
    kept, computed = Corpus(options.output, "train"), Corpus(bare.output, "train")
    batches = [
        make_batch(corpus, corpus.samples[:5], torch.float32, target) for corpus in (kept, computed)
    ]
    for row, end in enumerate(batches[0].positions):
        for name in ("taps", "last"):
            one, other = (getattr(batch, name)[row, :end] for batch in batches)
            torch.testing.assert_close(one, other, atol=2e-3, rtol=2e-3)  # kept in float16
    assert torch.equal(batches[0].ids, batches[1].ids)


def test_prompts_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = corpus_options(tmp_path)
    tokenizer = HubTokenizer(options.model)
    made = corpus_prompts(options, "train", options.mix, options.rows, tokenizer)
    assert kept_prompts(options.output / "train") == []
    write_corpus(replace(options, part=(0, 2)), silent)
    assert kept_prompts(options.output / "train") == made
    monkeypatch.setattr("whiflash_engine.training.corpus_writer.corpus_prompts", None)
    write_corpus(replace(options, part=(1, 2)), silent)
    assert (options.output / "manifest.json").exists()
    path = options.output / "dev" / "prompts.jsonl.gz"
    with gzip.open(path, "at") as stream:
        stream.write('{"id": 3}\n')
    with pytest.raises(CheckpointError, match=r"prompts.jsonl.gz:\d+: not a prompt"):
        kept_prompts(path.parent)
    whole = path.read_bytes()
    for broken in (whole[:40], whole[:30] + b"\xff" * 8 + whole[38:]):
        path.write_bytes(broken)
        with pytest.raises(CheckpointError, match="unreadable"):
            kept_prompts(path.parent)


def test_prompts_that_no_plan_vouches_for_are_made_anew(tmp_path: Path) -> None:
    options = corpus_options(tmp_path)
    write_corpus(replace(options, part=(1, 2)), silent)
    (options.output / "plan.json").unlink()
    other = replace(options, seed=1, max_prompt=150)
    write_corpus(replace(other, part=(1, 2)), silent)
    made = corpus_prompts(other, "train", other.mix, other.rows, HubTokenizer(other.model))
    assert kept_prompts(options.output / "train") == made


def test_a_corpus_from_before_features_were_a_choice_is_gone_on_with(tmp_path: Path) -> None:
    options = corpus_options(tmp_path)
    write_corpus(options, silent)
    path = options.output / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["features"]
    path.write_text(json.dumps(manifest))
    told: list[Mapping[str, float | str]] = []
    write_corpus(options, told.append)
    assert told == [{"corpus": "already complete"}]


@pytest.mark.parametrize("replies", [2, 3])
def test_several_replies_share_their_prompt(replies: int, tmp_path: Path) -> None:
    options = replace(corpus_options(tmp_path), replies=replies)
    write_corpus(options, silent)
    corpus = Corpus(options.output, "train")
    by_id = {sample.id: sample for sample in corpus.samples}
    first = {name: one for name, one in by_id.items() if "/" not in name}
    assert len(by_id) == replies * len(first) > 20
    asked = (options.output / "train" / "prompts.ids").read_text().split()
    assert sorted(asked) == sorted(first)
    assert not any("/" in sample.id for sample in Corpus(options.output, "dev").samples)
    for name, one in first.items():
        all_of_it = [one, *(by_id[f"{name}/{number}"] for number in range(1, replies))]
        heat = sorted(sample.temperature for sample in all_of_it)
        assert heat == [0.0] + [0.7] * (replies - 1)
        prompt = slice(len(one.prompt))
        for other in all_of_it:
            assert other.prompt == one.prompt
            assert torch.equal(corpus.features(one)[prompt], corpus.features(other)[prompt])
    # a reply is what it would be with the prompt to itself
    model = load_llama(options.model)
    generator = BatchGenerator(
        model, slots=1, length=206, seed=options.seed, taps=TAPS,
        stop_ids=frozenset({HubTokenizer(options.model).stop_id}),
    )  # fmt: skip
    free = [s for s in corpus.samples if s.kind == "chat"]
    jobs = [Job(s.id, s.prompt, options.max_new, s.temperature) for s in free]
    alone = {answer.job.key: answer.tokens for answer in generator.run(jobs)}
    assert alone == {sample.id: sample.response for sample in free}


def test_composed_prompts_need_room(tmp_path: Path) -> None:
    options = replace(corpus_options(tmp_path), composed_tools=0.5, max_prompt=20)
    with pytest.raises(ConfigError, match=r"max_prompt=20.*composed"):
        write_corpus(options, silent)
    with pytest.raises(ConfigError, match=r"composed_tools=1\.5"):
        replace(options, composed_tools=1.5)


def test_what_is_written_of_a_corpus_can_be_used_before_it_is_complete(tmp_path: Path) -> None:
    options = replace(corpus_options(tmp_path), part=(0, 2), dev_rows=4)
    write_corpus(options, silent)
    assert not (options.output / "manifest.json").exists()
    assert len(Corpus(options.output, "dev").samples) == 4
    assert 5 < len(Corpus(options.output, "train").samples) < 12


def test_every_part_writes_its_chunks_of_both_splits(tmp_path: Path) -> None:
    options = corpus_options(tmp_path)
    write_corpus(replace(options, part=(1, 2)), silent)  # no chunk of dev is this part's
    assert list((options.output / "train").glob("rows-*.jsonl"))
    write_corpus(replace(options, part=(0, 2)), silent)
    assert (options.output / "manifest.json").exists()


def test_a_full_disk_is_told_and_takes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = corpus_options(tmp_path)
    done = 0

    def full_at_fourth(stream: BinaryIO, values: np.ndarray, *, allow_pickle: bool) -> None:
        nonlocal done
        done += 1
        if done == 4:
            stream.write(b"half")
            raise OSError(28, "No space left on device")
        save(stream, values, allow_pickle=allow_pickle)

    save = np.save
    monkeypatch.setattr(np, "save", full_at_fourth)
    with pytest.raises(CheckpointError, match=r"features-001\.npy: cannot be written \(No space"):
        write_corpus(options, silent)
    assert not list(options.output.rglob("*.tmp"))
    monkeypatch.undo()
    write_corpus(options, silent)
    other = corpus_options(tmp_path / "whole")
    write_corpus(other, silent)
    assert rows_of(options.output) == rows_of(other.output)


def test_a_corpus_made_otherwise_is_not_overwritten(tmp_path: Path) -> None:
    options = corpus_options(tmp_path)
    write_corpus(options, silent)
    with pytest.raises(CheckpointError, match="max_new"):
        write_corpus(replace(options, max_new=4), silent)


def test_a_corpus_of_another_target_is_refused(tmp_path: Path) -> None:
    first, second = toy_model(tmp_path / "m1"), toy_model(tmp_path / "m2", seed=1)
    corpus = Corpus(toy_corpus(tmp_path / "c", first, rows=2), "train")
    corpus.require_target(first)
    with pytest.raises(CheckpointError, match="was made with target"):
        corpus.require_target(second)


@pytest.mark.parametrize("taps", [(), (2, 99), (-1, 2), (1, 1), (3, 1)])
def test_every_tap_is_a_boundary_of_the_model(taps: tuple[int, ...], tmp_path: Path) -> None:
    options = replace(corpus_options(tmp_path), taps=taps)
    with pytest.raises(ConfigError, match=r"taps=.*0\.\.4"):
        write_corpus(options, silent)
    assert not options.output.exists()
    write_corpus(replace(options, taps=(0, 4), rows=4), silent)


@pytest.mark.parametrize(
    ("name", "changed"),
    [("rows", {"rows": 1}), ("dev_rows", {"dev_rows": 1}), ("dev_rows", {"max_prompt": 5})],
)
def test_a_split_without_prompts_is_told_before_the_model_is_loaded(
    name: str, changed: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(_: Path) -> None:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr("whiflash_engine.training.corpus_writer.load_llama", load)
    options = replace(corpus_options(tmp_path), **changed)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=f"^{name}=.*max_prompt"):
        write_corpus(options, silent)
    assert not options.output.exists()


@pytest.mark.parametrize("replies", [0, 9])
def test_there_are_one_to_eight_replies(replies: int, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="replies"):
        replace(corpus_options(tmp_path), replies=replies)


@pytest.mark.parametrize("shares", [(1.0,), (0.0,) * 4, (-1.0, 2.0, 1.0, 1.0), (math.nan, 1, 1, 1)])
def test_shares_are_those_of_all_kinds(shares: tuple[float, ...], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="shares"):
        replace(corpus_options(tmp_path), shares=dict(zip(KINDS, shares, strict=False)))
