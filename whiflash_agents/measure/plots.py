"""The benchmark in pictures: one file as SVG and as PNG. Needs matplotlib (the extra `bench`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from whiflash_agents.measure.figures import Method
from whiflash_agents.measure.prompts import KINDS
from whiflash_agents.measure.speed import Speed
from whiflash_agents.writable import require_writable, unwritable
from whiflash_engine.config import ArmName, require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS: Mapping[ArmName, str] = {
    "ar": "#0072b2", "diffusion": "#b5179e", "retrieval": "#b07d00", "forced": "#2e7d32",
    "plain": "#6b7280",
}  # fmt: skip
_PALETTE = (
    "#c7c7c7", "#9a9a9a", "#d8b48a", "#b08d57", "#111111", "#0072b2", "#b5179e", "#b07d00",
    "#7fb3d5", "#76c7a3", "#2e7d32", "#c0392b", "#e69f00", "#56b4e9",
)  # fmt: skip
ALONE: tuple[ArmName, ...] = ("ar", "diffusion", "retrieval")


def require_plots(folder: Path) -> None:
    """Makes the folder. ConfigError if nothing could be drawn there; to be told before anything
    is measured."""
    try:
        import matplotlib
    except ImportError:
        why = 'needs matplotlib: pip install "whiflash-agents[bench]"'
        require(False, "plots", str(folder), why)
    else:
        matplotlib.use("agg")
    require(not folder.exists() or folder.is_dir(), "plots", str(folder), "is no folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable("plots", folder, error) from error
    require_writable("plots", folder)


def draw(speed: Speed, folder: Path, name: str) -> list[Path]:
    """Four panels: speed by kind, tokens a round by arm, arms by span, cost by width. Returns
    the files, ConfigError if they cannot be written. Only ratios: absolute times are the
    machine's."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7.5), layout="constrained")
    panels = figure.subplots(2, 2)
    methods = {n: m for n, m in speed["methods"].items() if n != "plain"}
    _speeds(panels[0][0], methods)
    routed = methods.get("auto") or next(m for m in methods.values() if "rounds_by_span" in m)
    _lengths(panels[0][1], speed["methods"])
    _spans(panels[1][0], routed)
    _widths(panels[1][1], speed["width_seconds"])
    where = f"{speed['device']}, {speed['threads']} threads"
    figure.suptitle(f"{speed['prompts']} prompts, {speed['dtype']}, {where}")
    return _save(figure, folder, name)


def draw_dial(speed: Speed, folder: Path) -> list[Path]:
    """Tokens a round and tokens a second, to plain decoding, over the balance."""
    from matplotlib.figure import Figure

    points = [
        (float(name.removeprefix("balance ")), method)
        for name, method in speed["methods"].items()
        if name.startswith("balance ")
    ]
    places = [balance for balance, _ in points]
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    lengths = [method.get("acceptance_length", 0.0) for _, method in points]
    axes.plot(places, lengths, "o-", color=COLOURS["ar"], label="tokens a round")
    ratios = [method.get("decoding_to_plain", 0.0) for _, method in points]
    axes.plot(places, ratios, "s-", color=COLOURS["diffusion"], label="tokens/s to plain")
    axes.set(xlabel="balance", xticks=places, ylim=(1.0, None))
    axes.legend(frameon=False)
    return _save(figure, folder, "dial")


def _save(figure: Figure, folder: Path, name: str) -> list[Path]:
    paths = [folder / f"{name}.{kind}" for kind in ("svg", "png")]
    for path in paths:
        try:
            # without its date: the same result draws the same file
            dated = {"Date": None} if path.suffix == ".svg" else None
            figure.savefig(path, dpi=120, metadata=dated)
        except OSError as error:
            raise unwritable("plots", path, error) from error
    return paths


def _speeds(axes: Axes, methods: Mapping[str, Method]) -> None:
    """Bars with 90% intervals, a group for each kind."""
    width = 0.85 / len(methods)
    for i, (name, method) in enumerate(methods.items()):
        ratios = [method["to_plain_by_kind"].get(kind, 0.0) for kind in KINDS]
        intervals = method["to_plain_interval_by_kind"]
        ends = [intervals.get(kind, (r, r)) for kind, r in zip(KINDS, ratios, strict=True)]
        below = [max(r - low, 0.0) for r, (low, _) in zip(ratios, ends, strict=True)]
        above = [max(high - r, 0.0) for r, (_, high) in zip(ratios, ends, strict=True)]
        places = [k + (i - len(methods) / 2 + 0.5) * width for k in range(len(KINDS))]
        axes.bar(
            places, ratios, width, yerr=(below, above), label=name, error_kw={"lw": 0.6},
            color=_PALETTE[i % len(_PALETTE)],
        )  # fmt: skip
    axes.axhline(1.0, color="black", lw=0.8)
    axes.set(xticks=range(len(KINDS)), xticklabels=KINDS, title="tokens/s to plain decoding")
    axes.set_ylim(top=1.35 * axes.get_ylim()[1])  # room for the legend
    axes.legend(fontsize=7, ncols=4, frameon=False, loc="upper center")


def _lengths(axes: Axes, methods: Mapping[str, Method]) -> None:
    """How many tokens a round of each arm commits, where the arm is alone."""
    for arm in ALONE:
        alone = methods.get(arm)
        rounds = {} if alone is None else alone.get("rounds_by_length", {}).get(arm, {})
        total = sum(rounds.values())
        if total:
            places = [int(n) for n in rounds]
            shares = [count / total for count in rounds.values()]
            axes.plot(places, shares, "o-", label=arm, color=COLOURS[arm], ms=4)
    axes.set(title="rounds by tokens committed, each arm alone", xlabel="tokens", ylim=(0, None))
    axes.legend(frameon=False)


def _spans(axes: Axes, method: Method) -> None:
    """Whom the router picked, by span."""
    spans = method.get("rounds_by_span", {})
    bottom = [0.0] * len(spans)
    for arm, colour in COLOURS.items():
        shares = [arms.get(arm, 0) / sum(arms.values()) for arms in spans.values()]
        if any(shares):
            axes.bar(range(len(spans)), shares, 0.6, bottom=bottom, label=arm, color=colour)
        bottom = [a + b for a, b in zip(bottom, shares, strict=True)]
    axes.set(xticks=range(len(spans)), xticklabels=list(spans), title="auto: share of rounds")
    axes.set_ylim(0, 1.15)
    axes.legend(fontsize=8, ncols=len(COLOURS), frameon=False, loc="upper center")


def _widths(axes: Axes, seconds: Mapping[int, float]) -> None:
    first = next(iter(seconds.values()))
    axes.plot([int(w) for w in seconds], [s / first for s in seconds.values()], "o-")
    axes.set(title="a target pass by tokens, to one token", xlabel="tokens", ylim=(0, None))
