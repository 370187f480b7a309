"""What several tests of the node use."""

from __future__ import annotations

from typing import Any

import pytest

from littlebigcluster import (
    Node,
)

FOREVER = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n"


def with_settings(**settings: Any) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("node", [settings], indirect=True, ids=[""])


async def names_of(node: Node) -> list[str]:
    return [name for (name,) in await node.read("SELECT name FROM job ORDER BY id")]
