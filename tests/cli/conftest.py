"""What the commands leave behind when they are killed goes with the test."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def temporary_directory(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the processes that a test starts; not below its tmp_path, which may have to be empty."""
    monkeypatch.setenv("TMPDIR", str(tmp_path_factory.mktemp("temporary")))
