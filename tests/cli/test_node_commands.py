"""init, leader and follower, as processes on a directory."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import pytest

from tests.cli.programs import EXAMPLE, error_line, output, run, running
from tests.net.authority import issue

STAMP = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z"
UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}"
LISTENING = r"( Listening on https://\S+:\d+)?"
COLUMNS = r"│   +│ UUID\(1\) +│ Address +│ AZ  │ Roles │"


def row(mark: str, az: str) -> str:
    """The pattern of a member's line in the table."""
    return rf"^│ {re.escape(mark)} +│ {UUID} │ [^│]* +│ {az} │       │$"


@pytest.fixture
def store(tmp_path: Path) -> str:
    """The path of a store with a cluster."""
    path = str(tmp_path / "store")
    output("-p", path, "init", "--id", "lol")
    return path


def log_of(store: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in output("-p", store, "log", "--json").splitlines()]


def test_init_prints_what_the_original_prints(tmp_path: Path) -> None:
    lines = output("-p", str(tmp_path), "init").splitlines()
    assert re.fullmatch(f"{STAMP}  INFO lbc: Initializing cluster\\.\\.\\.", lines[0])
    assert re.fullmatch(f"{STAMP}  INFO lbc: Cluster initialized!", lines[1])
    assert len(lines) == 2


def test_init_takes_the_settings_of_the_cluster(tmp_path: Path) -> None:
    output("-p", str(tmp_path), "init", "--id", "mine", "--page-size", "512", "--compression", "none")
    status = json.loads(output("-p", str(tmp_path), "status", "--json"))
    assert (status["cluster_id"], status["page_size"], status["compression"]) == ("mine", 512, "none")


def test_a_second_init_is_refused_in_one_line(store: str) -> None:
    assert 'holds cluster "lol" already' in error_line("-p", store, "init")


def test_joining_nothing_says_what_to_do(tmp_path: Path) -> None:
    assert "init" in error_line("-p", str(tmp_path), "leader")


def test_leader_tells_its_way_to_the_leadership(store: str) -> None:
    with running("-p", store, "leader") as leader:
        leader.until("Leader changed:")
        leader.until("└")
        text = "".join(leader.seen)
        steps = ["Joining cluster...", "Joined cluster!", "Initial members:", "Waiting for leadership..."]
        steps += ["We are the new leader!", "Leader changed:"]
        for step in steps:
            assert re.search(f"^{STAMP}  INFO lbc\\.leader: {re.escape(step)}{LISTENING}$", text, re.MULTILINE), step
        assert [text.index(step) for step in steps] == sorted(text.index(step) for step in steps)
        assert re.search(f"^{COLUMNS}$", text, re.MULTILINE)
        assert re.search(row("*", "AZ0"), text, re.MULTILINE)
        assert re.search(row("*L", "AZ0"), text, re.MULTILINE)


def test_follower_sees_the_leader_come_and_go(store: str) -> None:
    quick = ("--poll-interval", "0.1")
    with running("-p", store, "follower", "--az", "AZ1", *quick) as follower:
        follower.until("Initial members:")
        with running("-p", store, "leader", *quick) as leader:
            leader.until("We are the new leader!")
            follower.until("Leader changed:")
            follower.until("UUID(2)")
            follower.until("└")
            assert re.search(row("*", "AZ1"), "".join(follower.seen), re.MULTILINE)
            assert re.search(row("L", "AZ0"), "".join(follower.seen), re.MULTILINE)
            leader.signal(signal.SIGINT)
            follower.until("Leader changed: nobody leads")
            follower.until("UUID(1)")
        follower.signal(signal.SIGINT)
        assert follower.ended() == 0


def test_all_members_are_told_of_each_other(store: str) -> None:
    with running("-p", store, "leader") as leader:
        leader.until("We are the new leader!")
        with running("-p", store, "follower", "--role", "worker", "--role", "web") as follower:
            leader.until("Members changed:")
            leader.until("UUID(2)")
            leader.until("│ worker, web │")
            follower.until("UUID(2)")
            with running("-p", store, "follower", "--az", "AZ2") as another:
                another.until("UUID(3)")
                follower.until("UUID(3)")
                follower.until("│ AZ2 │")
                another.signal(signal.SIGINT)
                assert another.ended() == 0
            follower.until("UUID(2)")
            leader.until("UUID(3)")
            leader.until("UUID(2)")


def test_a_node_listens_where_it_is_told(store: str) -> None:
    with running("-p", store, "follower", "--address", "127.0.0.1:0", "--advertise", "localhost:4711") as follower:
        follower.until("Listening on https://localhost:4711")
        follower.until("│ localhost:4711 │ AZ0 │")


def test_without_tls_a_node_says_so_and_serves_this_machine_only_unless_told_twice(store: str) -> None:
    everywhere = ("--tls", "off", "--address", "0.0.0.0:0", "--advertise", "127.0.0.1:1")
    refused = run("-p", store, "leader", *everywhere)
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert "insecure" in refused.stderr
    for options in (("--tls", "off", "--address", "127.0.0.1:0"), (*everywhere, "--insecure")):
        with running("-p", store, "follower", *options) as follower:
            follower.until("WARN littlebigcluster.cluster.listener: TLS is off: everybody who reaches")
            follower.until("Listening on http://127.0.0.1:")


