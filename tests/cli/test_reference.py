"""docs/CLI.md is what the command says."""

from __future__ import annotations

import runpy

from tests.cli.programs import ROOT


def test_the_reference_is_current() -> None:
    tool = runpy.run_path(str(ROOT / "tools" / "cli_reference.py"))
    assert (ROOT / "docs" / "CLI.md").read_text() == tool["reference"](), "run python tools/cli_reference.py"
