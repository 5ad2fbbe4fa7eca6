"""Both drafters' training computations against slower, more literal ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.training_toys import TAPS, toy_material
from whiflash_engine.checkpoints.tensors import read_folder
from whiflash_engine.errors import CheckpointError, ConfigError
from whiflash_engine.training.dflash import (
    DFlashOptions,
    DFlashTrainee,
    at,
    draw_anchors,
    forced_rows,
)
from whiflash_engine.training.drafter_parts import Batch, make_batch
from whiflash_engine.training.drafter_run import Material, acceptance
from whiflash_engine.training.drafting_loss import Rows, frozen_head_loss
from whiflash_engine.training.eagle3 import (
    Eagle3Options,
    Eagle3Trainee,
    teacher_table,
    training_rows,
)
from whiflash_engine.training.llama import rope_table, rotate
from whiflash_engine.training.loop import LoopOptions, train
from whiflash_engine.training.model_files import write_tensors


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    return toy_material(tmp_path_factory.mktemp("toy"))


def eagle_options(root: Path) -> Eagle3Options:
    return Eagle3Options(
        model=root, corpus=root, run=root / "run", output=root / "out", draft_vocab=60, epochs=20,
        batch=4, aux=TAPS, steps=3, float32=True, muon_rate=2e-2, adam_rate=1e-2,
    )  # fmt: skip


def dflash_options(root: Path) -> DFlashOptions:
    return DFlashOptions(
        model=root, corpus=root, run=root / "run", output=root / "out", draft_vocab=60, epochs=20,
        batch=4, block=4, layers=2, anchors=8, float32=True,
        muon_rate=2e-2, adam_rate=1e-2,
    )  # fmt: skip


def mean_loss(trainee: Eagle3Trainee | DFlashTrainee) -> float:
    with torch.no_grad():
        return sum(float(trainee.loss(step)[0]) for step in range(3)) / 3


def silent(_: Mapping[str, float | str]) -> None:
    pass


@pytest.mark.parametrize("which", ["eagle3", "dflash"])
@pytest.mark.parametrize(
    "options", [{}, {"optimiser": "adamw"}, {"targets": "hard"}], ids=["soft", "adamw", "hard"]
)
def test_loss_goes_down_and_drafts_get_accepted(
    which: str, options: dict[str, Any], material: Material, tmp_path: Path
) -> None:
    trainee: Eagle3Trainee | DFlashTrainee
    if which == "eagle3":
        trainee = Eagle3Trainee(replace(eagle_options(tmp_path), **options), material)
    else:
        trainee = DFlashTrainee(replace(dflash_options(tmp_path), **options), material)
    assert ("muon" in trainee.optimisers()) == ("optimiser" not in options)
    before = mean_loss(trainee)
    train(trainee, LoopOptions(steps=40), tmp_path / "run", silent)
    assert mean_loss(trainee) < before - 0.1
    assert (tmp_path / "out" / "model.safetensors").exists()
    assert (tmp_path / "run" / "curve.jsonl").exists()


def naive_step(trainee: Eagle3Trainee, feature: Tensor, token: int, position: int,
               cache: list[tuple[Tensor, Tensor]]) -> Tensor:  # fmt: skip
    """One EAGLE-3 slot with an explicit cache of (k, v), written from the published layout."""
    head, shape = trainee.head, trainee.material.shape
    layer = head.midlayer
    embedded = trainee.material.embed(torch.tensor(token))
    both = torch.cat((layer.input_layernorm(embedded), layer.hidden_norm(feature)))
    cos, sin = rope_table(torch.tensor(position), 8, shape.rope_theta, torch.float32)
    q = rotate(layer.self_attn.q_proj(both).view(4, 8), cos, sin)
    k = rotate(layer.self_attn.k_proj(both).view(2, 8), cos, sin)
    cache.append((k, layer.self_attn.v_proj(both).view(2, 8)))
    heads = []
    for index in range(4):
        keys = torch.stack([k[index // 2] for k, _ in cache])
        values = torch.stack([v[index // 2] for _, v in cache])
        heads.append(torch.softmax(keys @ q[index] * 8**-0.5, 0) @ values)
    state = feature + layer.self_attn.o_proj(torch.cat(heads))
    out: Tensor = state + layer.mlp(layer.post_attention_layernorm(state))
    return out


def test_training_time_test_equals_a_chain_run_step_by_step(
    material: Material, tmp_path: Path
) -> None:
    trainee = Eagle3Trainee(eagle_options(tmp_path), material)
    batch = make_batch(material.train, material.samples[:2], torch.float32, material.target)
    rows, valid = training_rows(batch, 3)
    states = trainee.states(batch, rows)
    for sample, column in ((0, 0), (0, 7), (1, 3)):
        slot = int(rows[sample, column])
        cache: list[tuple[Tensor, Tensor]] = []
        ids = batch.ids[sample].tolist()
        state = torch.zeros(32)
        for t in range(slot + 1):
            fused = trainee.head.fc(batch.taps[sample, t, trainee.slices].flatten())
            state = naive_step(trainee, fused, ids[t + 1], t, cache)
        for step in range(3):
            if step:
                state = naive_step(trainee, state, ids[slot + 1 + step], slot + step, cache)
            assert valid[step][sample, column]
            torch.testing.assert_close(states[step][sample, column], state, atol=1e-5, rtol=1e-4)


def test_a_block_sees_nothing_at_or_after_its_anchor(material: Material, tmp_path: Path) -> None:
    trainee = DFlashTrainee(dflash_options(tmp_path), material)
    batch = make_batch(material.train, material.samples[:2], torch.float32, material.target)
    anchors = torch.tensor([[10, 15], [9, 12]])
    real = torch.ones_like(anchors, dtype=torch.bool)
    before, _, _ = trainee.blocks(batch, anchors, real)
    batch.taps[0, 10:] += 1.0
    after, _, _ = trainee.blocks(batch, anchors, real)
    torch.testing.assert_close(before[0, 0], after[0, 0])
    torch.testing.assert_close(before[1], after[1])
    assert (before[0, 1] - after[0, 1]).abs().max() > 1e-4
    batch.taps[0, 9] += 1.0
    assert (before[0, 0] - trainee.blocks(batch, anchors, real)[0][0, 0]).abs().max() > 1e-4


def test_a_block_is_bidirectional_and_alone(material: Material, tmp_path: Path) -> None:
    trainee = DFlashTrainee(dflash_options(tmp_path), material)
    batch = make_batch(material.train, material.samples[:1], torch.float32, material.target)
    rows = torch.randn(1, 2, 4, 32)
    anchors = torch.tensor([[10, 12]])
    before = trainee.drafter(batch.taps, rows, anchors)
    rows[0, 0, 3] += 1.0
    after = trainee.drafter(batch.taps, rows, anchors)
    assert (before[0, 0, 0] - after[0, 0, 0]).abs().max() > 1e-4, "row 0 sees row 3"
    torch.testing.assert_close(before[0, 1], after[0, 1])


def test_one_block_equals_many_blocks_at_once(material: Material, tmp_path: Path) -> None:
    trainee = DFlashTrainee(dflash_options(tmp_path), material)
    batch = make_batch(material.train, material.samples[:3], torch.float32, material.target)
    anchors, real = draw_anchors(batch, 6, torch.Generator().manual_seed(1))
    together, _, _ = trainee.blocks(batch, anchors, real)
    alone = make_batch(material.train, material.samples[1:2], torch.float32, material.target)
    single, _, _ = trainee.blocks(alone, anchors[1:2, 2:3], real[1:2, 2:3])
    torch.testing.assert_close(together[1, 2], single[0, 0], atol=1e-5, rtol=1e-4)


def test_frozen_head_loss_has_the_gradient_of_plain_soft_cross_entropy() -> None:
    torch.manual_seed(0)
    hidden, head = torch.randn(7, 6, requires_grad=True), torch.randn(11, 6)
    teacher, index = torch.softmax(torch.randn(5, 11), -1), torch.randint(0, 5, (7,))
    weight = torch.rand(7)
    loss = frozen_head_loss(hidden, head, Rows(teacher, index, weight))
    (mine,) = torch.autograd.grad(loss, hidden)
    logs = F.log_softmax(hidden @ head.T, -1)
    plain = -((teacher[index] * logs).sum(-1) * weight).sum() / weight.sum()
    (theirs,) = torch.autograd.grad(plain, hidden)
    torch.testing.assert_close(loss, plain)
    torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("which", ["eagle3", "dflash"])
def test_an_interrupted_run_ends_with_the_same_weights(
    which: str, material: Material, tmp_path: Path
) -> None:
    def fresh(name: str) -> Eagle3Trainee | DFlashTrainee:
        if which == "eagle3":
            return Eagle3Trainee(eagle_options(tmp_path / name), material)
        return DFlashTrainee(dflash_options(tmp_path / name), material)

    whole = fresh("whole")
    train(whole, LoopOptions(steps=6), tmp_path / "whole" / "run", silent)
    first = fresh("parts")
    stop = first.loss

    def interrupted(step: int) -> tuple[Tensor, int]:
        if step == 3:
            raise KeyboardInterrupt
        return stop(step)

    first.loss = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        train(first, LoopOptions(steps=6), tmp_path / "parts" / "run", silent)
    second = fresh("parts")
    train(second, LoopOptions(steps=6), tmp_path / "parts" / "run", silent)
    for name, value in whole.trained().items():
        torch.testing.assert_close(value, second.trained()[name], atol=0, rtol=0)


def test_a_run_that_goes_on_does_not_judge_its_start_again(
    material: Material, tmp_path: Path
) -> None:
    def lines(steps: int) -> list[float]:
        told: list[Mapping[str, float | str]] = []
        trainee = Eagle3Trainee(eagle_options(tmp_path), material)
        train(trainee, LoopOptions(steps=steps), tmp_path / "run", told.append)
        return [float(line["step"]) for line in told if "al" in line]

    assert lines(2) == [0, 2]
    assert lines(4) == [4]


def test_acceptance_walks_from_round_to_round() -> None:
    hits = torch.tensor(
        [[1, 1, 0], [0, 0, 0], [0, 0, 0], [1, 0, 1], [1, 1, 1], [1, 0, 0]], dtype=torch.bool
    )
    # rounds start at 0 (3 tokens), 3 (2 tokens), 5 (1 token: the text ends)
    found = acceptance([("tool", hits), ("chat", ~hits[1:3])])
    assert found["al_tool"] == 6 / 3
    assert found["al_chat"] == 2 / 1
    assert found["first"] == round((4 + 2) / 8, 4)


def grammatical(material: Material, forced: tuple[int, ...], overruled: tuple[int, ...]) -> Batch:
    samples = [
        replace(sample, forced=forced, overruled=overruled) for sample in material.samples[:2]
    ]
    return make_batch(material.train, samples, torch.float32, material.target)


def test_where_a_grammar_overruled_the_target_the_written_token_is_the_teacher(
    material: Material,
) -> None:
    batch = grammatical(material, (), (0, 3))
    head, words = material.words(batch)
    table, offsets = teacher_table(batch, head, words)
    plain, _ = teacher_table(grammatical(material, (), ()), head, words)
    changed = (table != plain).any(1).nonzero().flatten().tolist()
    for row, start in enumerate(batch.starts):
        place = int(offsets[row]) + start + 3 - 1
        changed.remove(place)  # response token 0 has no row: nothing is drafted before it
        token = int((words == batch.ids[row, start + 3]).nonzero())
        assert table[place, token] == 1.0 and table[place].sum() == 1.0
    assert not changed
    hard, _ = teacher_table(batch, head, words, hard=True)
    first, last = batch.starts[0], batch.positions[0]
    said = [int(words[row.argmax()]) for row in hard[: last - first]]
    assert said == batch.ids[0, first + 1 : last + 1].tolist()


def test_layers_start_from_the_last_ones_of_the_target(tmp_path: Path) -> None:
    options = dflash_options(tmp_path)
    assert replace(options, layers=3).warm_layers(30) == (25, 27, 29)
    with pytest.raises(ConfigError, match="layers"):
        replace(options, layers=3).warm_layers(4)
    with pytest.raises(ConfigError, match="optimiser"):
        replace(options, optimiser="sgd")  # type: ignore[arg-type]


def test_forced_rows_are_found_and_hold_their_token(material: Material, tmp_path: Path) -> None:
    batch = grammatical(material, (1, 2, 6), ())
    start = batch.starts[0]
    anchors = torch.tensor([[start, start + 4], [batch.starts[1], batch.starts[1] + 20]])
    known = forced_rows(batch, anchors, 4)
    assert known[0].tolist() == [[True, True, False], [False, True, False]]
    assert known[1].tolist() == [[True, True, False], [False, False, False]]
    trainee = DFlashTrainee(dflash_options(tmp_path), material)
    real = torch.ones_like(anchors, dtype=torch.bool)
    masked, places, valid = trainee.blocks(batch, anchors, real)
    clamped, _, _ = trainee.blocks(batch, anchors, real, known)
    assert not torch.equal(masked[0, 0], clamped[0, 0])
    torch.testing.assert_close(masked[1, 1], clamped[1, 1])
    rows = trainee.mask.expand(2, 2, 4, -1).clone()
    rows[:, :, 0] = material.embed(torch.gather(batch.ids, 1, anchors))
    rows[:, :, 1:][known] = material.embed(at(batch.ids, places)[known])
    torch.testing.assert_close(trainee.drafter(batch.taps, rows, anchors)[:, :, 1:], clamped)
    assert bool(valid[:, 0].all())


@pytest.mark.parametrize("which", ["eagle3", "dflash"])
def test_training_goes_on_from_exported_weights(
    which: str, material: Material, tmp_path: Path
) -> None:
    def fresh(start: Path | None) -> Eagle3Trainee | DFlashTrainee:
        if which == "eagle3":
            return Eagle3Trainee(replace(eagle_options(tmp_path), start=start), material)
        return DFlashTrainee(replace(dflash_options(tmp_path), start=start), material)

    first = fresh(None)
    train(first, LoopOptions(steps=3), tmp_path / "run", silent)
    second = fresh(tmp_path / "out")
    for name, value in second.trained().items():
        assert torch.equal(value, first.trained()[name].bfloat16().float()), name
    tensors = read_folder(tmp_path / "out")
    write_tensors(tmp_path / "bad" / "model.safetensors", {**tensors, "fc.weight": torch.ones(2)})
    with pytest.raises(CheckpointError, match=r"'fc\.weight' has shape \(2,\)"):
        fresh(tmp_path / "bad")
    write_tensors(tmp_path / "bad" / "model.safetensors", {**tensors, "more": torch.ones(2)})
    with pytest.raises(CheckpointError, match="more"):
        fresh(tmp_path / "bad")


def test_a_checkpoint_that_cannot_be_written_leaves_the_last_one(
    material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    train(Eagle3Trainee(eagle_options(tmp_path), material), LoopOptions(steps=2), run, silent)
    before = {path.name: path.read_bytes() for path in run.glob("checkpoint*")}

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("whiflash_engine.training.model_files.save_file", full)
    trainee = Eagle3Trainee(eagle_options(tmp_path), material)
    with pytest.raises(CheckpointError, match=r"checkpoint-4\.safetensors.*No space"):
        train(trainee, LoopOptions(steps=4), run, silent)
    assert {path.name: path.read_bytes() for path in run.glob("checkpoint*")} == before


def test_the_vocabulary_of_a_batch_is_open_to_its_own_tokens(material: Material) -> None:
    batch = make_batch(material.train, material.samples[:3], torch.float32, material.target)
    head, words = material.words(batch)
    assert set(words.tolist()) == set(material.vocab.ids.tolist()) | set(
        batch.ids.flatten().tolist()
    )
    assert len(words) == len(set(words.tolist()))
    torch.testing.assert_close(head, material.target.head_weight[words])
    missing = next(t for t in range(61) if t not in material.vocab.ids.tolist())
    ids = torch.tensor([[1, missing, 2, missing], [missing, 1, 1, 2]])
    assert material.sayable(ids).tolist() == [[True, False, True, True], [False, True, True, True]]
