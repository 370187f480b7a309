"""Fixtures for all tests: clocks, stores, and the servers behind them."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

os.environ.setdefault("LBC_ADDRESS", "127.0.0.1")  # nodes under test are reached by this machine only

from littlebigcluster.clock import Clock
from tests import buckets, servers, untested
from tests.servers import Server


def _server(kind: str, request: pytest.FixtureRequest) -> Iterator[Server]:
    try:
        with servers.shared_server(kind, keep_logs=lambda: request.session.testsfailed > 0) as server:
            yield server
    except servers.Unavailable as error:
        message = f"NOT TESTED against {kind}: {error}"
        if os.environ.get("CI") == "true":
            pytest.fail(message, pytrace=False)
        untested.warn(message)
        pytest.skip(message)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs a server, so that it can be left out: `-m "not server"`."""
    for item in items:
        for kind in servers.KINDS:
            if kind in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.server(kind))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What tests want to be read where the log ends, also if they ran in other processes."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            if name == "told at the end":
                terminalreporter.write_line(str(value))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="session")
def ministack(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A small S3 server."""
    yield from _server("ministack", request)


@pytest.fixture(scope="session")
def ceph(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A real distributed object store with an S3 gateway. Shared: use `own_server` to stop its processes."""
    yield from _server("ceph", request)


@pytest.fixture(scope="session")
def azurite(request: pytest.FixtureRequest) -> Iterator[Server]:
    """An emulator of Azure's blob storage."""
    yield from _server("azurite", request)


@pytest.fixture(scope="session")
def s3rver(request: pytest.FixtureRequest) -> Iterator[Server]:
    """An S3 server that ignores conditions: the store that must be refused."""
    yield from _server("s3rver", request)


@pytest.fixture
def s3_url(ministack: Server) -> str:
    """The URL of an empty prefix in a fresh bucket."""
    return buckets.new_s3_url(ministack)


@pytest.fixture
def ceph_url(ceph: Server) -> str:
    """The URL of an empty prefix in a fresh bucket of Ceph."""
    return buckets.new_s3_url(ceph)


@pytest.fixture
def azure_url(azurite: Server) -> str:
    """The URL of an empty prefix in a fresh container of Azurite."""
    return buckets.new_azure_url(azurite)


@pytest.fixture
def unsafe_url(s3rver: Server) -> str:
    """The URL of a store that must be refused."""
    return buckets.new_s3_url(s3rver)
