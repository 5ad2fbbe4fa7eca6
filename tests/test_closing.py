"""A document under a grammar is complete when the tokens run out."""

from __future__ import annotations

import json
import random
from typing import cast

import pytest
import torch

from tests.fake_engine import byte_tokenizer
from whiflash_adapters.formats.base import Ask
from whiflash_adapters.formats.hermes import HERMES
from whiflash_agents.measure.prompts import shipped
from whiflash_engine.closing import Endings, way_out
from whiflash_engine.config import RouterConfig, RouterName, SamplingConfig
from whiflash_engine.constraint import Constraint, GrammarFactory
from whiflash_engine.engine import Engine

TIGHT = {"x-guidance": {"whitespace_flexible": False}}
NESTED = {
    "type": "object", "additionalProperties": False, "required": ["name", "n", "rows"],
    "properties": {
        "name": {"type": "string", "maxLength": 200}, "n": {"type": "integer"},
        "rows": {"type": "array", "minItems": 1, "items": {
            "type": "object", "additionalProperties": False, "required": ["ok"],
            "properties": {"ok": {"type": "boolean"}, "why": {"enum": ["this", "that"]}}}},
    },
}  # fmt: skip
VOCAB = 300


@pytest.fixture(scope="module")
def factory() -> GrammarFactory:
    tokenizer = byte_tokenizer()
    return GrammarFactory(tokenizer.backend_tokenizer, VOCAB, [cast(int, tokenizer.eos_token_id)])


def at_random(constraint: Constraint, total: int, seed: int) -> list[int]:
    """Any allowed token, until the text must stop or the tokens run out."""
    rng, tokens = random.Random(seed), list[int]()
    while len(tokens) < total and not constraint.stopped:
        allowed = constraint.masks(())[1][0].nonzero().flatten().tolist()
        tokens.append(rng.choice(allowed))
        constraint.commit(tokens[-1:])
    return tokens


def text_of(tokens: list[int]) -> str:
    return str(byte_tokenizer().decode(tokens, skip_special_tokens=True))


@pytest.mark.parametrize("seed", range(40))
def test_random_documents_end_in_time(factory: GrammarFactory, seed: int) -> None:
    total = 100 + 5 * seed
    constraint = factory.json_schema(NESTED | TIGHT)
    constraint.close_by(total)
    tokens = at_random(constraint, total, seed)
    assert constraint.is_accepting
    found = json.loads(text_of(tokens))
    assert set(found) == {"name", "n", "rows"} and found["rows"]


def test_without_a_bound_they_do_not(factory: GrammarFactory) -> None:
    cut = 0
    for seed in range(20):
        constraint = factory.json_schema(NESTED | TIGHT)
        at_random(constraint, 100, seed)
        cut += not constraint.is_accepting
    assert cut > 10, "or the test above shows nothing"


def test_masks_along_a_draft_are_those_of_one_token_at_a_time(factory: GrammarFactory) -> None:
    whole, single = (factory.json_schema(NESTED | TIGHT) for _ in range(2))
    for constraint in (whole, single):
        constraint.close_by(90)
    draft = at_random(single, 90, 3)
    single.rollback(single.length)
    legal, masks = whole.masks(draft)
    assert legal == len(draft)
    for row, token in enumerate(draft):
        assert torch.equal(single.masks(())[1][0], masks[row])
        assert single.forced(9)[:1] in ((), (token,))
        single.commit([token])


def test_free_text_is_not_hurried_and_a_call_is_finished(factory: GrammarFactory) -> None:
    tools = next(p for p in shipped() if p.kind == "tool").tools
    hurried, free = (factory.lark(HERMES.grammar(Ask(tools))) for _ in range(2))
    hurried.close_by(8)
    assert torch.equal(hurried.masks(())[1], free.masks(())[1])
    for seed in range(8):
        required = factory.lark(HERMES.grammar(Ask(tools, "required")))
        required.close_by(400)
        text = text_of(at_random(required, 400, seed))
        assert text.rstrip().endswith("</tool_call>")


def test_the_way_out_is_legal_and_leaves_the_matcher_alone(factory: GrammarFactory) -> None:
    constraint = factory.json_schema(NESTED | TIGHT)
    tokenizer = byte_tokenizer()
    endings = Endings.of(lambda text: tokenizer.encode(text, add_special_tokens=False))
    matcher = constraint._matcher
    way = way_out(matcher, endings, 256)
    assert way is not None and way == way_out(matcher, endings, 256)
    assert way_out(matcher, endings, len(way) - 1) is None
    assert constraint.masks(way)[0] == len(way)
    constraint.commit(way)
    assert constraint.is_accepting and json.loads(text_of(list(way)))["rows"]


@pytest.mark.parametrize("name", ["ar", "diffusion", "random", "auto"])
def test_documents_that_are_closed_are_those_of_plain_decoding(
    engine: Engine, name: RouterName
) -> None:
    """The hurry depends on the place in the text only, not on rounds."""
    sampling = SamplingConfig(max_tokens=120)

    def tokens(router: RouterName) -> tuple[int, ...]:
        return engine.complete(
            [5, 6, 7], sampling=sampling, router=RouterConfig(router),
            constraint=engine.json_schema(NESTED | TIGHT),
        ).tokens  # fmt: skip

    assert tokens(name) == tokens("plain")
    json.loads(text_of(list(tokens(name))))
