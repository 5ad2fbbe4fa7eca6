"""On a GPU: plain decoding's tokens whoever drafts, and the CPU's drafts but for their rounding."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import cast, get_args

import pytest
import torch

from tests import toys
from tests.fake_engine import byte_tokenizer
from tests.fixed_toys import (
    check_boundary,
    check_drafters,
    check_turns,
    check_widths_and_crops,
)
from tests.training_toys import toy_model
from whiflash_agents.measure import lossless
from whiflash_agents.measure.prompts import balanced, shipped
from whiflash_engine.calibrate import calibrate
from whiflash_engine.config import ArmName, RouterConfig, RouterName, SamplingConfig
from whiflash_engine.devices import wait_for
from whiflash_engine.drafters.base import Drafter
from whiflash_engine.engine import Engine
from whiflash_engine.features import FeatureLog
from whiflash_engine.graphs import GraphCapture, graph_capture
from whiflash_engine.law import distribution, draw
from whiflash_engine.layers import Sight, attention
from whiflash_engine.router.costs import CostModel
from whiflash_engine.sampling import Sampler, argmax, peaks
from whiflash_engine.target.base import Target
from whiflash_engine.target.native import NativeTarget
from whiflash_engine.training.chat import Taught
from whiflash_engine.training.llama import load_llama
from whiflash_engine.training.packing import pack, pad

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
GPU = torch.device("cuda")
ROUTERS = [name for name in get_args(RouterName) if name != "neural"]
PROMPT = [i * i % 97 for i in range(40)]
SHORT = SamplingConfig(max_tokens=60)
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    """Tiny random networks on the GPU, in float32."""
    monkeypatch.setattr(toys, "TINY", replace(toys.TINY, vocab_size=300))
    capture, tokenizer = graph_capture(GPU), byte_tokenizer()
    target = toys.tiny_target(device=GPU, capture=capture)
    stops = (cast(int, tokenizer.eos_token_id),)
    return Engine(target, toys.tiny_drafters(target, capture), tokenizer, stop_token_ids=stops)


@pytest.mark.parametrize("rows", [1, 2, 8, 70])
@pytest.mark.parametrize("sight", [Sight(), Sight(window=9), Sight(causal=False)])
def test_attention_is_the_cpus(rows: int, sight: Sight) -> None:
    made = torch.Generator().manual_seed(rows)
    q = torch.randn(rows, 6, 64, generator=made)
    keys, values = torch.randn(2, 1, 2, 101, 64, generator=made)
    here, there = (
        attention(q.to(device), keys.to(device), values.to(device), replace(sight))
        for device in ("cpu", GPU)
    )
    torch.testing.assert_close(there.cpu(), here, atol=1e-5, rtol=1e-4)


def graphs_and_none(window: int | None, monkeypatch: pytest.MonkeyPatch) -> list[NativeTarget]:
    monkeypatch.setattr(toys, "TINY", replace(toys.TINY, sliding_window=window))
    return [toys.tiny_target(device=GPU, capture=capture) for capture in (graph_capture(GPU), None)]


@pytest.mark.parametrize("window", [None, 20])
def test_graphs_of_all_widths_and_crops(
    window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_widths_and_crops(*graphs_and_none(window, monkeypatch))


def test_graphs_over_a_bucket_s_boundary(monkeypatch: pytest.MonkeyPatch) -> None:
    check_boundary(*graphs_and_none(None, monkeypatch))


def test_graphs_of_sequences_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    check_turns(*graphs_and_none(None, monkeypatch))


def test_graphs_of_drafters() -> None:
    check_drafters(toys.tiny_target(device=GPU), GraphCapture(GPU))


@pytest.mark.parametrize("options", [{"top_k": 40}, {"top_p": 0.9}, {"min_p": 0.1}, {}])
def test_choices_are_the_cpus(options: dict[str, float]) -> None:
    logits = 3 * torch.randn(6, 3000, generator=torch.Generator().manual_seed(1))
    config = SamplingConfig(temperature=0.8, **options)  # type: ignore[arg-type]
    assert argmax(logits.to(GPU)) == argmax(logits)
    assert peaks(logits.to(GPU)) == peaks(logits)
    here, there = distribution(logits, config), distribution(logits.to(GPU), config)
    torch.testing.assert_close(there.cpu(), here)
    assert [draw(p, 0.37) for p in there] == [draw(p, 0.37) for p in here]


@pytest.mark.parametrize("grammar", [False, True])
@pytest.mark.parametrize("name", ROUTERS)
def test_greedy_output_equals_plain_decoding(
    name: RouterName, grammar: bool, engine: Engine
) -> None:
    def said(router: RouterName) -> tuple[int, ...]:
        constraint = engine.json_schema(SCHEMA) if grammar else None
        config = RouterConfig(router)
        done = engine.complete(PROMPT, sampling=SHORT, constraint=constraint, router=config)
        return done.tokens

    plain = said("plain")
    own: dict[ArmName, Drafter] = dict(engine.drafters)
    engine.drafters = {arm: toys.Prophet(one, [*PROMPT, *plain]) for arm, one in own.items()}
    assert said(name) == plain


@pytest.mark.parametrize("router", ["ar", "diffusion", "random"])
def test_a_seed_fixes_a_text_also_behind_a_kept_turn(router: RouterName, engine: Engine) -> None:
    config = RouterConfig(router)
    for sampling in (SHORT, SamplingConfig(max_tokens=40, temperature=0.9, top_p=0.95, seed=4)):
        first = engine.complete(PROMPT, sampling=sampling, router=config)
        turn = [*PROMPT, *first.tokens, 7, 8, 9]
        kept = engine.complete(turn, sampling=sampling, router=config)
        fresh = Engine(engine.target, engine.drafters, engine.tokenizer, reuse_bytes=0)
        alone = fresh.complete(turn, sampling=sampling, router=config)
        assert kept.stats.cached >= len(PROMPT) - 2 and kept.tokens == alone.tokens


def test_threads_get_what_they_would_get_alone(engine: Engine) -> None:
    prompts = [[i, i + 1, i + 2] for i in range(8)]
    alone = [engine.complete(p, sampling=SHORT).tokens for p in prompts]
    with ThreadPoolExecutor(4) as pool:
        assert [*pool.map(lambda p: engine.complete(p, sampling=SHORT).tokens, prompts)] == alone


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_runs_and_knows_what_that_costs(dtype: torch.dtype) -> None:
    capture, costs = graph_capture(GPU), CostModel()
    target = toys.tiny_target(dtype=dtype, device=GPU, capture=capture)
    drafters = toys.tiny_drafters(target, capture)
    calibrate(target, drafters, costs)
    plain = costs.expected("plain", 1, 5)
    assert all(seconds > 0 for seconds in plain)
    for arm in drafters:
        assert all(a > b for a, b in zip(costs.expected(arm, 2, 5), plain[1:], strict=True))
    prompt, router = [5, 6, 7], RouterConfig("random")
    rounds = toys.run(target, drafters, prompt, sampling=SHORT, router=router)
    assert sum(len(r.tokens) for r in rounds) == 60
    wait_for(GPU)
    assert torch.cuda.current_stream().query()


def drafts(target: Target, drafters: dict[ArmName, Drafter], ids: Sequence[int]) -> list[object]:
    """Of every drafter behind these tokens, the last of which the target has not seen."""
    output = target.forward(ids[:-1], target.new_cache(len(ids)), rows=1)
    log, found = FeatureLog(output.features.shape[1], target.dtype, target.device), list[object]()
    log.append(output.features)
    for drafter in drafters.values():
        state = drafter.new_state(len(ids))
        drafter.ingest(state, log, ids)
        found.append(drafter.propose(state, ids, drafter.max_draft, Sampler(SHORT)).tokens)
    return found


def test_drafts_are_the_cpus(exact: None) -> None:
    target, capture = toys.tiny_target(), graph_capture(GPU)
    here = drafts(target, toys.tiny_drafters(target), [*range(40)])
    target = toys.tiny_target(device=GPU, capture=capture)
    there = drafts(target, toys.tiny_drafters(target, capture), [*range(40)])
    assert here == there


def test_a_pack_is_the_cpus(tmp_path: Path) -> None:
    """Conversations that share their beginning, under the mask that keeps them apart."""
    folder = toy_model(tmp_path)
    group = [Taught((*range(5, 9), *range(i, i + 6)), (False,) * 6 + (True,) * 4) for i in (1, 20)]
    hidden = []
    for device in ("cpu", "cuda"):
        with torch.device(device):
            ids, _, layout = pad([pack(group), pack(group[:1])])
            hidden.append(load_llama(folder, torch.float32)(ids, layout).cpu())
    torch.testing.assert_close(hidden[1], hidden[0], rtol=1e-3, atol=1e-4)


@pytest.mark.model
def test_the_default_model(exact: None) -> None:
    here, there = (Engine.load(device=device, dtype="float32") for device in ("cpu", "cuda"))
    prompts = balanced(shipped(), 1)
    for prompt in prompts:
        ids = prompt.token_ids(there)
        both = (drafts(e.target, e.drafters, ids) for e in (here, there))
        assert next(both) == next(both), prompt.id
    result = lossless.prove(there, prompts, 48, print)
    assert result["differences"] == 0, result["explained"]
    usual = Engine.load(device="cuda")
    assert usual.target.dtype == torch.bfloat16 and usual.target.device.type == "cuda"
    assert usual.complete(prompts[0].token_ids(usual), sampling=SHORT).tokens
