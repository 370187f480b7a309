"""What several tests of the database begin with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from replicated import Database


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(tmp_path)
    yield database
    database.close()
