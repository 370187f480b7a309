"""docs/SIMULATING.md: the program runs."""

from __future__ import annotations

from tests.docs.documents import DOCS, blocks


def test_the_program_runs() -> None:
    ((line, source),) = blocks(DOCS / "SIMULATING.md", "python")
    exec(compile("\n" * (line - 1) + source, "SIMULATING.md", "exec"), {})
