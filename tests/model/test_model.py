"""The protocol holds its invariants in every state of the model, and each broken variant violates one."""

from __future__ import annotations

import faulthandler
import os
import re
import warnings

import pytest

from tests.docs.documents import DOCS, code, table
from tests.model import checker
from tests.model.checker import BROKEN, SOUND, Bounds, Broken

PROTOCOL = DOCS / "PROTOCOL.md"


@pytest.fixture
def spin() -> None:
    faulthandler.cancel_dump_traceback_later()  # a search is a process with a time limit of its own
    try:
        checker.install()
    except checker.Unavailable as error:
        message = f"NOT TESTED with the formal model: {error}"
        if os.environ.get("CI") == "true":
            pytest.fail(message, pytrace=False)
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn(message, stacklevel=1)
        pytest.skip(message)


@pytest.mark.slow
@pytest.mark.usefixtures("spin")
@pytest.mark.parametrize("bounds", SOUND, ids=str)
def test_no_state_violates_an_invariant(bounds: Bounds) -> None:
    result = checker.search(bounds)
    assert result.violated is None, "\n".join(result.story[-40:])
    assert result.states > 100_000  # else it is not the protocol that was searched


@pytest.mark.slow
@pytest.mark.usefixtures("spin")
@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.define)
def test_a_broken_variant_is_refuted(broken: Broken) -> None:
    result = checker.search(broken.bounds, broken.define)
    assert result.violated == broken.invariant
    assert result.story


# The document says the same


def test_the_document_names_every_invariant() -> None:
    declared = re.search(r"^bit ([\w,\s]+);", checker.SOURCE.read_text(), re.MULTILINE)
    assert declared is not None
    named = {code(row["invariant"]) for row in table(PROTOCOL, "The invariants")}
    assert named == set(re.findall(r"\w+", declared[1]))


def test_the_document_tells_of_every_broken_variant() -> None:
    told = {code(row["variant"]): code(row["refuted by"]) for row in table(PROTOCOL, "What must break")}
    assert told == {broken.define: broken.invariant for broken in BROKEN}
    source = checker.SOURCE.read_text()
    assert [broken.define for broken in BROKEN if f"def {broken.define}\n" not in source] == []
