"""The real default model: fetched once, exact, lossless, and well drafted."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from whiflash_agents.measure import lossless, speed
from whiflash_agents.measure.methods import COMPARISONS, ORACLE, PROMPT_LOOKUP, TRANSFORMERS
from whiflash_agents.measure.prompts import KINDS, balanced, shipped
from whiflash_engine.checkpoints.resolve import resolve_model
from whiflash_engine.config import RouterConfig, SamplingConfig
from whiflash_engine.engine import Engine
from whiflash_engine.errors import ConfigError

HELLO = ({"role": "user", "content": "hi"},)
pytestmark = [pytest.mark.model, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def engine(default_engine: Engine) -> Engine:
    """In float32, where greedy decoding is exact; other processors have it loaded already."""
    exact = default_engine.target.dtype == torch.float32
    return default_engine if exact else Engine.load(dtype="float32")


def test_logits_agree_with_transformers(engine: Engine) -> None:
    """float32; tolerance 1e-3 absolute on logits of up to 40."""
    from transformers import AutoModelForCausalLM

    folder = resolve_model(None).path
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for prompt in balanced(shipped(), 1):
        ids = prompt.token_ids(engine)
        with torch.inference_mode():
            expected = model(torch.tensor([ids])).logits[0]
        cache = engine.target.new_cache(len(ids))
        logits = engine.target.forward(ids, cache, rows=len(ids)).logits
        torch.testing.assert_close(logits, expected, atol=1e-3, rtol=1e-4)


def test_every_arm_gives_plain_decodings_tokens(engine: Engine) -> None:
    result = lossless.prove(engine, balanced(shipped(), 1), 24, lambda text: None)
    assert result["differences"] == 0, result["explained"]
    assert set(engine.drafters) == {"ar", "diffusion"}


def test_drafts_are_accepted(engine: Engine) -> None:
    ids = shipped()[0].token_ids(engine)
    for name in ("ar", "diffusion"):
        done = engine.complete(
            ids, sampling=SamplingConfig(max_tokens=48), router=RouterConfig(name)
        )
        assert done.stats.acceptance_length > 1.2, name


def test_a_seed_fixes_a_sampled_text(engine: Engine) -> None:
    ids = shipped()[-1].token_ids(engine)
    sampling = SamplingConfig(max_tokens=24, temperature=0.9, top_p=0.9, top_k=50, seed=3)
    texts = [engine.complete(ids, sampling=sampling, router=RouterConfig("ar")) for _ in range(2)]
    assert texts[0].tokens == texts[1].tokens


def test_the_benchmark_reports_every_method(engine: Engine) -> None:
    ways = {name: COMPARISONS["routers"][name] for name in ("plain", "ar", "auto")}
    short = [replace(p, messages=HELLO, tools=()) for p in balanced(shipped(), 1)]
    result = speed.measure(
        engine,
        resolve_model(None).path,
        short,
        4,
        ways,
        lambda text: None,
        oracle=True,
    )
    methods = result["methods"]
    assert isinstance(methods, dict) and set(methods) == {
        TRANSFORMERS,
        PROMPT_LOOKUP,
        ORACLE,
        *ways,
    }
    assert set(methods["auto"]["acceptance_length_by_kind"]) == set(KINDS)


def test_the_untouched_model_has_no_drafters_and_says_so() -> None:
    with pytest.raises(ConfigError, match="router='ar'"):
        Engine.load("smollm2-135m", router="ar")
