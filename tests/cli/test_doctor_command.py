"""`lbc doctor`, as users run it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.cli.programs import error_line, output, run


def test_a_sound_store_is_shown_as_a_table(tmp_path: Path) -> None:
    said = output("doctor", str(tmp_path))
    assert "concurrent creates" in said
    assert "requests, about $0.0" in said
    assert said.endswith(f"{tmp_path.as_uri()}: a cluster can live there\n")


def test_the_store_may_be_that_of_the_command(tmp_path: Path) -> None:
    found = json.loads(output("-p", str(tmp_path), "doctor", "--json"))
    assert found["sound"] is True
    outcomes = {check["name"]: check["outcome"] for check in found["checks"]}
    assert outcomes.pop("latency") in ("pass", "warning")  # as quick as this machine is at the moment
    assert set(outcomes.values()) == {"pass", "not tried"}
    assert all(check["meaning"] and check["advice"] for check in found["checks"])
    assert set(found["figures"]) > {"put_p50_seconds", "clock_difference_seconds"}


def test_no_store_is_an_error() -> None:
    assert "which store?" in error_line("doctor")


@pytest.mark.server("s3rver")
def test_an_unsafe_store_fails_by_name(unsafe_url: str) -> None:
    done = run("doctor", unsafe_url)
    assert done.returncode == 1
    name = unsafe_url.partition("?")[0]
    # Others than those named below may fail there, too (docs/STORES.md).
    assert re.search(rf"^{re.escape(name)}: \d+ checks failed; do not use it as it is$", done.stdout, re.MULTILINE)
    for check in ("refused create", "concurrent creates"):
        assert re.search(rf"^│ {check} +│ fail", done.stdout, re.MULTILINE), done.stdout
    assert "refused create: Two nodes could lead at once" in done.stdout
    assert "secret" not in done.stdout
    assert found_json(unsafe_url)["sound"] is False


def found_json(url: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(run("doctor", "--json", url).stdout)
    return found


def test_a_bucket_that_is_not_there_is_said(ministack_elsewhere: str) -> None:
    done = run("doctor", ministack_elsewhere)
    assert done.returncode == 1
    assert "there is no such bucket or container" in done.stdout


@pytest.fixture
def ministack_elsewhere(s3_url: str) -> str:
    """A bucket that does not exist on a server that does."""
    return s3_url.replace("s3://test-", "s3://nothing-")
