"""Both drafters' training computations against slower, more literal ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.training_toys import TAPS, toy_material
from whiflash_engine.training.dflash import DFlashOptions, DFlashTrainee, draw_anchors
from whiflash_engine.training.drafter_parts import make_batch
from whiflash_engine.training.drafter_run import Material, acceptance
from whiflash_engine.training.drafting_loss import Rows, frozen_head_loss
from whiflash_engine.training.eagle3 import Eagle3Options, Eagle3Trainee, training_rows
from whiflash_engine.training.llama import rope_table, rotate
from whiflash_engine.training.loop import LoopOptions, train


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
        batch=4, block=4, layers=2, warm_layers=(2, 3), anchors=8, float32=True,
        muon_rate=2e-2, adam_rate=1e-2,
    )  # fmt: skip


def mean_loss(trainee: Eagle3Trainee | DFlashTrainee) -> float:
    with torch.no_grad():
        return sum(float(trainee.loss(step)[0]) for step in range(3)) / 3


def silent(_: Mapping[str, float | str]) -> None:
    pass


@pytest.mark.parametrize("which", ["eagle3", "dflash"])
def test_loss_goes_down_and_drafts_get_accepted(
    which: str, material: Material, tmp_path: Path
) -> None:
    trainee: Eagle3Trainee | DFlashTrainee
    if which == "eagle3":
        trainee = Eagle3Trainee(eagle_options(tmp_path), material)
    else:
        trainee = DFlashTrainee(dflash_options(tmp_path), material)
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
    batch = make_batch(material.train, material.samples[:2], torch.float32)
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
    batch = make_batch(material.train, material.samples[:2], torch.float32)
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
    batch = make_batch(material.train, material.samples[:1], torch.float32)
    rows = torch.randn(1, 2, 4, 32)
    anchors = torch.tensor([[10, 12]])
    before = trainee.drafter(batch.taps, rows, anchors)
    rows[0, 0, 3] += 1.0
    after = trainee.drafter(batch.taps, rows, anchors)
    assert (before[0, 0, 0] - after[0, 0, 0]).abs().max() > 1e-4, "row 0 sees row 3"
    torch.testing.assert_close(before[0, 1], after[0, 1])


def test_one_block_equals_many_blocks_at_once(material: Material, tmp_path: Path) -> None:
    trainee = DFlashTrainee(dflash_options(tmp_path), material)
    batch = make_batch(material.train, material.samples[:3], torch.float32)
    anchors, real = draw_anchors(batch, 6, torch.Generator().manual_seed(1))
    together, _, _ = trainee.blocks(batch, anchors, real)
    alone = make_batch(material.train, material.samples[1:2], torch.float32)
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


def test_acceptance_walks_from_round_to_round() -> None:
    hits = torch.tensor(
        [[1, 1, 0], [0, 0, 0], [0, 0, 0], [1, 0, 1], [1, 1, 1], [1, 0, 0]], dtype=torch.bool
    )
    # rounds start at 0 (3 tokens), 3 (2 tokens), 5 (1 token: the text ends)
    found = acceptance([("tool", hits), ("chat", ~hits[1:3])])
    assert found["al_tool"] == 6 / 3
    assert found["al_chat"] == 2 / 1
    assert found["first"] == round((4 + 2) / 8, 4)
