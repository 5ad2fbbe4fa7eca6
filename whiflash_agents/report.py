"""What a run looks like on a terminal: text coloured by arm, figures in a table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TypeVar

from rich.table import Table
from rich.text import Text

from whiflash_adapters.generation import Trace
from whiflash_adapters.page import NAMES
from whiflash_adapters.ports import TokenEngine
from whiflash_adapters.text import Detokenizer
from whiflash_engine.config import ArmName
from whiflash_engine.events import ArmStats, Round, Stats

_Key = TypeVar("_Key")

STYLES: Mapping[ArmName, str] = {
    "ar": "cyan",
    "diffusion": "magenta",
    "retrieval": "yellow",
    "forced": "green",
    "plain": "default",
}


# Escape sequences begin with one of these, or are one (C1): they are shown, never obeyed.
_CONTROLS = {
    **{code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"},
    0x7F: "\u2421",
    **dict.fromkeys(range(0x80, 0xA0), "\ufffd"),
}


def printable(text: str) -> str:
    """Text from a model or a tool, fit for a terminal: no control characters but \\n and \\t."""
    return text.translate(_CONTROLS)


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that one round committed."""

    arm: ArmName
    text: str


@dataclass(frozen=True, slots=True)
class Replay:
    """The same generation twice: as it was routed, and without any drafts."""

    routed: Stats
    plain: Stats
    same_tokens: bool


def coloured(pieces: Iterable[Piece]) -> Text:
    """Model text, in the colour of the arm that drafted it; nothing in it is interpreted."""
    out = Text()
    for piece in pieces:
        out.append(printable(piece.text), style=STYLES[piece.arm])
    return out


def pieces(engine: TokenEngine, trace: Trace) -> Iterator[Piece]:
    """The text that was generated, by who drafted it."""
    text = Detokenizer(engine.tokenizer, trace.request.format.markers)
    for r in trace.rounds:
        yield Piece(r.arm, text.feed(r.tokens))
    if trace.rounds:
        yield Piece(trace.rounds[-1].arm, text.finish())


def legend(arms: Iterable[ArmName]) -> Text:
    """Which colour is whose."""
    ordered = sorted(set(arms), key=_place)
    return Text("  ").join(Text(NAMES[arm], style=STYLES[arm]) for arm in ordered)


def strip(rounds: Sequence[Round]) -> Text:
    """Rounds in time: a block each, two columns for what the median round took."""
    usual = median(r.seconds.decoding for r in rounds) if rounds else 1.0
    out = Text()
    for r in rounds:
        width = max(1, min(round(2 * r.seconds.decoding / max(usual, 1e-9)), 8))
        out.append("█" * width + "▏", style=STYLES[r.arm])
    return out


def _place(arm: ArmName) -> int:
    return list(NAMES).index(arm)


def arms_table(replays: Sequence[Replay]) -> Table:
    """Rounds, tokens and acceptance length per arm, and per arm in each kind of text."""
    totals = _sum((arm, s) for r in replays for arm, s in r.routed.arms.items())
    spans = _sum(
        ((arm, span), s)
        for r in replays
        for span, arms in r.routed.spans.items()
        for arm, s in arms.items()
    )
    rounds = sum(s.rounds for s in totals.values())
    table = Table(title="Who drafted what", title_justify="left")
    for name in ("arm", "text", "rounds", "share", "tokens", "AL"):
        table.add_column(name, justify="left" if name in ("arm", "text") else "right")
    for arm, total in sorted(totals.items(), key=lambda item: _place(item[0])):
        style = STYLES[arm]
        table.add_row(Text(NAMES[arm], style=style), "all", *_figures(total, rounds))
        for (of_arm, span), part in spans.items():
            if of_arm == arm and part.rounds != total.rounds:
                table.add_row("", span, *_figures(part, rounds))
    everything = _sum((None, s) for s in totals.values()).get(None, ArmStats())
    table.add_section()
    table.add_row("together", "all", *_figures(everything, rounds))
    table.caption = "AL: tokens committed per round, the target's own token counted"
    return table


def speed_lines(replays: Sequence[Replay], dtype: str) -> list[str]:
    """Tokens per second both ways, their ratio, and whether the tokens agree.

    dtype: what the target computes in.
    """
    routed = _speed(r.routed for r in replays)
    plain = _speed(r.plain for r in replays)
    ratio = f"{routed / plain:.2f}x plain decoding" if plain else "no plain figure"
    same = sum(r.same_tokens for r in replays)
    lines = [
        f"{routed:.1f} tokens/s routed, {plain:.1f} plain: {ratio} of the same prompts",
        f"{same} of {len(replays)} generations have the very same tokens both ways",
    ]
    if same < len(replays):
        lines.append(_difference(dtype))
    switches = sum(r.routed.switches for r in replays)
    spent = sum(r.routed.switch_seconds for r in replays)
    lines.append(f"{switches} switches between drafters took {spent * 1000:.1f} ms in all")
    return lines


def _difference(dtype: str) -> str:
    if dtype != "bfloat16":
        return (
            f"(routed and plain decoding differ; `whiflash-agents lossless --dtype {dtype}` tells "
            "where and why)"
        )
    return (
        f"(it may be rounding: {dtype} rounds a pass over several tokens differently from a pass "
        "over one, which can tip a near tie; `whiflash-agents lossless` compares in float32)"
    )


def _figures(stats: ArmStats, rounds: int) -> tuple[str, str, str, str]:
    share = f"{stats.rounds / rounds:.0%}" if rounds else "-"
    return str(stats.rounds), share, str(stats.tokens), f"{stats.acceptance_length:.2f}"


def _speed(runs: Iterable[Stats]) -> float:
    """Decoding speed over several runs, first rounds left out, as in `Stats`."""
    every = list(runs)
    seconds = sum(stats.decode_seconds for stats in every)
    return sum(stats.decode_tokens for stats in every) / seconds if seconds > 0 else 0.0


def _sum(parts: Iterable[tuple[_Key, ArmStats]]) -> dict[_Key, ArmStats]:
    out: dict[_Key, ArmStats] = {}
    for key, stats in parts:
        out[key] = out.get(key, ArmStats()) + stats
    return out
