"""All documents: the files and names they mention exist. And the shape of each kind of document."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.documents import DOCS, PACKAGE, README, ROOT, code, section, table, words_in_backticks

DOCUMENTS = [README, ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]
ARCHITECTURE = DOCS / "ARCHITECTURE.md"
DECISIONS = sorted((DOCS / "adr").glob("*.md"))

every_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


def found(name: str) -> Path | None:
    """The file or directory of this name, below the repository or the package."""
    return next((path for base in (ROOT, PACKAGE) if (path := base / name).exists()), None)


@every_document
def test_files_that_are_named_exist(document: Path) -> None:
    named = [word for word in words_in_backticks(document) if re.fullmatch(r"[\w./-]+\.py|[a-z_]+/", word)]
    assert [name for name in named if found(name) is None] == []


@every_document
def test_names_stand_in_the_files_that_are_said_to_hold_them(document: Path) -> None:
    text = document.read_text()
    for names, path in re.findall(r"`([\w.]+)`(?: in|,? \()\s?`([\w./]+\.py)`", text):
        source = found(path)
        assert source is not None
        for name in names.split("."):
            assert re.search(rf"\b{name}\b", source.read_text()), f"{document.name}: {path} does not hold {names}"


# The architecture


def test_architecture_is_read_in_ten_minutes() -> None:
    assert ARCHITECTURE.read_text().count("\n") <= 150


def test_architecture_shows_every_room() -> None:
    shown = {name for row in table(ARCHITECTURE, "Rooms") for name in re.findall(r"`([^`]+)`", row["room"])}
    there = {f"{path.name}/" if path.is_dir() else path.name for path in PACKAGE.iterdir()}
    assert shown == there - {"__init__.py", "__main__.py", "__pycache__/", "py.typed"}


def test_architecture_shows_every_thread() -> None:
    shown = {code(row["thread"]).rstrip("…-") for row in table(ARCHITECTURE, "Threads") if "`" in row["thread"]}
    source = "\n".join(path.read_text() for path in PACKAGE.rglob("*.py"))
    made = set(re.findall(r'name(?:_prefix)?=f?"(lbc-[\w-]*\w)', source))
    assert shown == made


# Decisions


def test_decisions_are_numbered_without_gaps() -> None:
    assert [int(path.name[:4]) for path in DECISIONS] == list(range(1, len(DECISIONS) + 1))


@pytest.mark.parametrize("decision", DECISIONS, ids=lambda path: path.stem)
def test_a_decision_is_one_page_with_context_decision_consequences_and_date(decision: Path) -> None:
    text = decision.read_text()
    assert re.match(rf"# {int(decision.name[:4])}\. .+\n\nDate: \d{{4}}-\d\d-\d\d\. Status: \w+\.\n", text)
    assert all(section(decision, heading).strip() for heading in ("Context", "Decision", "Consequences"))
    assert text.count("\n") <= 60
