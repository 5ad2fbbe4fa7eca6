"""Constraints over llguidance, with a byte-level tokenizer small enough to read."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from whiflash_engine.constraint import GrammarFactory, LLGuidanceConstraint
from whiflash_engine.errors import ConstraintError

# The letters of bytes in byte-level BPE; a blank is written Ġ, a newline Ċ.
LETTERS = [*sorted(pre_tokenizers.ByteLevel.alphabet())]
MERGES = [("a", "d"), ("ad", "d"), ("{", '"'), ('"', ":"), ("1", "2"), ("y", "e")]
VOCAB = 320  # more rows than the tokenizer has tokens, as in models with padded heads
END, EOT = "<|end|>", "<|eot|>"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    words = [*LETTERS, *(a + b for a, b in MERGES)]
    bpe = models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=MERGES)
    tokenizer = Tokenizer(bpe)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END, special=True), AddedToken(EOT, special=True)])
    return tokenizer


@pytest.fixture(scope="module")
def stops(tokenizer: Tokenizer) -> list[int]:
    return [tokenizer.get_vocab()[END], tokenizer.get_vocab()[EOT]]


@pytest.fixture(scope="module")
def factory(tokenizer: Tokenizer, stops: list[int]) -> GrammarFactory:
    return GrammarFactory(tokenizer, VOCAB, stops)


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def _texts(tokenizer: Tokenizer, mask: torch.Tensor) -> set[str]:
    allowed = mask.nonzero().flatten().tolist()
    return {tokenizer.decode([i], skip_special_tokens=False) for i in allowed}


def test_masks_say_what_may_follow(
    factory: GrammarFactory, tokenizer: Tokenizer, stops: list[int]
) -> None:
    constraint = factory.lark('start: "a" ("1" | "2")* "d"')
    legal, masks = constraint.masks([])
    assert legal == 0 and masks.shape == (1, VOCAB) and masks.dtype == torch.bool
    assert _texts(tokenizer, masks[0]) == {"a", "ad"}

    legal, masks = constraint.masks(_ids(tokenizer, "a2d"))
    assert legal == 3 and masks.shape == (4, VOCAB)
    assert _texts(tokenizer, masks[1]) == {"1", "2", "12", "d"}
    assert masks[3].nonzero().flatten().tolist() == sorted(stops)


def test_masks_end_at_the_first_illegal_token_and_forbid_it(
    factory: GrammarFactory, tokenizer: Tokenizer
) -> None:
    constraint = factory.lark('start: "a" "1"* "d"')
    draft = _ids(tokenizer, "a1x1d")
    legal, masks = constraint.masks(draft)
    assert legal == 2 and masks.shape == (3, VOCAB)
    assert not masks[2, draft[2]]


def test_masks_leave_the_matcher_where_it_was(
    factory: GrammarFactory, tokenizer: Tokenizer, stops: list[int]
) -> None:
    constraint = factory.lark('start: "a" "1"* "d"')
    constraint.commit(_ids(tokenizer, "a"))
    before = constraint.masks([])[1]
    for draft in ("11", "1x", "d", "111d"):
        constraint.masks([*_ids(tokenizer, draft), stops[0]])
        constraint.forced(5)
        assert torch.equal(constraint.masks([])[1], before)
        assert not constraint.stopped and not constraint.is_accepting


def test_stop_tokens_are_allowed_exactly_where_the_grammar_accepts(
    factory: GrammarFactory, tokenizer: Tokenizer, stops: list[int]
) -> None:
    constraint = factory.lark('start: "a" ("1" "2")*')
    text = _ids(tokenizer, "a")
    for piece, accepting in (("a", True), ("1", False), ("2", True)):
        constraint.commit(_ids(tokenizer, piece))
        mask = constraint.masks([])[1][0]
        assert constraint.is_accepting == accepting
        assert mask[stops].tolist() == [accepting] * 2
    # A draft may run over the end; nothing but stop tokens follows the first of them.
    legal, masks = constraint.masks([stops[1], *text])
    assert legal == 1 and masks[1].nonzero().flatten().tolist() == sorted(stops)


def test_commit_and_rollback_over_the_end(
    factory: GrammarFactory, tokenizer: Tokenizer, stops: list[int]
) -> None:
    constraint = factory.lark('start: "a" "1"')
    seen: list[torch.Tensor] = []
    tokens = [*_ids(tokenizer, "a1"), stops[0], stops[0]]
    for token in tokens:
        seen.append(constraint.masks([])[1])
        constraint.commit([token])
    assert constraint.stopped and constraint.is_accepting and constraint.forced(3) == ()
    for count in range(1, len(tokens) + 1):
        constraint.rollback(count)
        assert torch.equal(constraint.masks([])[1], seen[-count])
        constraint.commit(tokens[-count:])
    with pytest.raises(ValueError, match="roll back"):
        constraint.rollback(9)


def test_an_illegal_commit_changes_nothing(
    factory: GrammarFactory, tokenizer: Tokenizer, stops: list[int]
) -> None:
    constraint = factory.lark('start: "a" "1" "d"')
    before = constraint.masks([])[1]
    a, one, d = _ids(tokenizer, "a1d")
    for tokens in ([one], [a, d], [a, stops[0]], [a, one, d, stops[0], a]):
        with pytest.raises(ConstraintError, match="does not allow"):
            constraint.commit(tokens)
        assert torch.equal(constraint.masks([])[1], before)
    constraint.commit([a, one, d, stops[0]])


def test_forced_tokens_are_canonical_and_legal(
    factory: GrammarFactory, tokenizer: Tokenizer
) -> None:
    constraint = factory.json_schema(
        {
            "type": "object", "properties": {"add": {"type": "integer"}},
            "required": ["add"], "additionalProperties": False,
            "x-guidance": {"whitespace_flexible": False},
        }
    )  # fmt: skip
    forced = constraint.forced(10)
    assert list(forced) == _ids(tokenizer, '{"add":')[: len(forced)] and len(forced) >= 2
    assert constraint.forced(1) == forced[:1] and constraint.forced(0) == ()
    assert constraint.masks(forced)[0] == len(forced)


def _accepts(constraint: LLGuidanceConstraint, tokens: Sequence[int]) -> bool:
    legal, _ = constraint.masks(tokens)
    if legal == len(tokens):
        constraint.commit(tokens)
        return constraint.is_accepting
    return False


@pytest.mark.parametrize(("text", "ok"), [('{"add":12}', True), ('{"add":"x"}', False)])
def test_json_schema(factory: GrammarFactory, tokenizer: Tokenizer, text: str, ok: bool) -> None:
    schema = {"type": "object", "properties": {"add": {"type": "integer"}}, "required": ["add"]}
    assert _accepts(factory.json_schema(schema), _ids(tokenizer, text)) is ok


def test_grammars_that_do_not_compile(factory: GrammarFactory) -> None:
    with pytest.raises(ConstraintError):
        factory.lark('start: "a" missing_rule')
    with pytest.raises(ConstraintError):
        factory.json_schema({"type": "no such type"})
    with pytest.raises(ConstraintError, match="not a JSON schema"):
        factory.json_schema({"type": object()})
    with pytest.raises(ConstraintError):
        factory.json_schema({"type": "string", "pattern": "(unclosed"})


def test_factory_from_a_file_and_padding_of_the_callers_tokenizer(
    tokenizer: Tokenizer, stops: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.enable_padding(length=8)
    try:
        tokenizer.save(str(path))
        GrammarFactory(tokenizer, VOCAB, stops)
        assert tokenizer.padding is not None
    finally:
        tokenizer.no_padding()
    constraint = GrammarFactory(path, VOCAB, stops).lark('start: "add"')
    assert constraint.forced(8) == tuple(_ids(tokenizer, "add"))
