"""The benchmark and the proof of losslessness, on tiny random networks."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from tests.toys import Prophet
from whiflash_agents.cli import build_parser, main
from whiflash_agents.measure import speed
from whiflash_agents.measure.against import BEST, against
from whiflash_agents.measure.figures import Method, Times, figures
from whiflash_agents.measure.levels import Levels
from whiflash_agents.measure.lossless import ARMS, _gap, prove, with_grammar
from whiflash_agents.measure.methods import COMPARISONS, ORACLE, PROMPT_LOOKUP, TRANSFORMERS
from whiflash_agents.measure.oracle import foresighted
from whiflash_agents.measure.prompts import (
    KINDS,
    Kind,
    Prompt,
    balanced,
    from_folder,
    named,
    shipped,
)
from whiflash_agents.measure.speed import Speed
from whiflash_agents.measure.start import PromptStart
from whiflash_agents.measure.table import table
from whiflash_agents.measure.ways import Run, Way
from whiflash_agents.prompt_options import chosen_rows
from whiflash_engine.config import RouterConfig
from whiflash_engine.engine import Engine
from whiflash_engine.errors import ConfigError
from whiflash_engine.events import Round, Seconds

STOP = 9


def silent(_: str) -> None:
    pass


def short(prompts: list[Prompt]) -> list[Prompt]:
    """The same with few words: a byte tokenizer makes much of many."""
    return [replace(p, messages=[{"role": "user", "content": "hi"}]) for p in prompts]


def unspeakable(prompt: Prompt) -> Prompt:
    return replace(prompt, schema={"type": "no such type"}, tools=())


def test_every_kind_equally_often() -> None:
    chosen = balanced(shipped(), 3)
    assert [p.kind for p in chosen] == [*KINDS] * 3
    assert len({p.id for p in chosen}) == 12


@pytest.mark.parametrize(("per_kind", "said"), [(0, "per-kind=0"), (1000, "only 25 tool")])
def test_more_than_there_is_or_nothing(per_kind: int, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        balanced(shipped(), per_kind)


def test_ids_name_prompts(tmp_path: Path) -> None:
    rows, path = shipped(), tmp_path / "ids.txt"
    path.write_text("chat-02\ntool-01\nchat-02\n")
    assert [p.id for p in named(rows, path)] == ["chat-02", "tool-01"]
    path.write_text("chat-02\nchat-99 chat-98\n")
    with pytest.raises(ConfigError, match="chat-99, chat-98"):
        named(rows, path)
    with pytest.raises(ConfigError, match=r"ids=.*No such file"):
        named(rows, tmp_path / "none.txt")


def test_rows_of_a_folder(tmp_path: Path) -> None:
    row = {"id": "x", "kind": "chat", "messages": [{"role": "user", "content": "a\u2028b"}]}
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress((json.dumps(row, ensure_ascii=False) + "\n").encode()))
    (read,) = from_folder(tmp_path)
    assert read.messages == row["messages"]
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ConfigError, match=r"data=.*rows\.jsonl\.gz"):
        list(from_folder(tmp_path))


def test_a_seed_draws_the_same_prompts_again() -> None:
    def drawn(*options: str) -> list[str]:
        return [row.id for row in chosen_rows(build_parser().parse_args(["replay", *options]))]

    assert drawn("--shuffle", "3") == drawn("--shuffle", "3")
    assert drawn("--shuffle", "3") != drawn("--shuffle", "4") != drawn()
    assert sorted(drawn("--shuffle", "3")) == sorted(drawn())


@pytest.mark.parametrize("command", ["bench", "lossless"])
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--per-kind", "0"], "per-kind=0"),
        (["--tokens", "0"], "tokens=0"),
        (["--ids", "/no/such/file"], "/no/such/file"),
        (["--data", "/no/such/folder"], "/no/such/folder"),
    ],
)
def test_bad_options_are_told_before_a_model_is_loaded(
    command: str,
    options: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def load(*_: object, **__: object) -> Engine:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr(Engine, "load", load)
    assert main([command, *options]) == 2
    err = capsys.readouterr().err.strip()
    assert said in err and "\n" not in err


@pytest.mark.parametrize(
    ("option", "place", "said"),
    [("--gguf", "none.gguf", "no such file"), ("--plots", "file/plots", "cannot be written"),
     ("--plots", "file", "is no folder")],
)  # fmt: skip
def test_places_are_tried_before_a_model_is_loaded(
    option: str, place: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def load(*_: object, **__: object) -> Engine:
        raise AssertionError("a model is loaded")

    (tmp_path / "file").write_text("")
    monkeypatch.setattr(Engine, "load", load)
    assert main(["bench", option, str(tmp_path / place)]) == 2
    err = capsys.readouterr().err.strip()
    assert said in err and place in err and "\n" not in err


def test_what_has_no_grammar_is_passed_over_and_replaced(engine: Engine) -> None:
    rows = shipped()
    bad = [unspeakable(p) if p.id in ("json-01", "chat-01") else p for p in rows]
    said: list[str] = []
    chosen, refused = with_grammar(engine, bad, 2, said.append)
    assert [p.kind for p in chosen] == [*KINDS] * 2
    assert [p.id for p in chosen if p.kind == "json"] == ["json-02", "json-03"]
    assert [text.split(":")[0] for text in refused] == ["json-01", "chat-01"]
    assert said and said[0].startswith("2 ")
    assert with_grammar(engine, rows, 25, said.append)[1] == []
    with pytest.raises(ConfigError, match="only 24 json"):
        with_grammar(engine, bad, 25, said.append)


def test_as_many_prompts_with_grammar_as_without(engine: Engine) -> None:
    prompts = short(balanced(shipped(), 1))
    result = prove(engine, prompts, 12, silent)
    assert result["differences"] == 0, result["explained"]
    arms = result["arms"]
    assert isinstance(arms, dict) and len(arms) == 2 * len(ARMS)
    assert {tally["prompts"] for tally in arms.values()} == {4}


def test_lossless_from_the_command_line(
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    from whiflash_agents.measure import prompts

    rows = short(shipped())
    monkeypatch.setattr(prompts, "shipped", lambda: [unspeakable(rows[0]), *rows])
    monkeypatch.setattr(Engine, "load", lambda *_, **__: engine)
    assert main(["lossless", "--per-kind", "1", "--tokens", "6"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert len(result["schemas_refused"]) == 1 and result["prompts"] == 4


def test_a_gap_is_measured_under_the_masks_that_ruled(engine: Engine) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
    prompt = replace(short(shipped())[1], schema=schema, tools=())
    start = PromptStart(engine, prompt, 40)
    plain = [t for r in start.run(RouterConfig("plain"), grammar=True) for t in r.tokens]
    wide, narrow = prompt.constraint(engine), prompt.constraint(engine)
    narrow.close_by(40)
    at = 0
    while not (late := wide.masks(())[1][0] & ~narrow.masks(())[1][0]).any():
        wide.commit([plain[at]])
        narrow.commit([plain[at]])
        at += 1
    routed = [*plain[:at], int(late.nonzero()[0])]
    assert _gap(start, plain, routed, grammar=True) == float("inf")


def round_of(*tokens: int, arm: str = "ar") -> Round:
    return Round(
        arm=arm,  # type: ignore[arg-type]
        position=0,
        tokens=tokens,
        proposed=tokens[:-1],
        accepted=len(tokens) - 1,
        verified=len(tokens),
        span="text",
        entropy=0.0,
        backlog=0,
        seconds=Seconds(offer=0.2, pick=0.1, verify=0.7),
    )


def test_figures_are_of_the_tokens_really_made() -> None:
    drafted = Times(
        [2.0, 1.0],
        [8, 4],
        ["tool", "chat"],
        [
            [round_of(1, 2), round_of(3, 4), round_of(4, 4, arm="diffusion")],
            [round_of(1, arm="diffusion"), round_of(1, 1, 1, arm="diffusion")],
        ],
    )
    plain = Times([4.0, 2.0], [8, 8], ["tool", "chat"], [[round_of(1)], [round_of(1)]])
    levels = Levels(r for one in (drafted, plain) for rounds in one.rounds for r in rounds)
    told = figures(drafted, plain, levels)
    assert told["acceptance_length"] == 2
    assert told["acceptance_length_by_kind"] == {"tool": 2, "chat": 2}
    assert told["acceptance_length_by_arm"] == {"ar": 2, "diffusion": 2}
    assert told["share_of_rounds"] == {"ar": 0.4, "diffusion": 0.6}
    assert told["to_plain"] == pytest.approx((12 / 3) / (16 / 6))
    assert told["to_plain_by_kind"] == {"tool": 2, "chat": 1}
    assert told["decoding_to_plain"] == told["levelled_to_plain"] == pytest.approx(2)
    assert told["router_share_of_time"] == pytest.approx(0.1)
    assert told["offer_share_of_time"] == pytest.approx(0.2)
    low, high = told["to_plain_interval"]
    assert low == pytest.approx(1) and high == pytest.approx(2)  # either prompt twice


def test_one_method_beside_the_others_on_the_same_prompts() -> None:
    """Prompts differ by a factor of four, methods by a tenth: the interval is of the latter."""

    def timed(verify: float, prefill: float = 1.0) -> list[Round]:
        return [replace(round_of(1, 2), seconds=Seconds(prefill=prefill, verify=verify))]

    kinds: list[Kind] = ["tool", "tool", "tool", "tool", "chat", "chat"]
    own, other, third = Times(), Times(), Times()
    for i, kind in enumerate(kinds):
        own.add(kind, 1.0 + i, 2, timed(float(i + 1)))
        other.add(kind, 1.1 + 1.1 * i, 2, timed(1.1 * (i + 1)))
        third.add(kind, 9.0 if i % 2 else 0.1, 2, timed(9.0 if i % 2 else 0.1))
    levels = Levels(r for one in (own, other, third) for rounds in one.rounds for r in rounds)
    peer = Times([2.0] * 6, [2] * 6, kinds, [[]] * 6)
    others = {"other": other, "third": third, "peer": peer}
    found = against(own, others, levels, ["other", "third"])
    for ratio in (*found["other"]["whole"].values(), *found["other"]["decoding"].values()):
        assert ratio == pytest.approx((1.1, 1.1, 1.1))
    assert set(found["other"]["whole"]) == {"all", "tool"}, "two prompts are too few"
    assert found["other"]["levelled"]["all"] == pytest.approx((1, 1, 1)), "the same passes"
    assert found["peer"].keys() == {"whole"}
    assert found["peer"]["whole"]["all"].ratio == pytest.approx(12 / 21)
    best = 3 * 0.1 + 1.1 * (2 + 4 + 6)
    assert found[BEST]["whole"]["all"].ratio == pytest.approx(best / 21)
    assert BEST not in against(own, others, levels, ["other", "gone"])
    told = against(own, others, levels, ["other", "third"], changed={"third"})
    assert told["third"].keys() == {"whole"} and told["other"] == found["other"]


def test_a_busy_moment_tells_for_nobody_in_the_levels() -> None:
    """One's passes all met a busy machine, the other's did not; both did the same."""

    def timed(arm: str, verify: float, draft: float, doubt: float | None = None) -> Round:
        spent = Seconds(pick=0.1, draft=draft, verify=verify, commit=0.1)
        return replace(round_of(1, 2, 3, arm=arm), seconds=spent, doubt=doubt)

    lucky = [timed("ar", 1.0, 0.2), timed("ar", 1.2, 0.2), timed("ar", 1.0, 0.2)]
    busy = [timed("ar", 1.9, 0.4), timed("ar", 3.0, 0.4), timed("ar", 1.2, 0.2)]
    levels = Levels([*lucky, *busy])
    assert levels.seconds(lucky) == pytest.approx(3 * (0.2 + 0.2 + 1.2))
    assert levels.seconds(busy) == pytest.approx(levels.seconds(lucky))
    # a draft's length counts the token that was looked at and left out; a wider pass is another
    longer = [timed("ar", 1.0, 0.5, doubt=0.1), replace(lucky[0], verified=4)]
    levels = Levels([*lucky, *longer])
    assert levels.seconds(longer) == pytest.approx((0.2 + 0.5 + 1.0) + (0.2 + 0.2 + 1.0))
    # what catching up took stays the round's own, and says nothing of drafting
    late = replace(lucky[0], seconds=Seconds(catch_up=9.0, draft=0.05, verify=1.0))
    assert Levels([*lucky, late]).seconds([late]) == pytest.approx(9.0 + 0.05 + 1.0)
    assert Levels([*lucky, late]).seconds(lucky[:1]) == pytest.approx(0.2 + 0.2 + 1.0)


def test_the_benchmark_on_a_tiny_model(
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    from whiflash_agents.measure import prompts
    from whiflash_engine.checkpoints import resolve

    generated: list[int] = []

    def generate(ids: Sequence[int], tokens: int) -> int:
        generated.append(tokens)
        time.sleep(0.05)
        return tokens

    rows = short(shipped())
    monkeypatch.setattr(prompts, "shipped", lambda: rows)
    both = {TRANSFORMERS: generate, PROMPT_LOOKUP: generate}
    monkeypatch.setattr(speed, "peers", lambda *_: both)
    monkeypatch.setattr(Engine, "load", lambda *_, **__: engine)
    folder: Callable[..., object] = lambda *_, **__: resolve.ModelFolder(Path(), "x")  # noqa: E731
    monkeypatch.setattr(resolve, "resolve_model", folder)
    options = ["--per-kind", "1", "--tokens", "6", "--plots", str(tmp_path / "plots")]
    assert main(["bench", *options]) == 0
    shown = capsys.readouterr()
    (line,) = shown.out.splitlines()
    result = json.loads(line)
    assert set(result["methods"]) == {*both, ORACLE, *COMPARISONS["routers"]}
    assert set(result["auto_to"]) == {*result["methods"], BEST} - {"auto"}
    assert len(result["auto_to"]["ar"]["decoding"]["all"]) == 3
    oracle, ar = result["methods"][ORACLE], result["methods"]["ar"]
    assert oracle["acceptance_length"] >= ar["acceptance_length"]
    assert {p.name for p in (tmp_path / "plots").iterdir()} == {"routers.svg", "routers.png"}
    assert main(["bench", *options, "--compare", "dial"]) == 0
    assert (tmp_path / "plots" / "dial.png").stat().st_size > 1000
    (tmp_path / "plots" / "routers.svg").unlink()
    (tmp_path / "plots" / "routers.svg").mkdir()
    assert main(["bench", *options]) == 2
    told = capsys.readouterr()
    assert set(json.loads(told.out.splitlines()[-1])["methods"]) == set(result["methods"])
    assert "routers.svg" in told.err.splitlines()[-1], "what was measured is not lost to a drawing"
    assert set(result["methods"]["auto"]["acceptance_length_by_kind"]) == set(KINDS)
    assert result["width_8_to_1"] > 0 and result["plain_to_transformers"] > 0
    assert result["dtype"] == "float32" and generated == [6] * 30
    for word in ("method", "ratio", "transformers", "diffusion", "auto to", BEST, *KINDS):
        assert word in shown.err


def test_a_kind_of_one_or_two_prompts_has_no_interval() -> None:
    kinds: list[Kind] = ["tool", "tool", "tool", "chat", "chat"]
    times = Times([1.0] * 5, [8] * 5, kinds, [[round_of(1)]] * 5)
    told = figures(times, times, Levels([round_of(1)]))
    assert set(told["to_plain_by_kind"]) == {"tool", "chat"}
    assert set(told["to_plain_interval_by_kind"]) == {"tool"}


def test_no_router_has_seen_the_prompt_that_warms_up(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    class Told(Way):
        def runner(self, engine: Engine) -> Run:
            run, number = super().runner(engine), len(made)
            made.append(0)

            def counting(ids: Sequence[int], tokens: int) -> list[Round]:
                made[number] += 1
                return run(ids, tokens)

            return counting

    def generate(ids: Sequence[int], tokens: int) -> int:
        time.sleep(0.001)
        return tokens

    monkeypatch.setattr(speed, "peers", lambda *_: {TRANSFORMERS: generate})
    prompts = short(shipped()[:2])
    speed.measure(engine, Path(), prompts, 4, {"plain": Told(RouterConfig("plain"))}, silent)
    assert made == [1, 2]


@pytest.mark.parametrize("name", COMPARISONS["ablation"])
def test_nothing_that_is_switched_off_changes_the_text(engine: Engine, name: str) -> None:
    ids = engine.tokenizer.encode("ab ab ab ab")
    plain, way = COMPARISONS["ablation"]["plain"].runner(engine), COMPARISONS["ablation"][name]
    run = way.runner(engine)
    wanted = [t for r in plain(ids, 60) for t in r.tokens]
    for _ in range(2):  # what was learned in the first run has a say in the second
        assert [t for r in run(ids, 60) for t in r.tokens] == wanted


def test_who_knows_every_drafts_fate_needs_the_fewest_rounds(engine: Engine) -> None:
    start = PromptStart(engine, short(shipped())[0], 60)
    rounds, seconds = foresighted(start, grammar=False)
    plain = start.run(RouterConfig("plain"), grammar=False)
    assert [t for r in rounds for t in r.tokens] == [t for r in plain for t in r.tokens]
    assert all(r.accepted == len(r.proposed) for r in rounds)
    assert seconds > sum(r.seconds.decoding for r in rounds)
    alone = [start.run(RouterConfig(arm), grammar=False) for arm in ("ar", "retrieval")]
    assert len(rounds) <= min(map(len, alone))


def test_what_is_foreseen_ends_where_the_answer_does(engine: Engine) -> None:
    start = PromptStart(engine, short(shipped())[0], 60)
    text = [t for r in start.run(RouterConfig("plain"), grammar=False) for t in r.tokens]
    stop = max(i for i, token in enumerate(text) if token not in text[:i])
    start.sampling = replace(start.sampling, stop_token_ids=(text[stop],))
    engine.drafters = {"ar": Prophet(engine.drafters["ar"], [*start.ids, *text])}
    rounds, _ = foresighted(start, grammar=False)
    assert [t for r in rounds for t in r.tokens] == text[: stop + 1]
    assert all(len(r.proposed) == len(r.tokens) - 1 for r in rounds)


def test_the_table_fits_a_terminal() -> None:
    kinds = dict.fromkeys(KINDS, 2.25)
    method: Method = {
        "tokens_per_second": 123.456,
        "to_plain": 2.25,
        "to_plain_interval": (2.0, 2.5),
        "to_plain_by_kind": kinds,
        "to_plain_interval_by_kind": dict.fromkeys(KINDS, (2.0, 2.5)),
        "levelled_to_plain": 2.75,
        "acceptance_length": 2.25,
        "acceptance_length_by_kind": kinds,
    }
    bare: Method = {
        "tokens_per_second": 1.0, "to_plain": 1.0, "to_plain_interval": (1.0, 1.0),
        "to_plain_by_kind": kinds, "to_plain_interval_by_kind": {},
    }  # fmt: skip
    result: Speed = {
        "dtype": "float32", "device": "NVIDIA H100 80GB HBM3", "threads": 16, "prompts": 4,
        "tokens": 64, "width_8_to_1": 1.5, "plain_to_transformers": 2.5, "width_seconds": {},
        "methods": {},
    }  # fmt: skip
    result["methods"] = {"transformers": bare} | dict.fromkeys(COMPARISONS["routers"], method)
    console = Console(width=80, color_system=None)
    with console.capture() as captured:
        console.print(table(result))
    shown = captured.get()
    rows = [line for line in shown.splitlines() if line.endswith("  ".join(["2.25 2.25"] * 4))]
    assert len(rows) == len(COMPARISONS["routers"]) and "…" not in shown
    assert all("123.5  2.25 2.75  2.25" in row for row in rows)
    assert "2.50x transformers" in shown and "1.50x" in shown
