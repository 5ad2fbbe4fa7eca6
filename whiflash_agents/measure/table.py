"""Figures as small tables."""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table

from whiflash_agents.measure.against import Against, Ratio
from whiflash_agents.measure.figures import Method
from whiflash_agents.measure.prompts import KINDS, Kind
from whiflash_agents.measure.replayed import Replayed
from whiflash_agents.measure.speed import Speed


def table(speed: Speed) -> Table:
    """One row a method: speed, its ratio to plain decoding and AL, overall and by kind.

    Narrow enough for 80 columns, which is also the width of a log file.
    """
    title = f"{speed['prompts']} prompts, {speed['tokens']} tokens each, {speed['dtype']}"
    title += f", {speed['device']}, {speed['threads']} threads"
    out = Table(title=title, title_justify="left", box=None, pad_edge=False)
    out.add_column("method")
    for name in ("tok/s", "ratio", "AL", *KINDS):
        out.add_column(name, justify="right")
    for name, method in speed["methods"].items():
        out.add_row(
            name,
            f"{method['tokens_per_second']:.1f}",
            f"{method['to_plain']:.2f} {_two(method.get('levelled_to_plain'))}",
            _two(method.get("acceptance_length")),
            *(_of_kind(method, kind) for kind in KINDS),
        )
    out.caption = (
        "ratio: to plain, and then that of decoding alone with every pass and draft at its "
        "median. By kind: ratio to plain and AL. Plain is "
        f"{speed['plain_to_transformers']:.2f}x transformers; a pass over 8 tokens takes "
        f"{speed['width_8_to_1']:.2f}x a pass over one"
    )
    return out


def against_table(auto_to: Mapping[str, Against]) -> Table:
    """What "auto" makes of the others' speed, overall and by kind, and 90% intervals below."""
    title = "auto to the others: decoding alone, or prompt passes included where rounds do not tell"
    out = Table(title=title, title_justify="left", box=None, pad_edge=False)
    out.add_column("auto to")
    for name in ("all", *KINDS):
        out.add_column(name, justify="right")
    for name, one in auto_to.items():
        ratios = one.get("decoding", one["whole"])
        out.add_row(name, *(_ratio(ratios.get(column)) for column in ("all", *KINDS)))
    return out


def _ratio(value: Ratio | None) -> str:
    return "-" if value is None else f"{value.ratio:.2f}\n{value.low:.2f}-{value.high:.2f}"


def _of_kind(method: Method, kind: Kind) -> str:
    ratio = method["to_plain_by_kind"].get(kind)
    length = method.get("acceptance_length_by_kind", {}).get(kind)
    return "-" if ratio is None else f"{ratio:.2f} {_two(length)}"


def _two(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def scores_table(scores: Mapping[str, Mapping[str, Mapping[str, int]]]) -> Table:
    """Models against groups of rows, in percent of the model's own rows: right, exact, solved.

    Tokenizers pass over different prompts as too long, so models may differ in their rows.
    """
    out = Table(title="% right / exact / solved", title_justify="left", box=None, pad_edge=False)
    out.add_column("rows")
    for model in scores:
        out.add_column(model, justify="right")
    for group in dict.fromkeys(group for groups in scores.values() for group in groups):
        found = [groups[group] for groups in scores.values()]
        rows = "-".join(map(str, sorted({score["rows"] for score in found})))
        out.add_row(f"{rows} {group}", *map(_percentages, found))
    return out


def _percentages(score: Mapping[str, int]) -> str:
    rows = max(score["rows"], 1)
    return " / ".join(f"{100 * score[name] / rows:.0f}" for name in ("right", "exact", "solved"))


def replay_table(found: Mapping[str, Replayed], title: str) -> Table:
    """One row a method, ratios to plain decoding."""
    out = Table(title=title, title_justify="left", box=None, pad_edge=False)
    out.add_column("method")
    for name in ("tok/s", "ratio", "AL", *KINDS):
        out.add_column(name, justify="right")
    plain = found["plain"]
    for name, one in found.items():
        rate = one["tokens_per_second"]
        out.add_row(
            name, f"{rate:.1f}", f"{rate / plain['tokens_per_second']:.3f}",
            _two(one.get("acceptance_length")),
            *(f"{one['by_kind'][kind] / plain['by_kind'][kind]:.3f}" for kind in KINDS),
        )  # fmt: skip
    return out
