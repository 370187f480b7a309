"""Writes docs/STORES.md: `python -m tests.stores_report > docs/STORES.md`. A test compares its outcomes with a run.

Examines every store that the tests can start; the servers are installed under `.servers/` if need be.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import tempfile
from collections.abc import Iterator

from littlebigcluster import Examination, examine_store
from littlebigcluster.clock import Clock
from littlebigcluster.store.doctor import PROMISES
from tests import buckets, servers

STORES = {
    "directory": "a directory on a local disk",
    "memory": "obstore's store in memory",
    "ministack": f"the S3 emulator {servers.MINISTACK.replace('==', ' ')}",
    "ceph": "Ceph RGW with one OSD in memory, from Debian's packages",
    "azurite": f"the Azure emulator {servers.NODE_PACKAGES['azurite'].replace('@', ' ')}",
    "s3rver": f"the S3 emulator {servers.NODE_PACKAGES['s3rver'].replace('@', ' ')}, which ignores conditions",
}

UNLUCKY = "s3rver"
"""It answers a PUT before what that writes can be read, and whether a read comes in between is a matter of luck: what
passes in one run may fail in the next one, where the machine is busy."""

INTRODUCTION = """\
# Stores

What `lbc doctor STORE` finds in every store that the tests of this project can start. Written by
`python -m tests.stores_report > docs/STORES.md`; do not edit. `tests/contract/test_doctor.py` compares the outcomes
with a run. S3, GCS and Azure themselves cannot be started by tests: run `lbc doctor` against your bucket.

All happens below `.lbc/doctor-<random>/` of the given prefix and is deleted at the end, also after Ctrl-C, so it may be
done beside a running cluster. Only SIGKILL leaves objects there, which nothing needs; delete them by hand. From Python:
`littlebigcluster.examine_store(location)`.
"""


@contextlib.contextmanager
def location_of(kind: str) -> Iterator[str]:
    """Where a fresh store of this kind is, while it runs. Raises servers.Unavailable."""
    if kind == "directory":
        with tempfile.TemporaryDirectory() as directory:
            yield directory
    elif kind == "memory":
        yield "memory://"
    else:
        with servers.shared_server(kind) as server:
            yield buckets.new_azure_url(server) if kind == "azurite" else buckets.new_s3_url(server)


def examined(kind: str) -> Examination:
    with location_of(kind) as location:
        return asyncio.run(examine_store(location))


def outcome(value: str) -> str:
    """As the table shows it."""
    return "**FAIL**" if value == "fail" else value


def report() -> str:
    """The whole document."""
    found = {kind: examined(kind) for kind in STORES}
    names = [check.name for check in found["directory"].checks]
    lines = [INTRODUCTION, "## Outcomes\n"]
    lines += [f"- **{kind}**: {what}" for kind, what in STORES.items()]
    lines += ["", *_row("check", *STORES), *_row(*["---"] * (len(STORES) + 1))]
    for index, name in enumerate(names):
        lines += _row(name, *(outcome(each.checks[index].outcome) for each in found.values()))
    lines.append(
        f"\n{UNLUCKY} answers a PUT before what it writes can be read: what passes there may fail another time."
    )
    lines += ["", "## What was seen where it did not pass\n"]
    for kind, each in found.items():
        lines += [
            f"- {kind}, {c.name}: {_brief(c.seen)}." for c in each.checks if c.outcome in ("fail", "warning", "unknown")
        ]
    lines += ["", "## What a failure would mean\n", *_row("check", "for a cluster", "what to do"), *_row(*["---"] * 3)]
    for promise in PROMISES:
        lines += _row(promise.name, promise.meaning, promise.advice)
    date = Clock().now().date()
    lines += [
        f"\n## Latencies\n\nOn a shared machine with two cores, all of it on loopback, {date}; p50 / p99 in ms of 100",
        "requests of 1,000 bytes, one at a time. They say how far away the store is, no more.\n",
        *_row("store", "PUT", "GET", "LIST", "requests", "cost at S3 Standard list prices"),
        *_row(*["---"] * 6),
    ]
    for kind, each in found.items():
        texts = (
            f"{each.figures[f'{name}_p50_seconds'] * 1000:.1f} / {each.figures[f'{name}_p99_seconds'] * 1000:.1f}"
            for name in ("put", "get", "list")
        )
        lines += _row(kind, *texts, f"{sum(each.requests.values()):,}", f"${each.cost_dollars:.3f}")
    return "\n".join(lines)


def _brief(seen: str) -> str:
    """Without what differs in each run."""
    return re.sub(r"doctor-\w+", "doctor-...", re.sub(r"test-\w+", "bucket", seen)).partition(": Generic")[0]


def _row(*cells: str) -> list[str]:
    return [f"| {' | '.join(cells)} |"]


if __name__ == "__main__":
    print(report())
