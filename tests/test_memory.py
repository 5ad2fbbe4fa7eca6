"""What a router learned, kept in a file from run to run."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from tests.test_neural import ARMS, context, net, rounds
from whiflash_engine.config import ArmName, RouterConfig, SamplingConfig
from whiflash_engine.engine import Engine
from whiflash_engine.errors import ConfigError
from whiflash_engine.router.averages import AveragesPolicy
from whiflash_engine.router.memory import keep, recall
from whiflash_engine.router.neural import Learner, NeuralPolicy, RouterNet
from whiflash_engine.router.registry import Routers
from whiflash_engine.router.router import Router


@pytest.mark.parametrize("learned", [False, True])
def test_what_is_kept_is_what_is_recalled(learned: bool, tmp_path: Path) -> None:
    def fresh() -> Learner:
        return NeuralPolicy(net()) if learned else AveragesPolicy()

    policy, path = fresh(), tmp_path / "deeper" / "router.json"
    recall(path, policy, "m")  # not there yet: nothing is known
    for accepted in (3, 3, 1, 3):
        for arm in ARMS[::2]:
            policy.expect(arm, context())
            policy.learn(rounds(arm, accepted))
    keep(path, policy, "m")
    again = fresh()
    recall(path, again, "m")
    for arm in ARMS:
        found = again.expect(arm, context())
        if arm == "retrieval" or not learned:
            assert found == pytest.approx(policy.expect(arm, context()), abs=1e-2)
    if isinstance(again, NeuralPolicy) and isinstance(policy, NeuralPolicy):
        assert again.shift == pytest.approx(policy.shift) and any(again.shift.values())
    assert [p.name for p in path.parent.iterdir()] == ["router.json"]


def test_of_a_file_that_is_bad_in_part_nothing_is_taken(tmp_path: Path) -> None:
    policy, path = NeuralPolicy(net()), tmp_path / "router.json"
    cells = '[[["ar"], [[50], [0]]]]'
    path.write_text(f'{{"version": 2, "model": "m", "shift": {{"ar": 99}}, "cells": {cells}}}')
    with pytest.raises(ConfigError):
        recall(path, policy, "m")
    assert not policy.averages.counts() and not any(policy.shift.values())


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"version": 2}', '{"version": 1, "model": "m", "cells": [], "shift": {}}',
     '{"version": 2, "model": "another", "cells": [], "shift": {}}',
     '{"version": 2, "model": "m", "shift": {}, "cells": [[["ar"], [[1, -1], [0, 0]]]]}',
     '{"version": 2, "model": "m", "shift": {}, "cells": [[["ar"], [[1, 2]]]]}',
     '{"version": 2, "model": "m", "shift": {}, "cells": [[[null], [[1], [1]]]]}',
     '{"version": 2, "model": "m", "shift": {"ar": NaN}, "cells": []}',
     '{"version": 2, "model": "m", "shift": {}, "cells": [[["ar"], [[1], [2]]]]}',
     '{"version": 2, "model": "m", "shift": {"ar": "x"}, "cells": []}'],
)  # fmt: skip
def test_another_file_is_refused_by_name(text: str, tmp_path: Path) -> None:
    path = tmp_path / "router.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"statistics=.*router\.json.*delete it"):
        recall(path, NeuralPolicy(net()), "m")


def test_what_cannot_be_written_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "router.json"
    keep(path, AveragesPolicy(), "m")
    whole = path.read_text()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("whiflash_engine.router.memory.os.replace", full)
    with pytest.raises(OSError, match="No space"):
        keep(path, AveragesPolicy(), "n")
    assert [p.name for p in tmp_path.iterdir()] == ["router.json"]
    assert path.read_text() == whole


def test_an_engine_keeps_them_and_survives_a_folder_that_is_gone(
    engine: Engine, tmp_path: Path
) -> None:
    path = tmp_path / "statistics" / "router.json"

    def with_statistics(where: Path) -> Engine:
        return Engine(
            engine.target, engine.drafters, engine.tokenizer, statistics=where,
            stop_token_ids=engine.stop_token_ids,
        )  # fmt: skip

    one, sampling = with_statistics(path), SamplingConfig(max_tokens=60, temperature=1.0)
    one.complete([5, 6, 7], sampling=replace(sampling, max_tokens=9))
    assert path.is_file()  # a program that gives one short answer keeps what it taught
    for seed in range(20):
        one.complete([5, 6, 7], sampling=replace(sampling, seed=seed))
    assert json.loads(path.read_text())["cells"]
    with_statistics(path)
    path.write_text("?")
    with pytest.raises(ConfigError, match="statistics"):
        with_statistics(path)
    blocked = with_statistics(tmp_path / "file" / "router.json")
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(UserWarning, match="statistics cannot be kept"):
        for seed in range(20):
            blocked.complete([5, 6, 7], sampling=replace(sampling, seed=seed))


PLAIN, AUTO, LONG = RouterConfig("plain"), RouterConfig("auto"), RouterConfig("auto", balance=0.0)
UNLEARNED = RouterConfig(learned=False)


def routers(default: RouterConfig, path: Path, network: RouterNet | None = None) -> Routers:
    return Routers(ARMS, default, network, path, "m", threading.Lock())


def expected(router: Router) -> list[float]:
    return list(router.policy.expect("retrieval", context()))


@pytest.mark.parametrize("default", [PLAIN, AUTO])
@pytest.mark.parametrize("network", [None, net()])
def test_whoever_learns_is_kept_whichever_is_the_default(
    default: RouterConfig, network: RouterNet | None, tmp_path: Path
) -> None:
    path = tmp_path / "router.json"
    one = routers(default, path, network)
    one.get(PLAIN).learn(rounds("plain", 0, 0))
    for accepted in (3, 3, 1, 3):
        one.get(LONG).learn(rounds("retrieval", accepted))
    learned = expected(one.get(LONG))
    assert expected(one.get(AUTO)) == learned  # no dial changes what gets through
    one.ran(8)
    again = routers(default, path, network)
    assert expected(again.get(AUTO)) == pytest.approx(learned, abs=1e-2)
    assert learned != expected(one.fresh(AUTO))


@pytest.mark.parametrize("default", [AUTO, UNLEARNED])
def test_running_averages_are_kept_beside_a_learned_router(
    default: RouterConfig, tmp_path: Path
) -> None:
    path = tmp_path / "router.json"
    one = routers(default, path, net())
    for accepted in (3, 3, 1, 3):
        one.get(AUTO).policy.expect("ar", context())
        one.get(AUTO).learn(rounds("ar", accepted))
        one.get(UNLEARNED).learn(rounds("diffusion", accepted))
    one.ran(8)
    again = routers(default, path, net())
    cases: list[tuple[RouterConfig, ArmName]] = [(AUTO, "ar"), (UNLEARNED, "diffusion")]
    for config, arm in cases:
        learned, fresh = (found.get(config).policy for found in (one, again))
        unused = one.fresh(config).policy
        told = [list(policy.expect(arm, context())) for policy in (learned, fresh, unused)]
        assert told[1] == pytest.approx(told[0], abs=1e-2) and told[2] != pytest.approx(told[0])


def test_who_learns_nothing_keeps_nothing(tmp_path: Path) -> None:
    path = tmp_path / "router.json"
    routers(PLAIN, path).ran(200)
    assert not path.exists()


def test_a_file_is_read_before_the_first_round_that_learns(tmp_path: Path) -> None:
    path = tmp_path / "router.json"
    path.write_text("?")
    found = routers(PLAIN, path)
    for _ in range(2):
        with pytest.raises(ConfigError, match="statistics"):
            found.get(AUTO)
