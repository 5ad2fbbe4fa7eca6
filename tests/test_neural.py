"""Learned routers: the network, its files, and what is made of its chances."""

from __future__ import annotations

import gzip
import json
import math
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from tests.toys import ToyTarget, run, toy_drafters
from whiflash_agents.cli import main
from whiflash_engine.checkpoints.router import load_router
from whiflash_engine.config import ArmName, RouterConfig, RouterName, SamplingConfig
from whiflash_engine.engine import Engine
from whiflash_engine.errors import CheckpointError, ConfigError
from whiflash_engine.events import Round, Seconds, tokens_of
from whiflash_engine.kernels.cpu import kernels
from whiflash_engine.router import perceptron
from whiflash_engine.router.build import build_router
from whiflash_engine.router.neural import (
    SPANS,
    STRUCTURE,
    NeuralPolicy,
    RouterNet,
    features,
)
from whiflash_engine.router.perceptron import Perceptron
from whiflash_engine.router.policies import RouteContext
from whiflash_engine.router.registry import Routers
from whiflash_engine.training.rounds import Drafted, Rounds, log_rounds
from whiflash_engine.training.router import RouterOptions, fit
from whiflash_engine.training.router_worth import Seconds as Costs
from whiflash_engine.training.router_worth import worth

HIDDEN = 16
ARMS: tuple[ArmName, ...] = ("ar", "diffusion", "retrieval", "plain")


def context(hidden: Tensor | None = None, forced: int = 0) -> RouteContext:
    return RouteContext(
        0.5, "json", 9, backlog=dict.fromkeys(ARMS, 1),
        width={"ar": 4, "diffusion": 6, "retrieval": 9, "plain": 1},
        forced=(1,) * forced, hidden=torch.zeros(HIDDEN) if hidden is None else hidden,
    )  # fmt: skip


