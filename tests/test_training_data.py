"""Rows, gold calls, lessons, adapter and corpus on toy data."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from jsonschema import validate

from tests.training_toys import TAPS, toy_data, toy_model, toy_tokenizer
from whiflash_adapters.messages import TemplateMessage
from whiflash_adapters.structured import with_schema
from whiflash_engine.checkpoints.lora import merge_lora, read_lora
from whiflash_engine.checkpoints.tensors import read_file, read_folder
from whiflash_engine.errors import CheckpointError, ConfigError, NumericsError
from whiflash_engine.training import composed
from whiflash_engine.training.adapter import AdapterOptions, draw_lessons, opening_weights
from whiflash_engine.training.adapter_data import LessonBuilder
from whiflash_engine.training.chat import HubTokenizer, teach
from whiflash_engine.training.composed_documents import ASKED, documented, stated
from whiflash_engine.training.corpus import Sample
from whiflash_engine.training.generate import BatchGenerator, Job
from whiflash_engine.training.gold import Call, as_declared, gold_calls, parse_calls, render_calls
from whiflash_engine.training.lessons import user
from whiflash_engine.training.llama import load_llama
from whiflash_engine.training.lora import (
    LoraConfig,
    adapter_tensors,
    average_adapters,
    inject,
    save_adapter,
)
from whiflash_engine.training.mixes import AdapterMix
from whiflash_engine.training.model_files import JsonValue, write_tensors
from whiflash_engine.training.own_replies import OwnReplies, Reply
from whiflash_engine.training.rows import PromptRow, load_by_ids, load_rows
from whiflash_engine.training.vocab import always_needed, choose_vocab


def silent(_: Mapping[str, float | str]) -> None:
    pass


def write_rows(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as stream:
        stream.write("\n".join(lines) + "\n")


GOOD = '{"id": "a-1", "kind": "chat", "source": "a", "messages": [{"role": "user"}], "tools": null}'


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{oops", "not valid JSON"),
        ("[1]", "should be a JSON object"),
        ('{"id": "a-1", "kind": "poem", "source": "a", "messages": []}', "'kind'"),
        ('{"id": "a-1", "kind": "chat", "source": "a", "messages": []}', "'messages'"),
        ('{"id": "a-1", "kind": "chat", "source": "a", "messages": [{}]}', "'role'"),
        ('{"id": "", "kind": "chat", "source": "a", "messages": [{"role": "user"}]}', "'id'"),
    ],
)
def test_a_malformed_row_is_named_by_file_and_line(line: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "train" / "a.jsonl.gz"
    write_rows(path, GOOD, line)
    with pytest.raises(CheckpointError) as caught:
        load_rows(tmp_path, "train", "a")
    assert f"{path}:2" in str(caught.value)
    assert said in str(caught.value)


def test_an_unknown_id_in_a_mix_is_named(tmp_path: Path) -> None:
    write_rows(tmp_path / "train" / "a.jsonl.gz", GOOD)
    (tmp_path / "mixes").mkdir()
    (tmp_path / "mixes" / "m.ids").write_text("a-1\na-2\n")
    with pytest.raises(CheckpointError, match=r"m\.ids:2.*a-2"):
        load_by_ids(tmp_path, "train", "m")


def row(source: str, parameters: Mapping[str, object]) -> PromptRow:
    schema: dict[str, object] = {"type": "object", **parameters}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    return PromptRow("x-1", "tool", source, ({"role": "user"},), (json.loads(json.dumps(tool)),))


def test_gold_calls_take_the_first_accepted_value_and_skip_optional_ones() -> None:
    known = row("bfcl", {"properties": {"a": {}, "b": {}, "c": {}}, "required": ["a"]})
    truth = {"ground_truth": [{"f": {"a": [5, 6], "b": ["", "x"], "c": [{"k": ["v", "w"]}]}}]}
    found = gold_calls(known, json.loads(json.dumps(truth)))
    assert found == [Call("f", {"a": 5, "c": {"k": "v"}})]
    assert gold_calls(known, {"ground_truth": [{"g": {}}]}) is None, "unknown tool"
    assert gold_calls(known, {"ground_truth": [{"f": {"b": ["x"]}}]}) is None, "a is required"


def test_gold_arguments_stand_as_the_grammar_will_ask_for_them() -> None:
    item = {"type": "object", "properties": {"x": {"type": "string"}, "y": {"type": "number"}}}
    third = {"type": "array", "items": item}
    known = row("snips", {"properties": {
        "first": {"type": "integer"}, "second": {"type": "string"}, "third": third,
    }})  # fmt: skip
    told: JsonValue = {"third": [{"y": "0.5", "x": 1}], "second": 7, "first": "12"}
    (call,) = gold_calls(known, {"gold": {"name": "f", "args": told}}) or []
    assert json.dumps(dict(call.arguments)) == (
        '{"first": 12, "second": "7", "third": [{"x": "1", "y": 0.5}]}'
    )


@pytest.mark.parametrize(
    ("value", "kind"), [("1.5", "integer"), ("many", "number"), (True, "string"), (None, "integer")]
)
def test_what_cannot_be_read_as_the_declared_type_stays(value: JsonValue, kind: str) -> None:
    assert as_declared(value, {"type": kind}) is value


def test_truth_values_are_read() -> None:
    assert as_declared("True", {"type": "boolean"}) is True
    assert as_declared("false", {"type": "boolean"}) is False
    assert as_declared("yes", {"type": "boolean"}) == "yes"


def test_calls_survive_rendering_and_parsing() -> None:
    calls = [Call("f", {"a": 'ü "quoted"', "b": [1, {"c": None}]}), Call("g", {})]
    assert parse_calls(render_calls(calls)) == calls
    assert render_calls(calls[1:]) == '<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>'
    assert parse_calls("<tool_call>\n{broken\n</tool_call>") is None


@pytest.mark.parametrize("family", composed.FAMILIES)
def test_composed_loops_are_consistent_and_repeatable(family: composed.Family) -> None:
    for seed in range(20):
        loop = family(random.Random(seed))
        assert loop == family(random.Random(seed))
        names = [composed.tool_name_of(tool) for tool in loop.tools]
        assert loop.call.name in names
        assert loop.question and loop.result and loop.answer


def test_documents_match_the_schema_that_the_chat_model_tells_of() -> None:
    for seed in range(60):
        rng = random.Random(seed)
        one, loop = stated(rng), composed.FAMILIES[seed % len(composed.FAMILIES)](rng)
        answered, system = documented(rng, loop)
        assert answered.call == loop.call and loop.answer in json.loads(answered.answer).values()
        for prompt, document in ((one.system, one.document), (system, answered.answer)):
            said, schema = prompt.split(ASKED.removesuffix("{schema}"))
            validate(json.loads(document), json.loads(schema))
            assert list(json.loads(document)) == list(json.loads(schema)["properties"])
            asked = TemplateMessage(role="system", content=said.strip())
            (told,) = with_schema([asked] if said else [], json.loads(schema))
            assert told["content"] == prompt.strip()
        values = json.loads(one.document).values()
        assert all(str(v) in one.question for v in values if not isinstance(v, bool))


def test_a_word_problem_needs_an_equation_that_is_plain_arithmetic() -> None:
    rng = random.Random(0)
    found = composed.word_problem(rng, "How many?", {"equations": ["x=(56.0*9.0)"]})
    assert found is not None and found.result == "504"
    assert composed.word_problem(rng, "?", {"equations": ["2*x+1=5"]}) is None
    assert composed.word_problem(rng, "?", {"equations": ["x=2", "y=3"]}) is None
    assert composed.evaluate("__import__('os')") is None


def test_only_the_assistants_tokens_are_learned(tmp_path: Path) -> None:
    toy_tokenizer(tmp_path)
    tokenizer = HubTokenizer(tmp_path)
    turn = {"role": "assistant", "content": "", "tool_calls": [
        {"function": {"name": "f", "arguments": {"a": 1}}}]}  # fmt: skip
    reply = render_calls([Call("f", {"a": 1})])
    one = teach(
        tokenizer, [{"role": "user", "content": "q"}], [],
        [(reply, [json.loads(json.dumps(turn)), {"role": "tool", "content": "r"}]), ("done", [])],
    )  # fmt: skip
    learned = tokenizer.decode([t for t, keep in zip(one.ids, one.learn, strict=True) if keep])
    assert learned == reply + "<|im_end|>done<|im_end|>"
    assert tokenizer.decode(one.ids).count("<|im_start|>") == 4


def test_adapters_of_one_descent_are_averaged(tmp_path: Path) -> None:
    folders = []
    for value, rank in ((1.0, 2), (4.0, 2), (1.0, 3)):
        folders.append(tmp_path / f"{value}-{rank}")
        save_adapter(folders[-1], {"lora_A": torch.full((rank, 3), value)}, LoraConfig(rank), "toy")
    average_adapters(folders[:2], tmp_path / "mean")
    found = read_file(tmp_path / "mean" / "adapter_model.safetensors")["lora_A"]
    assert found.dtype == torch.bfloat16 and (found == 2.5).all()
    config = json.loads((tmp_path / "mean" / "adapter_config.json").read_text())
    assert config == json.loads((folders[0] / "adapter_config.json").read_text())
    with pytest.raises(CheckpointError, match=r"1\.0-3.*differs from"):
        average_adapters(folders, tmp_path / "mean")
    with pytest.raises(ConfigError, match="two are needed"):
        average_adapters(folders[:1], tmp_path / "mean")


def test_a_merged_adapter_equals_the_adapted_forward(tmp_path: Path) -> None:
    folder = toy_model(tmp_path / "base")
    torch.manual_seed(0)
    model, ids = load_llama(folder, torch.float32), torch.randint(0, 61, (2, 9))
    config = LoraConfig(rank=3, alpha=6.0)
    parameters = inject(model, config)
    with torch.no_grad():
        for parameter in parameters:
            # what bfloat16 can hold, because that is how adapters are saved
            parameter.copy_((torch.randn(parameter.shape) * 0.2).bfloat16())
    save_adapter(tmp_path / "adapter", adapter_tensors(model), config, "toy")
    merged = merge_lora(read_lora(tmp_path / "adapter"), read_folder(folder))
    write_tensors(tmp_path / "merged" / "model.safetensors", merged)
    (tmp_path / "merged" / "config.json").write_bytes((folder / "config.json").read_bytes())
    plain = load_llama(tmp_path / "merged", torch.float32)
    torch.testing.assert_close(plain(ids), model(ids), atol=1e-4, rtol=1e-4)
    assert len(parameters) == 2 * 7 * 4


def test_batched_generation_equals_a_full_forward_per_token(tmp_path: Path) -> None:
    model = load_llama(toy_model(tmp_path), torch.float32)
    jobs = [Job(str(n), tuple(range(1 + n, 6 + 2 * n)), 8) for n in range(5)]
    generator = BatchGenerator(
        model, slots=2, length=40, stop_ids=frozenset(), seed=0, taps=TAPS
    )  # fmt: skip
    for answer in generator.run(jobs, refill=1):
        ids = list(answer.job.prompt)
        for token in answer.tokens:
            logits = model(torch.tensor([ids]))[0, -1] @ model.head_weight.T
            assert int(logits.argmax()) == token
            ids.append(token)
        last, taps = model.states(torch.tensor([ids[:-1]]), TAPS)
        wanted = torch.stack([*taps, last], 2)[0].half()
        assert answer.features is not None
        torch.testing.assert_close(answer.features, wanted, atol=2e-2, rtol=1e-2)


def test_sampled_tokens_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    model = load_llama(toy_model(tmp_path), torch.float32)
    jobs = [Job(str(n), (3, 4, 5 + n), 12, 0.9) for n in range(4)]

    def tokens(slots: int) -> dict[str, tuple[int, ...]]:
        generator = BatchGenerator(model, slots=slots, length=20, stop_ids=frozenset(), seed=7)
        return {answer.job.key: answer.tokens for answer in generator.run(jobs, refill=1)}

    assert tokens(1) == tokens(4)


def test_nothing_is_drawn_from_what_is_no_number(tmp_path: Path) -> None:
    model = load_llama(toy_model(tmp_path), torch.float32)
    model.norm.weight.fill_(torch.nan)
    generator = BatchGenerator(model, slots=2, length=20, stop_ids=frozenset(), seed=7)
    with pytest.raises(NumericsError):
        list(generator.run([Job("a", (3, 4, 5), 12, 0.9)]))


def test_the_draft_vocabulary_is_what_is_written_plus_what_must_be_there() -> None:
    from collections import Counter

    texts = ["<s>", "a", "the", " 12", '{"', "word", " other"]
    needed = always_needed(texts, [0])
    assert needed == {0, 1, 3, 4}
    vocab = choose_vocab(Counter({6: 9, 5: 1}), Counter(), needed, size=5, vocab_size=7)
    assert vocab.ids.tolist() == [0, 1, 3, 4, 6]
    assert (torch.arange(5) + vocab.d2t).tolist() == vocab.ids.tolist()
    assert vocab.t2d.nonzero().flatten().tolist() == vocab.ids.tolist()
    sample = Sample("x", "chat", "toy", 0.0, (3,), (6, 6, 5, 5), shard=0, offset=0)
    assert vocab.coverage([sample]) == 0.75, "the second 5 stands earlier in the text"
    assert vocab.coverage([replace(sample, prompt=(5,))]) == 1.0


@pytest.mark.parametrize(
    ("name", "value"),
    [("rope_parameters", {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0}),
     ("rope_scaling", {"type": "linear", "factor": 2.0})],
)  # fmt: skip
def test_a_target_with_stretched_positions_is_refused(
    name: str, value: JsonValue, tmp_path: Path
) -> None:
    folder = toy_model(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, name: value}))
    with pytest.raises(CheckpointError, match=r"config\.json.*rope_type"):
        load_llama(folder)


class FewReplies(OwnReplies):
    """Two plain ones, made without a model."""

    def __init__(self) -> None:
        rows = [PromptRow(text, "chat", "talk", (user(text),), ()) for text in ("Hi", "Who?")]
        self.replies = [(row, "Well.") for row in rows]

    def plain(self, mix: AdapterMix) -> list[Reply]:
        return self.replies

    def documents(self, mix: AdapterMix) -> list[Reply]:
        return []


def test_plain_replies_are_taught_as_often_as_is_asked(tmp_path: Path) -> None:
    data = toy_data(tmp_path)
    for times in (1, 3):
        mix = AdapterMix(
            gold={}, irrelevant=0, word_problems=0, sums=0, dates=0, searches=0, documentation=0,
            plain_times=times,
        )  # fmt: skip
        lessons = LessonBuilder(data, "train", mix, seed=0).build(FewReplies())
        asked = [str(lesson.messages[-1]["content"]) for lesson in lessons]
        assert sorted(asked) == sorted(["Hi", "Who?"] * times)


def test_every_epoch_draws_its_lessons_anew(tmp_path: Path) -> None:
    """The same ones whenever it is asked for the same epoch."""
    data, folder = toy_data(tmp_path / "data"), tmp_path / "model"
    toy_model(folder, vocab=toy_tokenizer(folder))
    tokenizer = HubTokenizer(folder)
    mix = AdapterMix(gold={}, irrelevant=0, word_problems=0, searches=0, documentation=0, plain=0,
                     sums=4, dates=4, max_prompt=4000, max_tokens=4000)  # fmt: skip
    options = AdapterOptions(folder, data, tmp_path, tmp_path, tmp_path, mix=mix, seed=3)
    own = OwnReplies(data, tmp_path, load_llama(folder), tokenizer, seed=3)
    first, second, again = (draw_lessons(options, epoch, own, tokenizer) for epoch in (0, 1, 0))
    assert first == again != second
    assert first[1] == second[1] == {"sum": 4, "date": 4}


def test_the_first_two_tokens_of_a_reply_may_weigh_more() -> None:
    learn = torch.tensor([[0, 1, 1, 1, 0, 0, 1, 0], [1, 1, 1, 0, 1, 1, 1, 1]], dtype=torch.bool)
    weights = opening_weights(learn, 5.0)
    assert weights[0, [1, 2, 3, 6]].tolist() == [5, 5, 1, 5]
    assert weights[1, [0, 1, 2, 4, 5, 6, 7]].tolist() == [5, 5, 1, 5, 5, 1, 1]
