"""A document under a grammar is complete when the tokens run out."""

from __future__ import annotations

import json
import random
from typing import cast

import jsonschema
import pytest
import torch

from tests.fake_engine import byte_tokenizer
from tests.test_formats import TOOLS, tokenizer_of
from whiflash_adapters.formats.base import Ask
from whiflash_adapters.formats.choose import FORMATS
from whiflash_adapters.formats.hermes import HERMES
from whiflash_agents.measure.prompts import shipped
from whiflash_engine.closing import Endings, way_out
from whiflash_engine.config import RouterConfig, RouterName, SamplingConfig
from whiflash_engine.constraint import GrammarFactory, LLGuidanceConstraint
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


def record(**fields: object) -> dict[str, object]:
    return {
        "type": "object", "additionalProperties": False, "required": list(fields),
        "properties": fields,
    }  # fmt: skip


TEXT, INTEGER = {"type": "string"}, {"type": "integer"}
AWKWARD: dict[str, dict[str, object]] = {
    "above zero": record(notes=TEXT, x={"type": "number", "exclusiveMinimum": 0}),
    "share": record(notes=TEXT, x={"type": "number", "exclusiveMinimum": 0, "maximum": 1}),
    "thousands": record(notes=TEXT, x={"type": "integer", "minimum": 1000}),
    "email": record(notes=TEXT, x={"type": "string", "format": "email"}),
    "uri": record(notes=TEXT, x={"type": "string", "format": "uri"}),
    "date-time": record(notes=TEXT, x={"type": "string", "format": "date-time"}),
    "code": record(notes=TEXT, x={"type": "string", "pattern": "^[A-Z]+-[0-9]+$"}),
    "as and b": record(notes=TEXT, x={"type": "string", "pattern": "^a+b$"}),
    "long": record(notes=TEXT, x={"type": "string", "minLength": 12}),
    "rows": record(
        notes=TEXT, x={"type": "array", "minItems": 4, "items": record(a=INTEGER, b=TEXT)}
    ),
    "optional": record(notes=TEXT) | {
        "properties": {"notes": TEXT, "x": record(c=TEXT, d=TEXT, e=INTEGER), "y": TEXT}
    },
    "map": {"type": "object", "additionalProperties": INTEGER},
    "either": {"anyOf": [record(x=TEXT), record(y={"type": "array", "items": TEXT})]},
}  # fmt: skip


@pytest.fixture(scope="module")
def factory() -> GrammarFactory:
    tokenizer = byte_tokenizer()
    return GrammarFactory(tokenizer.backend_tokenizer, VOCAB, [cast(int, tokenizer.eos_token_id)])


def at_random(constraint: LLGuidanceConstraint, total: int, seed: int) -> list[int]:
    """Any allowed token, until the text must stop or the tokens run out."""
    rng, tokens = random.Random(seed), list[int]()
    while len(tokens) < total and not constraint.stopped:
        allowed = constraint.masks(())[1][0].nonzero().flatten().tolist()
        tokens.append(rng.choice(allowed))
        constraint.commit(tokens[-1:])
    return tokens


def text_of(tokens: list[int]) -> str:
    return str(byte_tokenizer().decode(tokens, skip_special_tokens=True))


@pytest.mark.parametrize("seed", range(0, 40, 2))
def test_random_documents_end_in_time(factory: GrammarFactory, seed: int) -> None:
    total = 100 + 5 * seed
    constraint = factory.json_schema(NESTED | TIGHT)
    constraint.close_by(total)
    tokens = at_random(constraint, total, seed)
    assert constraint.is_accepting
    found = json.loads(text_of(tokens))
    assert set(found) == {"name", "n", "rows"} and found["rows"]


@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_values_do_not_stand_in_the_way(factory: GrammarFactory, name: str) -> None:
    """Where the first digit that comes to mind leads nowhere, and signs are needed."""
    for seed in range(3):
        total = 200 + 14 * seed
        constraint = factory.json_schema(AWKWARD[name] | TIGHT)
        constraint.close_by(total)
        found = json.loads(text_of(at_random(constraint, total, seed)))
        jsonschema.validate(found, AWKWARD[name])


