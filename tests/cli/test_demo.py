"""The demo, shortened, from end to end."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.programs import PATIENCE_SECONDS, error_line, output, run, running

SHORT = ("demo", "--seconds", "1")


def ended(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def node_pids(temporary: Path, log: str = "*.log") -> set[int]:
    """The processes of nodes that log below this directory; only Linux can tell."""
    found = set()
    for link in Path("/proc").glob("[0-9]*/fd/2"):
        with contextlib.suppress(OSError):
            target = link.readlink()
            if target.is_relative_to(temporary) and target.match(log):
                found.add(int(link.parts[2]))
    return found


@pytest.mark.slow
def test_demo_survives_its_leader_and_proves_it(tmp_path: Path) -> None:
    done = run(*SHORT, TMPDIR=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    text = done.stdout
    assert "PASSED: every acknowledged write is on every node, exactly once, and no other." in text
    for pattern in [
        r"leader_timeout 3 \(20\), ",
        r"│ node [12] │ \d+ +│ leader +│ AZ[01] │ web +│",
        r"│ node 4 │ \d+ +│ follower │ AZ1 │ worker │ +\d+ │ +[\d,]+ │ +[\d,]+ │ +(\d+ ms|-) │",
        r"kill -9 \d+: node [12], the leader, is dead",
        r"node [12] leads, term \d+; first durable write \d+\.\d\d s after the kill",
        r"node [12] is off the member list",
        r"node [12] has come back",
        r"failover  \d+\.\d\d s",
        r"through node 1 [\d,]+, node 2 [\d,]+, node 3 [\d,]+, node 4 [\d,]+",
        r"[\d,]+ under way through other nodes at the kill, [\d,]+ acknowledged in the end",
        r"latency   through the leader   p50 [\d,.]+ ms, p99 [\d,.]+ ms, longest [\d,.]+ ms",
        r"through another node p50 [\d,.]+ ms",
        r"lag       from the store's answer .*\n(            node \d p50 [\d,.]+ ms, p99 .*\n){3,4}",
        r"rows      [\d,]+ on each of 4 nodes, and in a copy restored from the store \(epoch \d+\)",
        r"lost      0 acknowledged writes",
        r"doubled   0 writes",
        r"phantom   0 rows",
        r"unknown   \d+ writes? without an answer; looked up: \d+ took effect",
    ]:
        assert re.search(pattern, text), pattern
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_demo_runs_in_a_store_of_the_users(tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    text = output("-p", store, *SHORT)
    assert "PASSED" in text
    assert f"lbc -p {store} log" in text
    (rows,) = re.findall(r"rows +([\d,]+) on each", text)
    counted = output("-p", store, "sql", "SELECT count(*) AS n FROM demo_write", "--json")
    assert counted.strip() == f'{{"n": {rows.replace(",", "")}}}'
    assert 'holds cluster "demo" already' in error_line("-p", store, *SHORT)


@pytest.mark.slow
def test_demo_can_leave_the_cluster_running(tmp_path: Path) -> None:
    done = run(*SHORT, "--keep", TMPDIR=str(tmp_path))
    found = re.search(r"kill ([\d ]+) && rm -r (\S+)", done.stdout)
    assert found, done.stdout + done.stderr
    pids = [int(pid) for pid in found[1].split()]
    try:
        assert done.returncode == 0
        assert len(pids) == 4
        (joining,) = re.findall(r"Join it: +lbc (.*)", done.stdout)
        with running(*joining.split(), "--poll-interval", "0.1") as follower:
            follower.until("UUID(2)")
            leader = re.search(r"│ L │ (\S+)", follower.until("│ L │"))
            assert leader
            assert not any(ended(pid) for pid in pids)
            for pid in pids:
                os.kill(pid, signal.SIGTERM)
            wait_for(lambda: all(ended(pid) for pid in pids))
    finally:
        for pid in pids:
            if not ended(pid):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="finds the nodes in /proc")
def test_demo_fails_when_a_node_dies_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with running(*SHORT) as demo:
        demo.until("node 3 and node 4 as followers")
        os.kill(node_pids(tmp_path, "node-4.log").pop(), signal.SIGKILL)
        demo.until("Error: node 4 ended by itself")
        assert demo.ended() == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="finds the nodes in /proc")
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_nodes_never_outlive_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signum: signal.Signals) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with running("demo") as demo:
        demo.until("writing through all four")
        pids = node_pids(tmp_path)
        assert len(pids) == 4
        demo.signal(signum)
        demo.ended()
        wait_for(lambda: all(ended(pid) for pid in pids))
    if signum == signal.SIGINT:
        assert not [line for line in demo.seen if "rror" in line]
        assert list(tmp_path.iterdir()) == []
