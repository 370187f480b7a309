"""The documents as data: their tables and code blocks."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "littlebigcluster"
README = ROOT / "README.md"
DOCS = ROOT / "docs"

Table = list[dict[str, str]]


def section(document: Path, heading: str) -> str:
    """What stands below a heading, down to the next of any level. Code blocks are not mistaken for headings."""
    parts = re.split(r"^(#+ .+)$", _without_blocks(document.read_text()), flags=re.MULTILINE)
    for title, text in zip(parts[1::2], parts[2::2], strict=True):
        if title.lstrip("# ") == heading:
            return text
    raise LookupError(f"{document.name} has no heading {heading!r}")


def table(document: Path, heading: str) -> Table:
    """The first table below a heading, a row by the names of the columns."""
    lines = [line for line in section(document, heading).splitlines() if line.startswith("|")]
    names, _, *rows = ([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines)
    return [dict(zip(names, row, strict=True)) for row in rows]


def code(cell: str) -> str:
    """The first word in backticks of a cell."""
    found = re.search(r"`([^`]*)`", cell)
    assert found, f"nothing in backticks in {cell!r}"
    return found[1]


def blocks(document: Path, language: str) -> list[tuple[int, str]]:
    """The code blocks of a language, each with the number of the line where it begins."""
    text = document.read_text()
    found = re.finditer(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, block.start()) + 2, block[1]) for block in found]


def words_in_backticks(document: Path) -> list[str]:
    """All that stands in backticks in the prose."""
    return re.findall(r"`([^`\n]+)`", _without_blocks(document.read_text()))


def _without_blocks(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
