"""docs/OPERATING.md against the settings, the loggers and the messages of the code."""

from __future__ import annotations

import ast
import dataclasses
import re
from typing import Any

import pytest

from littlebigcluster import errors
from littlebigcluster.errors import LbcError
from littlebigcluster.settings import ClusterSettings, NodeSettings
from tests.docs.documents import DOCS, PACKAGE, code, table

OPERATING = DOCS / "OPERATING.md"
SETTINGS = [("Settings of a cluster", ClusterSettings), ("Settings of a node", NodeSettings)]
SOURCE = {path: path.read_text() for path in PACKAGE.rglob("*.py")}

every_kind = pytest.mark.parametrize(("heading", "kind"), SETTINGS, ids=lambda value: getattr(value, "__name__", ""))


@every_kind
def test_settings_are_those_of_the_code_in_their_order(heading: str, kind: Any) -> None:
    documented = [code(row["setting"]) for row in table(OPERATING, heading)]
    assert documented == [field.name for field in dataclasses.fields(kind)]


@every_kind
def test_defaults_are_those_of_the_code(heading: str, kind: Any) -> None:
    documented = {code(row["setting"]): ast.literal_eval(code(row["default"])) for row in table(OPERATING, heading)}
    defaults = dataclasses.asdict(kind())
    assert documented == defaults
    assert {name: type(value) for name, value in documented.items()} == {
        name: type(value) for name, value in defaults.items()
    }


@every_kind
def test_units_are_those_of_the_code(heading: str, kind: Any) -> None:
    units = {code(row["setting"]): row["unit"] for row in table(OPERATING, heading)}
    for field in dataclasses.fields(kind):
        is_duration, is_size = "Duration" in str(field.type), field.name.endswith(("_bytes", "_size"))
        expected = "seconds" if is_duration else "bytes" if is_size else None
        if expected or units[field.name] in ("seconds", "bytes"):
            assert units[field.name] == expected, field.name
        assert units[field.name] or "int" not in str(field.type), f"{field.name} counts something: say what"


def test_the_price_of_idling_is_computed_from_the_defaults() -> None:
    settings, month = NodeSettings(), 365 / 12 * 86400
    put, get = 0.005 / 1000, 0.0004 / 1000
    signs = 3 / float(settings.leader_timeout)  # type: ignore[arg-type]
    looks = 1 / (float(settings.leader_timeout) * 3 / 4)  # type: ignore[arg-type]
    text = OPERATING.read_text()
    assert f"{signs:.2f} PUT/s, {signs + 2 * looks:.2f} GET/s" in text
    assert f"${month * (signs * put + (signs + 2 * looks) * get):.2f} a month." in text
    assert f"${month * signs * (put + get):.2f} a month at 20 s" in text
    assert f"{month * looks * get * 100:.0f} cents a month at 20 s" in text
    assert f"${month * get:.2f} a month for each such node at 1 s" in text


def test_loggers_exist() -> None:
    for row in table(OPERATING, "Logging"):
        path = PACKAGE.parent / (code(row["logger"]).replace(".", "/") + ".py")
        assert "getLogger(__name__)" in SOURCE[path]


def test_the_failure_table_names_errors_and_messages_of_the_code() -> None:
    names = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, LbcError)}
    literals = " ".join(SOURCE.values())
    for row in table(OPERATING, "When something breaks"):
        for word in re.findall(r"`([^`]+)`", row["what you see"]):
            if word[0].isupper():
                assert word in names, word
            elif " " in word:  # a line in the log; the code may make it up from parts
                assert all(part in literals for part in word.split("; ")), word
