"""One answer as a page: its text coloured by who drafted it, and every round's figures on hover.

The page is one file that loads nothing, and it runs nothing either: what it shows comes from a
model, so there is no script in it, a policy forbids any, and every text is escaped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import TYPE_CHECKING

from whiflash_adapters.generation import Trace
from whiflash_adapters.text import Detokenizer
from whiflash_engine.config import ArmName
from whiflash_engine.events import Round, Stats

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NAMES: Mapping[ArmName, str] = {
    "ar": "AR (EAGLE-3)",
    "diffusion": "diffusion (DFlash)",
    "retrieval": "retrieval (copied)",
    "forced": "forced (grammar)",
    "plain": "plain (no draft)",
}
_STYLE = """
:root { color-scheme: light dark; --ar: #0072b2; --diffusion: #b5179e; --retrieval: #b07d00;
  --forced: #1a7f37; --plain: #777; --paper: #fff; --ink: #1c1c1c; --soft: #f2f2f2; }
@media (prefers-color-scheme: dark) { :root { --ar: #56b4e9; --diffusion: #f07ae0;
  --retrieval: #e6b84c; --forced: #5fd068; --plain: #9a9a9a; --paper: #16181c; --ink: #e8e8e8;
  --soft: #23262b; } }
body { background: var(--paper); color: var(--ink); font: 16px/1.6 system-ui, sans-serif;
  max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
.text { white-space: pre-wrap; font: 15px/1.9 ui-monospace, monospace; background: var(--soft);
  padding: 1rem; border-radius: 6px; overflow-wrap: anywhere; }
.strip { display: flex; height: 2rem; margin: 1rem 0; border-radius: 6px; }
.strip .t { background: currentColor; border-right: 1px solid var(--paper); }
.t { position: relative; } .own { text-decoration: underline dotted; }
.t:hover::after { content: attr(data-tip); position: absolute; left: 0; top: 100%; z-index: 1;
  white-space: pre; font: 13px/1.5 ui-monospace, monospace; color: var(--paper);
  background: var(--ink); padding: .5rem .75rem; border-radius: 6px; }
.ar { color: var(--ar); } .diffusion { color: var(--diffusion); }
.retrieval { color: var(--retrieval); } .forced { color: var(--forced); }
.plain { color: var(--plain); }
table { border-collapse: collapse; } td, th { padding: .2rem .9rem .2rem 0; text-align: right; }
td:first-child, th:first-child { text-align: left; }
"""
_FRAME = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width"><title>whiflash-agents trace</title>
<style>{style}</style></head><body>
<h1>Who drafted what</h1>
<p>{summary}</p>
<div class="text">{text}</div>
<p>Underlined: the target's own token, which ends every round. Below: rounds over time.</p>
<div class="strip">{strip}</div>
<table><tr><th>arm</th><th>rounds</th><th>share</th><th>tokens</th><th>AL</th><th>seconds</th></tr>
{rows}</table>
</body></html>
"""


def page(trace: Trace, tokenizer: PreTrainedTokenizerBase) -> str:
    """HTML of one answer, light and dark."""
    tips = [escape(_tip(number, r, tokenizer)) for number, r in enumerate(trace.rounds, 1)]
    return _FRAME.format(
        style=_STYLE,
        summary=_summary(trace.stats),
        text="".join(_text(trace, tips, tokenizer)),
        strip="".join(
            f'<div class="t {r.arm}" style="flex: {max(r.seconds.total, 1e-6):.6f}" '
            f'data-tip="{tip}"></div>'
            for r, tip in zip(trace.rounds, tips, strict=True)
        ),
        rows="\n".join(_rows(trace.stats)),
    )


def _text(trace: Trace, tips: list[str], tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    text = Detokenizer(tokenizer, trace.request.format.markers)
    for r, tip in zip(trace.rounds, tips, strict=True):
        for i, token in enumerate(r.tokens):
            own = " own" if i >= r.accepted else ""
            said = escape(text.feed([token]))
            yield f'<span class="t {r.arm}{own}" data-tip="{tip}">{said}</span>'
    yield escape(text.finish())


def _tip(number: int, r: Round, tokenizer: PreTrainedTokenizerBase) -> str:
    drafted = tokenizer.decode(list(r.proposed), clean_up_tokenization_spaces=False)
    seconds = r.seconds
    lines = [
        f"round {number}: {NAMES[r.arm]}, in {r.span.replace('_', ' ')}",
        f"drafted {len(r.proposed)}, accepted {r.accepted}: {drafted!r}",
        f"entropy {r.entropy:.2f} nats, backlog {r.backlog}, matched {r.matched}",
        f"{1e3 * seconds.total:.1f} ms: prompt {1e3 * seconds.prefill:.1f}, draft "
        f"{1e3 * (seconds.draft + seconds.catch_up):.1f}, verify {1e3 * seconds.verify:.1f}",
    ]
    if r.scores:
        lines.append("scores " + ", ".join(f"{arm} {x:.2f}" for arm, x in r.scores.items()))
    return "\n".join(lines)


def _summary(stats: Stats) -> str:
    return (
        f"{stats.tokens} tokens in {stats.rounds} rounds, {stats.acceptance_length:.2f} a round; "
        f"{stats.tokens_per_second:.1f} tokens/s after {stats.time_to_first_token:.2f} s; "
        f"{stats.cached} of {stats.prompt_tokens} prompt tokens were kept from before."
    )


def _rows(stats: Stats) -> Iterator[str]:
    for arm, one in stats.arms.items():
        cells = (one.rounds, f"{one.rounds / max(stats.rounds, 1):.0%}", one.tokens,
                 f"{one.acceptance_length:.2f}", f"{one.seconds:.2f}")  # fmt: skip
        told = "".join(f"<td>{cell}</td>" for cell in cells)
        yield f'<tr><td class="{arm}">{NAMES[arm]}</td>{told}</tr>'
