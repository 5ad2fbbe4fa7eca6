"""Lessons that share their beginning are learned as they would be alone."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.training_toys import toy_model, write_lines
from whiflash_engine.training.adapter import AdapterOptions, AdapterTrainee
from whiflash_engine.training.chat import Taught
from whiflash_engine.training.gold import parse_calls, tool_name
from whiflash_engine.training.llama import load_llama
from whiflash_engine.training.mixes import AdapterMix
from whiflash_engine.training.packing import Pack, pack, pad
from whiflash_engine.training.tool_groups import tool_groups

tokens = st.integers(1, 3)


@st.composite
def conversations(draw: st.DrawFn) -> list[Taught]:
    """One to five of them that begin alike, each with at least one token before its reply."""
    start = draw(st.lists(tokens, min_size=1, max_size=6))
    group = []
    for _ in range(draw(st.integers(1, 5))):
        told = start + draw(st.lists(tokens, max_size=4))
        reply = draw(st.lists(tokens, min_size=1, max_size=4))
        learn = [False] * len(told) + [True] * len(reply)
        group.append(Taught((*told, *reply), tuple(learn)))
    return group


@given(conversations())
def test_every_conversation_can_be_read_out_of_a_pack(group: list[Taught]) -> None:
    packed = pack(group)
    for number, one in enumerate(group, start=1):
        mine = [i for i, branch in enumerate(packed.branch) if branch in (0, number)]
        assert tuple(packed.ids[i] for i in mine) == one.ids
        assert tuple(packed.learn[i] for i in mine) == one.learn
        assert tuple(packed.positions[i] for i in mine) == tuple(range(len(one.ids)))


@given(conversations())
def test_what_predicts_a_learned_token_stands_just_before_it(group: list[Taught]) -> None:
    packed = pack(group)
    for i, learned in enumerate(packed.learn):
        assert not learned or packed.branch[i] == packed.branch[i - 1] != 0


def test_a_pack_is_run_as_its_conversations_alone(tmp_path: Path) -> None:
    rng = random.Random(1)
    model = load_llama(toy_model(tmp_path), torch.float32)
    start = [rng.randrange(61) for _ in range(7)]
    groups = []
    for count in (3, 1, 4):
        group = []
        for _ in range(count):
            rest = [rng.randrange(61) for _ in range(rng.randint(4, 9))]
            learn = (False,) * (len(start) + 2) + (True,) * (len(rest) - 2)
            group.append(Taught((*start, *rest), learn))
        groups.append(group)
    packs = [pack(group) for group in groups]
    assert sum(map(len, (one.ids for one in packs))) < sum(len(t.ids) for g in groups for t in g)
    ids, _, layout = pad(packs)
    hidden = model(ids, layout)
    for row, (packed, group) in enumerate(zip(packs, groups, strict=True)):
        for number, one in enumerate(group, start=1):
            mine = [i for i, branch in enumerate(packed.branch) if branch in (0, number)]
            alone = model(torch.tensor([one.ids]))[0]
            torch.testing.assert_close(hidden[row, mine], alone, rtol=1e-4, atol=1e-5)


def test_a_pack_teaches_what_its_conversations_teach_alone(tmp_path: Path) -> None:
    rng = random.Random(2)
    start = [rng.randrange(61) for _ in range(6)]
    groups = []
    for count in (3, 1, 2):
        rests = [[rng.randrange(61) for _ in range(rng.randint(5, 9))] for _ in range(count)]
        groups.append([
            Taught((*start, *rest), (False,) * (len(start) + 2) + (True,) * (len(rest) - 2))
            for rest in rests
        ])  # fmt: skip
    folder = toy_model(tmp_path / "model")

    def taught(packs: list[Pack]) -> tuple[float, Tensor]:
        options = AdapterOptions(
            model=folder, data=tmp_path, run=tmp_path, output=tmp_path, template=tmp_path,
            batch=len(packs), opening=4.0,
        )  # fmt: skip
        trainee = AdapterTrainee(options, load_llama(folder, torch.float32), lambda _: packs)
        loss, count = trainee.loss(0)
        loss.backward()  # type: ignore[no-untyped-call]
        gradient = [p.grad for p in trainee.trained().values() if p.grad is not None]
        assert count == sum(sum(one.learn) for group in groups for one in group)
        return float(loss.detach()), torch.cat([g.flatten() for g in gradient])

    together = taught([pack(group) for group in groups])
    alone = taught([pack([one]) for group in groups for one in group])
    assert together[0] == pytest.approx(alone[0], rel=1e-4)
    torch.testing.assert_close(together[1], alone[1], rtol=1e-3, atol=1e-6)


def test_an_epoch_is_drawn_when_it_begins(tmp_path: Path) -> None:
    drawn: list[int] = []

    def draw(epoch: int) -> list[Pack]:
        """Each of one conversation, told by its first token; in the second epoch one less."""
        drawn.append(epoch)
        group = [Taught((10 * epoch + i, 1, 2), (False, False, True)) for i in range(5 - epoch)]
        return [pack([one]) for one in group]

    options = AdapterOptions(
        model=toy_model(tmp_path / "model"), data=tmp_path, run=tmp_path, output=tmp_path,
        template=tmp_path, batch=2, epochs=3,
    )  # fmt: skip
    trainee = AdapterTrainee(options, load_llama(options.model, torch.float32), draw)
    assert trainee.steps == 9 and drawn == [0]
    first = [one.ids[0] for step in range(3) for one in trainee.batch(step)]
    assert sorted(first) == [*range(5)] and drawn == [0]
    second = {one.ids[0] for step in range(3, 6) for one in trainee.batch(step)}
    assert second == {10, 11, 12, 13} and drawn == [0, 1]
    assert {one.ids[0] // 10 for one in trainee.batch(8)} == {2}


def test_single_conversations_need_no_layout() -> None:
    packs = [pack([Taught((1, 2, 3), (False, False, True))])] * 2
    assert pad(packs)[2] is None


def tool(name: str) -> dict[str, object]:
    parameters = {"type": "object", "properties": {"a": {"type": "string"}}}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def test_a_group_has_one_choice_of_tools_and_calls_only_those(tmp_path: Path) -> None:
    names = ["bookTable", "playMusic", "rateNovel", "fetchWeather"]
    offered = [tool(name) for name in names]
    for source in ("snips", "bfcl", "seal_tools"):
        rows: list[dict[str, object]] = []
        refs: list[dict[str, object]] = []
        for number in range(12):
            name = names[number % 4]
            identity = f"{source}-{number}"
            message = {"role": "user", "content": f"{name} {number}"}
            rows.append({
                "id": identity, "kind": "tool", "source": source, "messages": [message],
                "tools": offered if source == "snips" else [tool(name)],
            })  # fmt: skip
            gold: dict[str, object] = {"name": name, "args": {"a": str(number)}}
            if source == "bfcl":
                gold = {name: {"a": [str(number)]}}
            if source == "seal_tools":
                gold = {"api": name, "parameters": {"a": str(number)}}
            key = {"snips": "gold", "bfcl": "ground_truth", "seal_tools": "calling"}[source]
            refs.append({"id": identity, "ref": {key: gold if source == "snips" else [gold]}})
        write_lines(tmp_path / "train" / f"{source}.jsonl.gz", rows)
        write_lines(tmp_path / "train_refs" / f"{source}.jsonl.gz", refs)
    mix = AdapterMix(catalogues=20, doubted=10)
    groups = tool_groups(tmp_path, "train", mix, seed=3)
    assert groups == tool_groups(tmp_path, "train", mix, seed=3)
    assert len(groups) == 30
    declined = 0
    for group in groups:
        known = {tool_name(one) for one in group[0].tools}
        for lesson in group:
            assert lesson.tools == group[0].tools
            wanted, said = str(lesson.messages[-1]["content"]).split()
            calls = parse_calls(lesson.replies[0][0])
            assert (calls is not None) == (wanted in known)
            if calls is None:
                declined += 1
            else:
                assert calls[0].name == wanted
                assert calls[0].arguments == {"a": said}
    assert declined > 20