def test_nodes_and_tools_take_own_certificates(store: str, tmp_path: Path) -> None:
    company = issue("company", is_authority=True)
    node = issue("node", company)
    for name, content in (("tls.crt", node.pem), ("tls.key", node.key_pem), ("ca.crt", company.pem)):
        (tmp_path / name).write_bytes(content)
    names = {"--tls-certificate": "tls.crt", "--tls-private-key": "tls.key", "--tls-authorities": "ca.crt"}
    own = [word for option, name in names.items() for word in (option, str(tmp_path / name))]
    from_environment = {"LBC" + option[1:].replace("-", "_").upper(): str(tmp_path / n) for option, n in names.items()}
    with running("-p", store, "leader", "--address", "127.0.0.1:0", *own) as leader:
        leader.until("We are the new leader!")
        with running("-p", store, "follower", "--address", "127.0.0.1:0", *own) as follower:
            follower.until("UUID(2)")
            told = run("-p", store, "members", "--json", **from_environment)
            assert len(json.loads(told.stdout)["members"]) == 2
        assert json.loads(output("-p", store, "status", "--json", *own))["source"] == "leader"
        without = json.loads(output("-p", store, "status", "--json"))
        assert (without["source"], without["members"]) == ("store", None)
    (tmp_path / "tls.key").write_text("nonsense")
    assert f"{tmp_path / 'tls.key'} holds no private key" in run("-p", store, "leader", *own).stderr


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_makes_the_leader_release(store: str, signum: signal.Signals) -> None:
    with running("-p", store, "leader") as leader:
        leader.until("We are the new leader!")
        leader.signal(signum)
        assert leader.ended() == 0
        assert "Releasing the leadership..." in "".join(leader.seen)
        assert f"Left the cluster ({signum.name})." in leader.seen[-1]
    assert [entry["leader"] is None for entry in log_of(store)] == [False, True]


def test_a_standby_takes_over_from_a_leader_that_released(store: str) -> None:
    quick = ("--poll-interval", "0.1")
    with running("-p", store, "leader", *quick) as first:
        first.until("We are the new leader!")
        with running("-p", store, "leader", *quick) as second:
            second.until("Waiting for leadership...")
            first.signal(signal.SIGTERM)
            second.until("We are the new leader!")
    assert [entry["term"] for entry in log_of(store)] == [1, 1, 2]


def test_a_second_signal_ends_the_leader_at_once(store: str) -> None:
    with running("-p", store, "leader") as leader:
        leader.until("We are the new leader!")
        # Stopped, it gets both before it can act on the first.
        leader.signal(signal.SIGSTOP)
        leader.signal(signal.SIGINT)
        leader.signal(signal.SIGTERM)
        leader.signal(signal.SIGCONT)
        assert leader.ended() in (130, 143)
        assert "Left the cluster" not in "".join(leader.seen)
    assert [entry["leader"] is None for entry in log_of(store)] == [False]


def test_a_kept_directory_is_for_one_node(store: str, tmp_path: Path) -> None:
    directory = str(tmp_path / "copy")
    with running("-p", store, "follower", "--directory", directory) as follower:
        follower.until("Initial members:")
        assert "another node works in" in error_line("-p", store, "follower", "--directory", directory)


def test_a_setting_that_cannot_be_is_refused_in_one_line(store: str) -> None:
    assert "leader_timeout" in error_line("-p", store, "leader", "--leader-timeout", "-1")


def test_verbose_shows_the_library_at_work(store: str) -> None:
    with running("-v", "-p", store, "leader") as leader:
        leader.until("littlebigcluster.roles.leader: leading since epoch 1, term 1")


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_the_example_is_a_cluster_too(tmp_path: Path, signum: signal.Signals) -> None:
    path = str(tmp_path / "store")
    assert "lol_cluster: Cluster initialized!" in run("-p", path, "init", program=EXAMPLE).stderr
    with running("-p", path, "leader", program=EXAMPLE) as leader:
        leader.until("We are the new leader!")
        with running("-p", path, "follower", program=EXAMPLE) as follower:
            follower.until("Initial members:")
            follower.until("UUID(2)")
        leader.signal(signum)
        assert leader.ended() == 0
        assert "lol_cluster: Left the cluster." in leader.seen[-1]
    assert [entry["leader"] is None for entry in log_of(path)] == [False, True]
    again = run("-p", path, "init", program=EXAMPLE)
    assert (again.returncode, again.stderr.count("Traceback")) == (1, 0)


def test_snapshot_has_a_follower_make_one(store: str) -> None:
    with running("-p", store, "leader") as leader:
        leader.until("We are the new leader!")
        alone = output("-p", store, "snapshot")
        assert re.fullmatch(rf"Snapshot of epoch \d+, [0-9.]+ (B|KiB), made by {UUID}\.\n", alone)
        with running("-p", store, "follower") as follower:
            follower.until("Initial members:")
            leader.until("Members changed")
            made = json.loads(output("-p", store, "snapshot", "--json"))
            status = json.loads(output("-p", store, "status", "--json"))
            assert made["by"] != status["leader"]["uuid"]
            assert (made["epoch"], made["size_bytes"]) == (status["snapshot_epoch"], status["snapshot_size_bytes"])
    with running("-p", store, "leader") as leader:
        leader.until("We are the new leader!")
        leader.signal(signal.SIGSTOP)
        stopped = error_line("-p", store, "snapshot")
        leader.signal(signal.SIGKILL)
        leader.ended()
    where = r"no talking to the leader over TLS with the cluster's certificates: POST https://[^ ]+/\.lbc/snapshot"
    advice = "; if it is dead, the next node that can lead takes over\n"
    assert re.fullmatch(f"Error: {where}: it does not answer{advice}", stopped)
    dead = error_line("-p", store, "snapshot")
    assert re.fullmatch(rf"Error: {where}: nobody listens there \(connection refused\){advice}", dead)
    shown = json.loads(output("-p", store, "status", "--json"))
    assert shown["leader_error"].endswith("the next node that can lead takes over")
    assert len(shown["leader_error"]) < 250
