"""The measurements behind the weights' card, on tiny random networks and toy rows."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from transformers import GPT2Config, LlamaConfig

from tests.toys import Prophet
from tests.training_toys import write_lines
from whiflash_agents.cli import main
from whiflash_agents.measure.calls import Case, Score, cases, measure_calls
from whiflash_agents.measure.calls import judge as judge_text
from whiflash_agents.measure.drafting import measure_drafting
from whiflash_agents.measure.grammars import judge, judge_folder
from whiflash_agents.measure.pairs import filled, pairs
from whiflash_agents.measure.positions import positions
from whiflash_agents.measure.prompts import Prompt, shipped
from whiflash_agents.measure.start import PromptStart
from whiflash_agents.measure.table import scores_table
from whiflash_engine.config import RouterConfig
from whiflash_engine.constraint import GrammarFactory
from whiflash_engine.drafters.base import Chooser, DraftState, Proposal
from whiflash_engine.engine import Engine
from whiflash_engine.errors import ConfigError, ModelNotFoundError
from whiflash_engine.lookup import Lookup
from whiflash_engine.router.neural import features
from whiflash_engine.router.recent import Recent
from whiflash_engine.sequence import MAX_COPY
from whiflash_engine.training.gold_match import Accepted
from whiflash_engine.training.rounds import ARMS, DRAFTERS
from whiflash_engine.training.rows import Json


def silent(_: str) -> None:
    pass


def short(kind: str) -> Prompt:
    """A byte tokenizer makes much of many words."""
    prompt = next(p for p in shipped() if p.kind == kind)
    return replace(prompt, messages=[{"role": "user", "content": "hi"}])


def tokens_of(engine: Engine, start: PromptStart, grammar: bool) -> list[int]:
    return [t for r in start.run(RouterConfig("plain"), grammar) for t in r.tokens]


@pytest.mark.parametrize("grammar", [False, True])
def test_pairs_walk_through_the_text_that_plain_decoding_writes(
    engine: Engine, grammar: bool
) -> None:
    start = PromptStart(engine, short("json"), 24)
    plain = tokens_of(engine, start, grammar)
    found = list(pairs(start, grammar, random.Random(0)))
    assert start.sequence.tokens[len(start.ids) :] == plain
    assert all(set(pair.lengths) == {"ar", "diffusion"} for pair in found)
    assert all(n >= 1 for pair in found for n in pair.lengths.values())
    assert len(found) <= len(plain)


@pytest.mark.parametrize("grammar", [False, True])
def test_what_is_read_off_the_text_is_what_the_target_would_have_said(
    engine: Engine, grammar: bool
) -> None:
    start = PromptStart(engine, short("json"), 80)
    known = [*start.ids, *tokens_of(engine, start, grammar)]
    engine.drafters = {arm: Prophet(one, known) for arm, one in engine.drafters.items()}
    judged = list(pairs(start, grammar, random.Random(0)))
    found = list(positions(start, grammar, random.Random(0)))
    assert start.sequence.tokens == known
    assert len(found) <= len(known) - len(start.ids)
    met = 0
    for pair in judged:
        theirs = features(pair.context)[: -len(ARMS)]  # without what the arms did lately
        same = [one for one in found if np.allclose(one.features[: -len(ARMS)], theirs, 1e-4, 1e-4)]
        assert same or grammar  # rounds end within a forced stretch here, and behind it there
        for one in same:
            met += 1
            for arm, (accepted, drafted) in zip(DRAFTERS, one.tried, strict=False):
                assert drafted <= pair.tried[arm][1]
                assert accepted == min(pair.tried[arm][0], drafted)
    assert met >= 3


class Right(Prophet):
    """Gets every token through."""

    def propose(
        self, state: DraftState, tokens: Sequence[int], count: int, chooser: Chooser,
        known: Sequence[int] = (), floor: float = 0.0,
    ) -> Proposal:  # fmt: skip
        return Proposal(tuple(self._known[len(tokens) :][:count]))


def stopped_within(start: PromptStart, grammar: bool) -> int:
    """Drafters that know the text, and a stop token in the midst of it: where the text ends."""
    known = [*start.ids, *tokens_of(start.engine, start, grammar)]
    drafters = start.engine.drafters
    start.engine.drafters = {arm: Right(one, known) for arm, one in drafters.items()}
    text = known[len(start.ids) :]
    rounds = [done.max_draft + 1 for done in drafters.values()]  # none of them ends with it
    stop = max(
        i
        for i, token in enumerate(text[:-2])
        if token not in text[:i] and all((i + 1) % whole for whole in rounds)
    )
    start.sampling = replace(start.sampling, stop_token_ids=(text[stop],))
    return len(start.ids) + stop + 1


def test_nothing_counts_behind_the_stop_token(engine: Engine) -> None:
    start = PromptStart(engine, short("json"), 60)
    end = stopped_within(start, grammar=False)
    found = list(pairs(start, False, random.Random(0)))
    assert len(start.sequence.tokens) == end
    ends = [pair.context.position + max(pair.lengths.values()) for pair in found]
    assert max(ends) == ends[-1] == end
    assert all(passed == drafted for passed, drafted in found[-1].tried.values())


def test_nothing_is_filled_in_behind_the_stop_token(engine: Engine) -> None:
    start = PromptStart(engine, short("json"), 60)
    end = stopped_within(start, grammar=True)
    rounds = list(filled(start, clamp=False))
    assert len(start.ids) + sum(r.length for r in rounds) == end


class Wrong(Prophet):
    """Never gets a token through."""

    def propose(
        self, state: DraftState, tokens: Sequence[int], count: int, chooser: Chooser,
        known: Sequence[int] = (), floor: float = 0.0,
    ) -> Proposal:  # fmt: skip
        return Proposal(tuple(t ^ 1 for t in self._known[len(tokens) :][:count]))


def test_positions_weigh_as_often_as_rounds_begin_there(engine: Engine) -> None:
    start = PromptStart(engine, short("chat"), 40)
    known = [*start.ids, *tokens_of(engine, start, False)]
    engine.drafters = {
        "ar": Wrong(engine.drafters["ar"], known),
        "diffusion": Prophet(engine.drafters["diffusion"], known),
    }
    found = list(positions(start, False, random.Random(1)))
    count = len(known) - len(start.ids)
    turns = [[one.tried[0], one.tried[1], *([one.tried[2]] if one.tried[2][1] else [])]
             for one in found]  # fmt: skip
    ends = [[min(i + 1 + got, count) for got, _ in some] for i, some in enumerate(turns)]
    assert {b - a for a, b, *_ in ends} == {0, 1, 2, 3, 4}
    assert {len(some) for some in ends} == {2, 3}  # with and without something to copy
    expected = [1.0] + [0.0] * count
    for i, some in enumerate(ends):
        for end in some:
            expected[end] += expected[i] / len(some)
    assert [one.weight for one in found] == pytest.approx(expected[:count])
    for i, one in enumerate(found):
        behind = len(start.ids) + i
        copied = Lookup().draft(known[:behind], MAX_COPY)[0]
        same = [a == b for a, b in zip(copied, known[behind:], strict=False)]
        accepted, drafted = one.tried[ARMS.index("retrieval")]
        assert accepted == [*same[:drafted], False].index(False)
        assert drafted == min(len(copied), count - i - 1)  # the bonus token needs room
    # what the arms got through is told when the round is over, not within it
    shares = [dict(zip(ARMS, one.features[-len(ARMS) :].tolist(), strict=True)) for one in found]
    at, recent = 0, Recent()
    while at < count:
        for arm, trial, end in zip(ARMS, found[at].tried, ends[at], strict=False):
            after = Recent()
            after.share = recent.share
            after.add(arm, *trial)
            if end == count or shares[end] == pytest.approx(after.share):
                break
        else:
            pytest.fail(f"nothing explains what is told behind {at}")
        assert all(share == pytest.approx(recent.share) for share in shares[at + 1 : end])
        at, recent = end, after


@pytest.mark.parametrize("clamp", [False, True])
def test_clamped_rows_change_no_text_and_save_rounds(engine: Engine, clamp: bool) -> None:
    prompt = replace(
        short("json"),
        schema={
            "type": "object", "additionalProperties": False, "required": ["first", "second"],
            "properties": {"first": {"type": "boolean"}, "second": {"type": "boolean"}},
            "x-guidance": {"whitespace_flexible": False},
        },
    )  # fmt: skip
    start = PromptStart(engine, prompt, 80)
    plain = tokens_of(engine, start, True)
    rounds = list(filled(start, clamp=clamp))
    assert start.sequence.tokens[len(start.ids) :] == plain
    assert any(r.forced for r in rounds)
    if clamp:
        assert all(r.length > r.forced or r.length == start.sequence.end for r in rounds[:-1])
        assert len(rounds) < len(plain) / 2, "byte by byte, most of this object is forced"


def test_figures_of_both_drafters(engine: Engine) -> None:
    prompts = [short(kind) for kind in ("tool", "json", "chat")]
    found = measure_drafting(engine, prompts, 8, silent)
    assert set(found["acceptance_length"]) == {"tool", "tool grammar", "json", "json grammar",
                                               "chat", "all"}  # fmt: skip
    for better in found["pairs"].values():
        assert better["ar_better"] + better["diffusion_better"] <= 1
        assert better["best_of_both"] >= 1
    assert (
        sum(n["rounds"] for name, n in found["pairs"].items() if name.startswith("span"))
        == sum(
            n["rounds"] for name, n in found["pairs"].items() if name in found["acceptance_length"]
        )
        - found["pairs"]["all"]["rounds"]
    )
    assert found["fill_in"]["clamped"] >= found["fill_in"]["masked"] >= 1
    json.dumps(found)


CALL = '<tool_call>\n{{"name": "{name}", "arguments": {{"a": {a}}}}}\n</tool_call>'
TOOLS: tuple[Json, ...] = (
    {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}},
)
GOLD = Accepted("add", {"a": [1]}, nested=False)


@pytest.mark.parametrize(
    ("case", "text", "wanted"),
    [
        (Case("bfcl", (), TOOLS, gold=GOLD), CALL.format(name="add", a=1), Score(1, 1, 1)),
        (Case("bfcl", (), TOOLS, gold=GOLD), CALL.format(name="add", a=2), Score(1, 1, 0)),
        (Case("bfcl", (), TOOLS, gold=GOLD), CALL.format(name="sub", a=1), Score(1, 0, 0)),
        (Case("bfcl", (), TOOLS, gold=GOLD), "I would add them.", Score(1, 0, 0)),
        (Case("no tool fits", (), TOOLS), "I cannot do that.", Score(1, 1)),
        (Case("talk", (), (), talk=True), "Texas has 268,596 square miles.", Score(1, 1)),
        (Case("talk", (), (), talk=True), "None of the given tools can say.", Score(1, 0)),
        (Case("talk", ({"content": "What is a tool?"},), (), talk=True), "A tool.", Score(1, 1)),
        (Case("no tool fits", (), TOOLS), CALL.format(name="add", a=1), Score(1, 0)),
        (Case("gsm8k_tools", (), TOOLS, number=7.0), CALL.format(name="add", a='"3 + 4"'),
         Score(1, 1, 0, 1)),
        (Case("mawps", (), (), number=7.0), "So there are 7 apples.", Score(1, 0, 0, 1)),
        (Case("mawps", (), (), number=7.0), "So there are 8 apples.", Score(1, 0, 0, 0)),
        (Case("answers", (), TOOLS, word="Monday"), "It is a Monday.", Score(1, 0, 0, 1)),
    ],
)  # fmt: skip
def test_what_counts_as_right(case: Case, text: str, wanted: Score) -> None:
    score = Score()
    judge_text(score, case, text)
    assert score == wanted


def gold_data(root: Path) -> Path:
    """One row of every source that is measured."""
    function = {"name": "add", "parameters": {
        "type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}}  # fmt: skip
    tools = [{"type": "function", "function": function}]
    refs: dict[str, object] = {
        "bfcl": {"bfcl_id": "simple_1", "ground_truth": [{"add": {"a": [1]}}]},
        "seal_tools": {"calling": [{"api": "add", "parameters": {"a": 1}}]},
        "snips": {"gold": {"name": "add", "args": {"a": 1}}},
        "when2call": {"behaviour": "cannot_answer"}, "gsm8k_tools": {"answer": "7"},
        "gsm8k_train": {"answer": "7"}, "svamp": {"answer": 7.0},
        "mawps": {"answer": ["7"], "equations": ["x=3+4"]},
        "nq_search_tools": {"answer": ["Paris"]}, "nq_open": {}, "dolly": {},
    }  # fmt: skip
    for source, ref in refs.items():
        plain = source in ("gsm8k_train", "svamp", "mawps", "nq_open", "dolly")
        row: dict[str, object] = {
            "id": f"{source}-1", "kind": "reason" if plain else "tool", "source": source,
            "messages": [{"role": "user", "content": "How many?"}],
            "tools": None if plain else tools, "schema": None,
        }  # fmt: skip
        write_lines(root / "dev" / f"{source}.jsonl.gz", [row])
        write_lines(root / "dev_refs" / f"{source}.jsonl.gz", [{"id": row["id"], "ref": ref}])
    return root


def test_rows_of_every_group_are_measured(engine: Engine, tmp_path: Path) -> None:
    data = gold_data(tmp_path)
    groups = {case.group for case in cases(data)}
    assert groups >= {"bfcl", "seal_tools", "snips", "no tool fits", "gsm8k_tools",
                      "mawps without tools", "composed calls", "answers to results",
                      "nq_open without tools", "dolly without tools"}  # fmt: skip
    template = str(engine.tokenizer.chat_template)
    found = measure_calls(
        engine, data, per_group=1, tokens=3, max_prompt=900, template=template, report=silent
    )
    assert found["bfcl"]["rows"] == 1 and found["mawps without tools"]["rows"] == 1
    assert scores_table({"toy": found}).row_count == len(found)


def test_a_group_that_is_full_is_not_rendered(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered: list[str] = []
    render = engine.tokenizer.apply_chat_template

    def counting(messages: list[Json], **options: object) -> object:
        rendered.append(str(messages))
        return render(messages, **options)

    monkeypatch.setattr(engine.tokenizer, "apply_chat_template", counting)
    monkeypatch.setattr(
        "whiflash_agents.measure.calls.cases",
        lambda _: [Case("talk", ({"role": "user", "content": f"{n}?"},), (), talk=True)
                   for n in range(3)],
    )  # fmt: skip
    template = str(engine.tokenizer.chat_template)
    found = measure_calls(
        engine, tmp_path, per_group=2, tokens=2, max_prompt=900, template=template, report=silent
    )
    assert found["talk"]["rows"] == 2 == len(rendered)


def test_every_model_is_judged_by_its_own_rows() -> None:
    scores = {
        "one": {"bfcl": {"rows": 4, "right": 2, "exact": 1, "solved": 0}},
        "other": {"bfcl": {"rows": 2, "right": 2, "exact": 1, "solved": 0}},
    }
    columns = scores_table(scores).columns
    assert [list(column.cells) for column in columns] == [
        ["2-4 bfcl"], ["50 / 25 / 0"], ["100 / 50 / 0"]
    ]  # fmt: skip


def test_every_model_is_found_before_one_is_loaded(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def load(*_: object, **__: object) -> Engine:
        raise AssertionError("a model is loaded")

    def resolve(name: str, **_: object) -> SimpleNamespace:
        if name == "/nope":
            raise ModelNotFoundError(f"no model {name!r}")
        return SimpleNamespace(path=tmp_path / name)

    for name, config in (("default", LlamaConfig()), ("other", GPT2Config())):
        config.save_pretrained(tmp_path / name)
    monkeypatch.setattr(Engine, "load", load)
    monkeypatch.setattr("whiflash_engine.checkpoints.resolve.resolve_model", resolve)
    options = ["--data", str(gold_data(tmp_path)), "--model", "default", "--model"]
    assert main(["evaluate", "calls", *options, "/nope"]) == 2
    assert "/nope" in capsys.readouterr().err
    # which only the native runner computes in
    assert main(["evaluate", "calls", *options, "other", "--dtype", "int8"]) == 2
    assert "dtype='int8'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["calls", "--data", "/no/such"], "/no/such"),
        (["grammar", "--data", "/no/such"], "/no/such"),
        (["calls", "--data", ".", "--tokens", "0"], "tokens=0"),
        (["drafters", "--tokens", "0"], "tokens=0"),
        (["drafters", "--per-kind", "0"], "per-kind=0"),
        (["drafters", "--data", "/no/such"], "/no/such"),
    ],
)
def test_bad_options_are_told_at_once(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def load(*_: object, **__: object) -> Engine:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr(Engine, "load", load)
    assert main(["evaluate", *arguments]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"schema": {}}, "tests"),
        ({"tests": []}, "schema"),
        ({"schema": {}, "tests": [{"data": 1}]}, "valid"),
    ],
)
def test_rows_that_cannot_be_judged_are_named(
    row: dict[str, object], said: str, engine: Engine, tmp_path: Path
) -> None:
    write_lines(tmp_path / "rows.jsonl.gz", [{"schema": True, "tests": []}, row])
    size = engine.target.config.vocab_size
    factory = GrammarFactory(engine.tokenizer.backend_tokenizer, size, list(engine.stop_token_ids))
    with pytest.raises(ConfigError, match=rf"data=.*rows\.jsonl\.gz:2.*{said}"):
        judge_folder(tmp_path, factory, engine.tokenizer)


def test_instances_are_judged_against_their_schema(engine: Engine) -> None:
    size = engine.target.config.vocab_size
    factory = GrammarFactory(engine.tokenizer.backend_tokenizer, size, list(engine.stop_token_ids))
    rows: list[dict[str, object]] = [
        {"schema": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]},
         "tests": [{"data": {"n": 1}, "valid": True}, {"data": {"n": "1"}, "valid": False},
                   {"data": {}, "valid": False}, {"data": {"n": 2}, "valid": False}]},
        {"schema": {"type": "array", "uniqueItems": True}, "tests": []},
        {"schema": True, "tests": []},
    ]  # fmt: skip
    found = judge(rows, factory, engine.tokenizer)
    assert (found.schemas, found.refused, found.valid, found.invalid) == (3, 2, 1, 3)
    assert found.false_rejects == 0
    assert found.false_accepts == 1 == len(found.accepted_wrongly), "the last one is our lie"
    assert any("uniqueItems" in why for why in found.why_refused)