def test_a_document_whose_end_is_long_is_finished_too(factory: GrammarFactory) -> None:
    rows = {"type": "array", "minItems": 30, "items": record(a=INTEGER, b=TEXT)}
    constraint = factory.json_schema(record(notes=TEXT, rows=rows) | TIGHT)
    constraint.close_by(1200)
    found = json.loads(text_of(at_random(constraint, 1200, seed=0)))
    assert len(found["rows"]) >= 30


def test_nothing_long_is_begun_that_could_not_be_ended() -> None:
    """Also where one token ends a text and begins the next row or an optional part."""
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(['","', '"},', '"},{"', '",'])
    factory = GrammarFactory(
        tokenizer.backend_tokenizer, VOCAB, [cast(int, tokenizer.eos_token_id)]
    )
    row = record(**{f"field_{i}": TEXT for i in range(5)})
    optional = record(a=TEXT) | {"properties": {"a": TEXT, "detail": row}}
    for schema in ({"type": "array", "items": row, "minItems": 1}, optional):
        for total in range(90, 220, 13):
            constraint = factory.json_schema(schema | TIGHT)
            constraint.close_by(total)
            tokens: list[int] = []
            while len(tokens) < total and not constraint.stopped:
                allowed = constraint.masks(())[1][0].nonzero().flatten().tolist()
                tokens.append(max(allowed))  # the added ones come last
                constraint.commit(tokens[-1:])
            json.loads(str(tokenizer.decode(tokens, skip_special_tokens=True)))


def test_no_second_call_is_begun_without_room_for_it(factory: GrammarFactory) -> None:
    """And a call that ended by itself was not led to its end."""
    fields = {f"field_{i}": TEXT for i in range(8)}
    tool = {"type": "function", "function": {"name": "book", "parameters": record(**fields)}}
    call = HERMES.write([("book", dict.fromkeys(fields, "v"))])
    encode = byte_tokenizer().encode
    one, more = (encode(text, add_special_tokens=False) for text in (call, "\n" + call))
    for spare in (40, 90, len(one) - 20):
        total = len(one) + spare
        constraint = factory.lark(HERMES.grammar(Ask([tool], "required")), HERMES.signposts)
        constraint.close_by(total)
        assert constraint.masks(one)[0] == len(one)
        constraint.commit(one)
        assert constraint.is_accepting and constraint.masks(more)[0] == 0
        constraint.commit([cast(int, byte_tokenizer().eos_token_id)])
        assert not constraint.narrowed


def test_letters_of_many_bytes_are_no_reason_to_search_for_long(factory: GrammarFactory) -> None:
    """Several beginnings of several values are open at once."""
    values = ["東京都", "東海道", "京都府", "大阪府", "大分県"]
    schema = {"type": "array", "items": {"enum": values}, "minItems": 12}
    constraint = factory.json_schema(schema | TIGHT)
    constraint.close_by(260)
    steps = 0

    def counting(*given: object, **options: object) -> object:
        nonlocal steps
        steps += 1
        return way_out(*given, **options)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("whiflash_engine.deadline.way_out", counting)
        json.loads(text_of(at_random(constraint, 260, 1)))
    assert steps < 3 * 260


def test_a_document_that_cannot_be_finished_is_not_hurried(factory: GrammarFactory) -> None:
    hopeless, free = (factory.json_schema(record(first=TEXT, then=TEXT) | TIGHT) for _ in range(2))
    hopeless.close_by(20)
    for constraint in (hopeless, free):
        constraint.commit(byte_tokenizer().encode('{"first":"', add_special_tokens=False))
    assert torch.equal(hopeless.masks(())[1], free.masks(())[1])


def test_what_comes_later_keeps_its_room(factory: GrammarFactory) -> None:
    """A text that never ends is closed while the values behind it can still be said."""
    constraint = factory.json_schema(record(text=TEXT, path=TEXT, keep={"type": "boolean"}) | TIGHT)
    constraint.close_by(100)
    said = byte_tokenizer().encode('{"text":"' + "a" * 100, add_special_tokens=False)
    while constraint.masks(said[:1])[0]:
        constraint.commit([said.pop(0)])
    assert constraint.narrowed is False and 100 - constraint.length > 30
    rest = byte_tokenizer().encode('","path":"/tmp","keep":true}', add_special_tokens=False)
    assert constraint.masks(rest)[0] == len(rest), "all of it may be said, and nothing is invented"
    constraint.commit(rest)
    assert constraint.narrowed and constraint.is_accepting


