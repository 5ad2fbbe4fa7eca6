"""Search in the project's own documentation: short passages, ranked by BM25."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

PASSAGE = 300  # characters, about


@dataclass(frozen=True)
class Passage:
    source: str
    text: str
    terms: Counter[str]


class Library:
    """Passages of some Markdown documents."""

    def __init__(self, documents: Mapping[str, str]) -> None:
        self._passages = [
            Passage(name, text, Counter(_terms(f"{heading} {text}")))
            for name, document in documents.items()
            for heading, text in _split(document)
        ]
        self._mean = sum(p.terms.total() for p in self._passages) / max(1, len(self._passages))
        self._found_in = Counter(term for p in self._passages for term in p.terms)

    @classmethod
    @cache  # read once; the files do not change under us
    def of_this_project(cls) -> Library:
        """README and docs of the source tree, or the README that an installed wheel carries."""
        root = Path(__file__).resolve().parent.parent
        if not (root / "pyproject.toml").is_file():  # installed: whose README lies here, who knows
            return cls(_readme_of_wheel())
        paths = [root / "README.md", *sorted((root / "docs").glob("*.md"))]
        return cls({p.name: p.read_text(encoding="utf-8") for p in paths if p.is_file()})

    def search(self, query: str, limit: int = 1) -> str:
        """The best passages, each as `file: text`; empty when no word occurs."""
        words = set(_terms(query))
        scored = [(self._score(p, words), -i) for i, p in enumerate(self._passages)]
        best = [self._passages[-i] for score, i in sorted(scored, reverse=True)[:limit] if score]
        return "\n".join(f"{p.source}: {p.text}" for p in best)

    def _score(self, passage: Passage, words: Iterable[str]) -> float:
        # BM25 with the usual constants k1 = 1.2, b = 0.75.
        size = 0.25 + 0.75 * passage.terms.total() / self._mean
        score = 0.0
        for word in words:
            count = passage.terms.get(word, 0)
            if count:
                rare = len(self._passages) - self._found_in[word] + 0.5
                weight = math.log(1 + rare / (self._found_in[word] + 0.5))
                score += weight * count * 2.2 / (count + 1.2 * size)
        return score


def _readme_of_wheel() -> dict[str, str]:
    try:
        payload = metadata.metadata("whiflash-agents").json.get("description", "")
    except metadata.PackageNotFoundError:
        return {}
    return {"README.md": str(payload)} if payload else {}


def _split(document: str) -> list[tuple[str, str]]:
    """(heading, passage) pairs: paragraphs and list items, cut at sentence ends."""
    out: list[tuple[str, str]] = []
    heading = ""
    for block in re.split(r"\n\s*\n|\n(?=[-*#] |#+ )", document):
        lines = block.strip().splitlines()
        if lines and lines[0].startswith("#"):
            heading = lines.pop(0).lstrip("# ").strip()
        text = _plain(" ".join(lines))
        passage = ""
        for sentence in re.split(r"(?<=[.!?]) ", text):
            if passage and len(passage) + len(sentence) > PASSAGE:
                out.append((heading, passage))
                passage = ""
            passage = f"{passage} {sentence}".strip()[: PASSAGE + 100]
        if passage:
            out.append((heading, passage))
    return out


def _plain(text: str) -> str:
    """Markdown as a reader sees it."""
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"```\w*|[`*|]|^[-+] ", " ", text)
    return re.sub(r"\s+", " ", text).strip()


_COMMON = frozenset(
    re.findall(
        r"\w+",
        "a an and are as at be by can do does for from has have how i in is it its me my of on"
        " or that the there this to up was what when where which who why will with you your",
    )
)


def _terms(text: str) -> list[str]:
    """Lower-case words without the commonest; a plural counts as its singular."""
    words = re.findall(r"[a-z0-9]+(?:[-.][a-z0-9]+)*", text.lower())
    parts = [part for word in words for part in {word, *re.split(r"[-.]", word)}]
    return [part.removesuffix("s") for part in parts if part and part not in _COMMON]