def net(seed: int = 0, copies: int = 0) -> RouterNet:
    rng = np.random.default_rng(seed)

    def drawn(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    inputs = HIDDEN + STRUCTURE
    return RouterNet(
        Perceptron(drawn(8, inputs), drawn(8), drawn(8 + copies, 8), drawn(8 + copies)),
        {"ar": 3, "diffusion": 5, **({"retrieval": copies} if copies else {})},
    )


def rounds(arm: ArmName, accepted: int, drafted: int = 3) -> Round:
    return Round(
        arm, 9, (0,) * (accepted + 1), (0,) * drafted, accepted, drafted + 1, "json", 0.5, 1,
        Seconds(),
    )  # fmt: skip


def odds(network: RouterNet, x: np.ndarray, arm: ArmName) -> np.ndarray:
    return np.array(network.perceptron(torch.from_numpy(x))[network.parts[arm]])


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("sizes", [(27, 8, 8), (587, 72, 24), (16, 2, 1), (7, 3, 5), (64, 40, 1)])
def test_the_network_is_torchs(
    sizes: tuple[int, int, int], compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not compiled:
        monkeypatch.setattr(perceptron, "kernels", lambda: None)
    elif kernels() is None:
        pytest.skip("no kernels here")
    inputs, inner, outputs = sizes
    generator = torch.Generator().manual_seed(1)
    shapes = ((inputs,), (inner, inputs), (inner,), (outputs, inner), (outputs,))
    x, *weights = (torch.randn(shape, generator=generator) for shape in shapes)
    first, first_bias, second, second_bias = weights
    hidden = F.gelu(F.linear(x, first, first_bias), approximate="tanh")
    wanted = F.linear(hidden, second, second_bias).numpy()
    one = Perceptron(*(weight.numpy() for weight in weights))
    for count in (0, 1, 5):  # of the inputs, given apart
        found = one(x[: inputs - count], x[inputs - count :].tolist())
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
    assert one(x.repeat_interleave(2)[::2]) == one(x)  # whose numbers do not lie together
    assert one(x.bfloat16()) == one(x.bfloat16().float())
    for wrong, more in ((x[:-1], ()), (x, (1.0,)), (x[None], ())):
        with pytest.raises(ValueError, match=f"are not \\({inputs},\\)"):
            one(wrong, more)
    with pytest.raises(ValueError, match="no perceptron"):
        Perceptron(first.numpy(), second_bias[:0].numpy(), second.numpy(), second_bias.numpy())


def test_each_arm_has_its_outputs() -> None:
    assert net(copies=8).parts == {
        "ar": slice(0, 3), "diffusion": slice(3, 8), "retrieval": slice(8, 16),
    }  # fmt: skip


def test_the_network_runs_once_a_round() -> None:
    policy, place, ran = NeuralPolicy(net(copies=8)), context(), list[int]()
    network = policy._net

    def counted(x: Tensor, more: Sequence[float] = ()) -> list[float]:
        ran.append(len(more))
        return network(x, more)

    policy._net = counted  # type: ignore[assignment]
    for _ in range(2):
        for arm in ARMS:
            policy.expect(arm, place)
        policy.learn(rounds("ar", 1))
    assert ran == [STRUCTURE] * 2


def test_a_round_that_was_given_up_corrects_nobody() -> None:
    policy, place = NeuralPolicy(net()), context()
    policy.expect("ar", place)
    policy.expect("ar", place._replace(hidden=None))  # the next one, by averages
    policy.learn(rounds("ar", 3))
    assert not any(policy.shift.values())


def test_what_the_network_sees() -> None:
    hidden = torch.arange(HIDDEN, dtype=torch.bfloat16)
    place = context(hidden)._replace(since=3, constrained=True, matched=5)
    seen = features(place)
    assert seen.dtype == np.float32 and seen.shape == (HIDDEN + STRUCTURE,)
    assert seen[:HIDDEN].tolist() == list(range(HIDDEN))
    rest = [0.5, 0, 0, 1, 0, math.log(4), 1, math.log(6), 0.3, 0.3, 0.3]
    assert seen[HIDDEN:].tolist() == pytest.approx(rest)


def test_expected_tokens_follow_from_chances() -> None:
    policy, one = NeuralPolicy(net(copies=8)), net(copies=8)
    place = context()
    counts: dict[ArmName, int] = {"ar": 3, "diffusion": 5, "retrieval": 8}
    for arm, count in counts.items():
        chances = 1 / (1 + np.exp(-odds(one, features(place), arm)))
        found = policy.expect(arm, place)
        assert list(found) == pytest.approx(list(1 + np.cumprod(chances).cumsum()), rel=1e-5)
        assert len(found) == count
    # behind two forced tokens, and where the draft is longer than what the network knows
    known = context(forced=2)._replace(width={"ar": 9})
    found = policy.expect("ar", known)
    chances = 1 / (1 + np.exp(-odds(one, features(known), "ar")))
    assert len(found) == 6 and found[0] == pytest.approx(3 + chances[0], rel=1e-5)
    assert found[-1] - found[-2] == pytest.approx(chances.prod() * chances[-1] ** 3, rel=1e-4)


def test_other_arms_and_places_without_a_state_go_by_averages() -> None:
    policy, place = NeuralPolicy(net()), context()
    assert list(policy.expect("plain", place)) == [1.0]
    assert policy.expect("retrieval", place)[0] == 1.5
    assert policy.expect("ar", place._replace(hidden=None))[0] == 1.5
    for _ in range(50):
        policy.learn(rounds("retrieval", 8, 8))
    assert policy.expect("retrieval", place)[-1] > 7.0


def test_a_network_that_is_wrong_is_corrected() -> None:
    policy, place = NeuralPolicy(net()), context()
    before = {arm: policy.expect(arm, place)[-1] for arm in ("ar", "diffusion")}
    for _ in range(200):
        policy.expect("ar", place)
        policy.learn(rounds("ar", 3))
    assert policy.expect("ar", place)[-1] > before["ar"]
    after = policy.expect("diffusion", place)[-1]
    assert after == pytest.approx(before["diffusion"], rel=0.2)  # only what was lately may move it


def our_files(folder: Path, **change: object) -> Path:
    one = net()
    p = one.perceptron
    mean, scale = torch.full((HIDDEN + STRUCTURE,), 0.5), torch.full((HIDDEN + STRUCTURE,), 2.0)
    save_file(
        {"mean": mean, "scale": scale,
         "fc1.weight": torch.from_numpy(p.first), "fc1.bias": torch.from_numpy(p.first_bias),
         "fc2.weight": torch.from_numpy(p.second), "fc2.bias": torch.from_numpy(p.second_bias)},
        folder / "model.safetensors",
    )  # fmt: skip
    config = {"hidden_size": HIDDEN, "structure": STRUCTURE, "positions": one.positions, **change}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_an_idle_arm_corrects_what_was_said_of_it_a_round_before() -> None:
    """Diffusion is told after the next pick how it would have done in the round before."""
    policy, other = NeuralPolicy(net()), NeuralPolicy(net())
    first = context(torch.ones(HIDDEN))
    later = context(-torch.ones(HIDDEN))._replace(position=12)
    for one in (policy, other):
        one.expect("ar", first)
        one.expect("diffusion", first)
    other.learn(rounds("diffusion", 0, 5))  # picked at once
    policy.learn(rounds("ar", 2, 3))
    policy.expect("ar", later)
    policy.learn(rounds("diffusion", 0, 5))
    assert policy.shift["diffusion"] == pytest.approx(other.shift["diffusion"]) and (
        policy.shift["diffusion"] < 0
    )
    before = dict(policy.shift)
    policy.learn(replace(rounds("diffusion", 0, 5), position=3))  # nobody was asked there
    assert policy.shift == before
    policy.learn(replace(rounds("ar", 0, 3), position=12))  # the present round is as it was
    assert policy.shift["ar"] < before["ar"]


def test_our_files(tmp_path: Path) -> None:
    found = load_router(our_files(tmp_path), HIDDEN)
    x = np.ones(HIDDEN + STRUCTURE, dtype=np.float32)
    assert isinstance(found, RouterNet)
    wanted = odds(net(), (x - 0.5) * 2.0, "diffusion")
    assert odds(found, x, "diffusion") == pytest.approx(wanted, rel=1e-4)
    with pytest.raises(CheckpointError, match="made for 16, here it is 8"):
        load_router(tmp_path, 8)
    for positions in ({}, {"medusa": 3}, {"ar": 0}):
        with pytest.raises(CheckpointError, match="positions"):
            load_router(our_files(tmp_path, positions=positions), HIDDEN)
    with pytest.raises(CheckpointError, match="shape"):
        load_router(our_files(tmp_path, positions={"ar": 3}), HIDDEN)


def published(path: Path, **tensors: Tensor) -> Path:
    generator = torch.Generator().manual_seed(0)
    every = {
        "net.0.weight": torch.randn(4, HIDDEN, generator=generator), "net.0.bias": torch.zeros(4),
        "net.3.weight": torch.randn(1, 4, generator=generator), "net.3.bias": torch.zeros(1),
    }  # fmt: skip
    save_file({**every, **tensors}, path)
    return path


def test_published_files_prefer_ar_above_the_threshold(tmp_path: Path) -> None:
    found = load_router(published(tmp_path / "router.safetensors"), HIDDEN)
    assert isinstance(found, Perceptron)
    hidden = torch.ones(HIDDEN)
    (delta,) = found(hidden)
    for tau, arm in ((delta - 0.1, "ar"), (delta + 0.1, "diffusion")):
        config = RouterConfig("neural", span_bias=0.0, delta_threshold=tau)
        assert build_router(config, ARMS, net=found).pick(context(hidden)).arm == arm
    stateless = context()._replace(hidden=None)
    assert build_router(config, ARMS, net=found).pick(stateless).arm == "diffusion"
    for extra in ({"third": torch.zeros(2, 2)}, {"net.0.bias": torch.zeros(5)}):
        with pytest.raises(CheckpointError, match="no router for hidden size 16"):
            load_router(published(tmp_path / "bad.safetensors", **extra), HIDDEN)
    with pytest.raises(CheckpointError, match="no router"):
        load_router(tmp_path / "router.safetensors", 8)


def test_a_router_that_is_asked_for_must_be_there() -> None:
    with pytest.raises(ConfigError, match="neural_router"):
        build_router(RouterConfig("neural"), ARMS)
    with pytest.raises(ConfigError, match="diffusion"):
        build_router(RouterConfig("neural"), ("ar", "plain"), net=net().perceptron)
    build_router(RouterConfig("neural"), ("ar", "plain"), net=net())
    with pytest.raises(ConfigError, match=r'^router=.*neural_router.*"neural"'):
        build_router(RouterConfig("auto"), ARMS, net=net().perceptron)
    build_router(RouterConfig("auto", learned=False), ARMS, net=net().perceptron)
    shared = Routers(ARMS, RouterConfig("neural"), net().perceptron, None, "m", threading.Lock())
    with pytest.raises(ConfigError, match=r"^router='auto'"):
        shared.get(RouterConfig("auto"))
    with pytest.raises(ConfigError, match="delta_threshold"):
        RouterConfig(delta_threshold=math.nan)


@pytest.mark.parametrize("name", ["auto", "neural"])
def test_output_is_plain_decodings_under_learned_routers(name: RouterName) -> None:
    target = ToyTarget(11, seed=3)
    drafters, sampling = toy_drafters(target), SamplingConfig(max_tokens=60)
    plain = run(target, drafters, [1, 2, 3], sampling=sampling, router=RouterConfig("plain"))
    hidden = target.config.hidden_size
    rng = np.random.default_rng(0)
    inputs = hidden + STRUCTURE
    first = rng.standard_normal((8, inputs)).astype(np.float32)
    second = rng.standard_normal((8, 8)).astype(np.float32)
    zero = np.zeros(8, dtype=np.float32)
    learned = RouterNet(Perceptron(first, zero, second, zero), {"ar": 3, "diffusion": 5})
    router = build_router(RouterConfig(name), (*drafters, "retrieval", "plain"), net=learned)
    rounds = run(target, drafters, [1, 2, 3], sampling=sampling, router=router)
    assert tokens_of(rounds) == tokens_of(plain)


def learnable(prompts: int = 24, length: int = 40) -> list[list[Drafted]]:
    """The first number of the state says which drafter gets its draft through, the second
    whether a copy does, which every other prefix has on offer."""
    rng, rows = np.random.default_rng(0), list[list[Drafted]]()
    for _ in range(prompts):
        rows.append([])
        for i in range(length):
            state = rng.standard_normal(HIDDEN + STRUCTURE).astype(np.float32)
            state[HIDDEN + 1 : HIDDEN + 1 + len(SPANS)] = 0, 0, 1, 0  # json
            good = state[0] > 0
            drafters = [(3, 3), (0, 5)] if good else [(0, 3), (4, 5)]
            copied = 0 if i % 2 else 9
            copy = (copied if state[1] > 0 else 0, copied)
            rows[-1].append(Drafted(state, [*drafters, copy]))
    return rows


def test_it_learns_who_gets_through_and_is_worth_it(tmp_path: Path) -> None:
    lines: list[dict[str, float | str]] = []
    prompts = [partial(iter, one) for one in learnable()]
    log_rounds(prompts, tmp_path / "run", {"seed": 0},
               lambda line: lines.append(dict(line)), chunk=10)  # fmt: skip
    made = len(lines)
    log_rounds(prompts, tmp_path / "run", {"seed": 0},
               lambda line: lines.append(dict(line)), chunk=10)  # fmt: skip
    assert made == 3 and len(lines) == 3  # nothing is drafted twice
    found = Rounds.read(tmp_path / "run")
    assert found.positions == (3, 5, 9) and len(found.prompt) == 24 * 40
    options = RouterOptions(epochs=20, batch=64, learning_rate=1e-2)
    odds = fit(found, options, tmp_path / "out", lambda line: lines.append(dict(line)))
    rates = next(float(line["rates"]) for line in lines if "rates" in line)
    assert min(float(line["loss"]) for line in lines if "loss" in line) < rates / 2
    seconds: Costs = {
        "ar": [1.0, 1.1, 1.2, 1.3], "diffusion": [1.0] + [1.3] * 5, "retrieval": [1.0] * 10,
    }  # fmt: skip
    unseen = found.split()[1]
    value = worth(unseen, odds, seconds)
    free = torch.cat([odds[:, :8], odds[:, 8:] + 99.0], 1)  # sure of every copy, of which
    sure = worth(unseen, free, seconds)  # half are not there to be taken
    assert sure["oracle"] == value["oracle"] > value["bias 0"] > sure["bias 0"] > 2.0
    assert value["oracle"] >= value["bias 0"] > 1.2 * max(value["ar"], value["diffusion"])
    biased = worth(found.split()[1], odds, seconds, (0.0, 9.0))
    assert biased["bias 0"] == value["bias 0"] > biased["bias 9"]
    loaded = load_router(tmp_path / "out", HIDDEN)
    assert isinstance(loaded, RouterNet)
    first = found.split()[1].features[0]
    np.testing.assert_allclose(loaded.perceptron(first), odds[0], atol=1e-3)


def test_training_goes_on_from_a_router(tmp_path: Path) -> None:
    log_rounds([partial(iter, one) for one in learnable()], tmp_path / "run", {}, lambda line: None)
    rounds, losses = Rounds.read(tmp_path / "run"), list[float]()

    def report(line: Mapping[str, float | str]) -> None:
        if "loss" in line:
            losses.append(float(line["loss"]))

    fit(rounds, RouterOptions(epochs=2, batch=64), tmp_path / "first", report)
    known = min(losses)
    further = RouterOptions(epochs=2, batch=64, learning_rate=1e-2, start=tmp_path / "first")
    losses.clear()
    fit(rounds, further, tmp_path / "second", report)
    assert losses[0] == known and min(losses) < known  # epoch 0 is the first one as it was
    losses.clear()
    spoil = replace(further, learning_rate=1e4, start=tmp_path / "second")
    kept = fit(rounds, spoil, tmp_path / "third", report)
    assert min(losses) == losses[0]  # what learning did not better stays as it was
    second = load_router(tmp_path / "second", HIDDEN)
    assert isinstance(second, RouterNet)
    first = rounds.split()[1].features[0]
    np.testing.assert_allclose(second.perceptron(first), kept[0], atol=1e-3)


def test_training_does_not_go_on_from_what_does_not_fit(tmp_path: Path) -> None:
    log_rounds([partial(iter, one) for one in learnable()], tmp_path / "run", {}, lambda line: None)
    rounds = Rounds.read(tmp_path / "run")
    longer = replace(rounds, positions=(4, 5, 9))
    fit(rounds, RouterOptions(epochs=1), tmp_path / "out", lambda line: None)
    single = published(tmp_path / "router.safetensors")
    for start, of, said in ((tmp_path / "out", longer, "same lengths"),
                            (single, rounds, "one output")):  # fmt: skip
        with pytest.raises(CheckpointError, match=said):
            fit(of, RouterOptions(epochs=1, start=start), tmp_path / "bad", lambda line: None)
    assert not (tmp_path / "bad").exists()


def test_a_draft_that_was_accepted_whole_says_nothing_of_what_would_follow() -> None:
    one = Rounds(
        torch.zeros(3, 2), torch.tensor([[2, 0], [1, 0], [3, 0]]),
        torch.tensor([[2, 0], [3, 4], [3, 0]]), torch.arange(3), torch.ones(3), (3, 4),
    )  # fmt: skip
    asked, passed = one.trials()
    assert asked.int().tolist() == [
        [1, 1, 0, 0, 0, 0, 0], [1, 1, 0, 1, 0, 0, 0], [1, 1, 1, 0, 0, 0, 0],
    ]  # fmt: skip
    assert (passed & asked).int().tolist() == [
        [1, 1, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0, 0],
    ]  # fmt: skip


def test_what_weighs_nothing_says_nothing(tmp_path: Path) -> None:
    for name, weight in (("once", ()), ("twice", (0.0,))):
        rows = [
            [Drafted(one.features, tried, w)
             for one in row
             for other in ([(drafted - passed, drafted) for passed, drafted in one.tried],)
             for w, tried in zip((1.0, *weight), (one.tried, other), strict=False)]
            for row in learnable(12, 20)
        ]  # fmt: skip
        log_rounds([partial(iter, row) for row in rows], tmp_path / name, {}, lambda line: None)
    once, twice = (Rounds.read(tmp_path / name) for name in ("once", "twice"))
    assert len(twice.prompt) == 2 * len(once.prompt)
    told: list[object] = []
    for found in (once, twice):
        fit(found, RouterOptions(epochs=1), tmp_path / "out",
            lambda line: told.append(line.get("rates")))  # fmt: skip
        seconds: Costs = {"ar": [1.0] * 6, "diffusion": [1.0] * 6, "retrieval": [1.0] * 10}
        odds = torch.zeros(len(found.prompt), sum(found.positions))
        told.append(worth(found, odds, seconds))
    rates, value = told[0], told[2]
    assert isinstance(rates, float) and isinstance(value, dict)
    assert told[3] == pytest.approx(rates) and told[5] == pytest.approx(value)


def test_where_nothing_was_copied_the_router_does_not_know_copies(tmp_path: Path) -> None:
    rows = [[Drafted(one.features, [*one.tried[:2], (0, 0)]) for one in row] for row in learnable()]
    log_rounds([partial(iter, row) for row in rows], tmp_path / "run", {}, lambda line: None)
    fit(Rounds.read(tmp_path / "run"), RouterOptions(epochs=1), tmp_path, lambda line: None)
    loaded = load_router(tmp_path, HIDDEN)
    assert isinstance(loaded, RouterNet) and set(loaded.positions) == {"ar", "diffusion"}


def test_no_rounds_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no prefixes"):
        Rounds.read(tmp_path)
    log_rounds([lambda: iter(())], tmp_path, {}, lambda line: None)
    with pytest.raises(CheckpointError, match="no prefixes"):
        Rounds.read(tmp_path)


def test_the_command_logs_fits_and_goes_on(
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(Engine, "load", lambda *_, **__: engine)
    rows = [
        {"id": f"{kind}-{i}", "kind": kind, "messages": [{"role": "user", "content": f"{i}"}],
         "tools": [], "schema": {"type": "object"} if kind == "json" else None}
        for kind in ("tool", "json", "reason", "chat") for i in range(5)
    ]  # fmt: skip
    text = "\n".join(map(json.dumps, rows))
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "without.ids").write_text("tool-0 chat-1")
    command = [
        "train", "router", "--data", str(tmp_path), "--run-dir", str(tmp_path / "run"),
        "--output", str(tmp_path / "out"), "--without", str(tmp_path / "without.ids"),
        "--per-kind", "4", "--tokens", "8", "--epochs", "2",
    ]  # fmt: skip
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "prompts 16" in shown and "tokens/s, bias 0" in shown and "tokens/s, oracle" in shown
    loaded = load_router(tmp_path / "out", engine.target.config.hidden_size)
    assert isinstance(loaded, RouterNet) and set(loaded.positions) >= {"ar", "diffusion"}
    assert main(command) == 0
    assert "prompts 16" not in capsys.readouterr().out  # the rounds were there
    earlier = [
        "--seed",
        "1",
        "--run-dir",
        str(tmp_path / "more"),
        "--earlier",
        str(tmp_path / "run"),
    ]
    assert main([*command, *earlier]) == 0
    known = {name: len(Rounds.read(tmp_path / name).split()[0].prompt) for name in ("run", "more")}
    learned = re.search(r"prefixes (\d+)", capsys.readouterr().out.split("prompts 16")[1])
    assert learned and max(known.values()) < int(learned[1]) <= sum(known.values())
    both = [*command, "--seed", "2", "--run-dir", str(tmp_path / "most")]
    assert main([*both, *(f"--earlier={tmp_path / name}" for name in known)]) == 0
    again = re.search(r"prefixes (\d+)", capsys.readouterr().out.split("prompts 16")[1])
    assert again and int(again[1]) > int(learned[1])
    start = ["--start", str(tmp_path / "out"), "--output", str(tmp_path / "further")]
    assert main([*command, *start]) == 0
    assert "epoch 0" in capsys.readouterr().out
    for options, said in (
        (["--tokens", "0"], "tokens=0"),
        (["--learning-rate", "0"], "learning_rate=0"),
        (["--start", str(tmp_path / "none"), "--seed", "7"], "none"),
        (["--earlier", str(tmp_path / "none")], "settings.json"),
        (["--without", str(tmp_path / "none")], "without"),
        (["--per-kind", "9"], "only"),
    ):
        assert main([*command, *options]) == 2
        assert said in capsys.readouterr().err


def test_rounds_of_other_settings_are_not_taken_for_ours(tmp_path: Path) -> None:
    log_rounds([], tmp_path, {"seed": 0}, lambda line: None)
    with pytest.raises(CheckpointError, match="made with seed 0, not 1"):
        log_rounds([], tmp_path, {"seed": 1}, lambda line: None)


def test_every_kind_is_held_out_where_four_take_turns() -> None:
    n = 72
    one = torch.zeros(n, 2, dtype=torch.long)
    weight = torch.ones(n)
    known, unseen = Rounds(torch.zeros(n, 2), one, one, torch.arange(n), weight, (3, 4)).split()
    assert {int(p) % 4 for p in unseen.prompt} == {int(p) % 4 for p in known.prompt} == {0, 1, 2, 3}


def test_what_never_varied_says_nothing_when_it_does(tmp_path: Path) -> None:
    rows = learnable()
    for row in rows:
        for one in row:
            one.features[1] = 0.5
    log_rounds([partial(iter, one) for one in rows], tmp_path / "run", {}, lambda line: None)
    fit(Rounds.read(tmp_path / "run"), RouterOptions(epochs=1), tmp_path / "out", lambda line: None)
    loaded = load_router(tmp_path / "out", HIDDEN)
    assert isinstance(loaded, RouterNet)
    usual, odd = rows[0][0].features, rows[0][0].features.copy()
    odd[1] = 9.0
    assert odds(loaded, usual, "ar").tolist() == odds(loaded, odd, "ar").tolist()