def test_a_draft_that_fails_leaves_nothing_behind(factory: GrammarFactory) -> None:
    """Drafted by and by, with wrong tokens among it, a text meets the masks of one at a time."""
    for seed in range(6):
        name = list(AWKWARD)[seed]
        drafted, single = (factory.json_schema(AWKWARD[name] | TIGHT) for _ in range(2))
        for constraint in (drafted, single):
            constraint.close_by(160)
        text, rng = at_random(single, 160, seed), random.Random(seed)
        single.rollback(single.length)
        while drafted.length < len(text):
            at, good = drafted.length, rng.randrange(6)
            draft = text[at : at + good]
            wrong = [rng.randrange(30, 100) for _ in range(rng.randrange(4))]
            drafted.forced(8)
            _, masks = drafted.masks([*draft, *wrong])
            for row, token in enumerate(text[at : at + good + 1]):
                assert torch.equal(masks[row], single.masks(())[1][0])
                single.commit([token])
            drafted.commit(text[at : at + good + 1])
        assert drafted.narrowed == single.narrowed


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_leads_from_thinking_to_a_call(name: str) -> None:
    form = FORMATS[name]
    tokenizer = tokenizer_of(form)
    factory = GrammarFactory(
        tokenizer.backend_tokenizer, len(tokenizer), [cast(int, tokenizer.eos_token_id)]
    )
    ask = Ask(TOOLS, "required", reasoning=True, tokens=tokenizer.get_added_vocab())
    constraint = factory.lark(form.grammar(ask), form.signposts)
    constraint.close_by(300)
    thought = tokenizer.encode("I wonder about it. " * 40, add_special_tokens=False)
    while constraint.masks(thought[:1])[0]:
        constraint.commit([thought.pop(0)])
    while not constraint.is_accepting:
        constraint.commit([int(constraint.masks(())[1][0].nonzero()[0])])
    assert 200 < constraint.length <= 300 and constraint.narrowed


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
        required = factory.lark(HERMES.grammar(Ask(tools, "required")), HERMES.signposts)
        required.close_by(400)
        text = text_of(at_random(required, 400, seed))
        assert text.rstrip().endswith("</tool_call>")


def test_the_way_out_is_legal_and_leaves_the_matcher_alone(factory: GrammarFactory) -> None:
    constraint = factory.json_schema(NESTED | TIGHT)
    tokenizer = byte_tokenizer()
    endings = Endings.of(
        lambda text: tokenizer.encode(text, add_special_tokens=False), tokenizer.get_vocab()
    )
    matcher = constraint._matcher
    way = way_out(matcher, endings, 256)
    assert way is not None and way == way_out(matcher, endings, 256)
    assert way_out(matcher, endings, len(way.tokens) - 1) is None
    assert constraint.masks(way.tokens)[0] == len(way.tokens)
    constraint.commit(way.tokens)
    assert constraint.is_accepting and json.loads(text_of(list(way.tokens)))["rows"]


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

    found = tokens(name)
    assert found == tokens("plain")
    json.loads(text_of(list(found)))


def test_what_was_led_to_its_end_says_so(engine: Engine) -> None:
    def reason(most: int) -> str:
        done = engine.complete(
            [5, 6, 7], sampling=SamplingConfig(max_tokens=most),
            constraint=engine.json_schema(record(a={"type": "boolean"}) | TIGHT),
        )  # fmt: skip
        json.loads(text_of(list(done.tokens)))
        return done.finish_reason

    assert reason(200) == "stop"
    constraint = engine.json_schema(record(notes=TEXT) | TIGHT)
    done = engine.complete([5, 6, 7], sampling=SamplingConfig(max_tokens=60), constraint=constraint)
    json.loads(text_of(list(done.tokens)))
    assert done.finish_reason == "length"
