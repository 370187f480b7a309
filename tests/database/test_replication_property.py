"""The property that all rests on: whatever the leader does, a follower that applies its epochs has the same bytes.

After every epoch all readers of the follower see exactly the leader's content, readers that hold an older snapshot
see that one, and the state checksum is that of the leader's file. `LBC_SEEDS` sets how many histories are tried,
`LBC_SEED` the first.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from contextlib import closing
from pathlib import Path
from random import Random

import pytest
from dying_applier import STEPS
from history import History, content, create_database

from littlebigcluster.clock import Clock
from littlebigcluster.database import replica as replica_module
from littlebigcluster.database.checksum import StateChecksum
from littlebigcluster.database.primary import Primary
from littlebigcluster.database.replica import Replica
from littlebigcluster.database.wal import Wal, parse
from littlebigcluster.database.walindex import WalIndex

SEEDS = int(os.environ.get("LBC_SEEDS", "10"))
FIRST_SEED = int(os.environ.get("LBC_SEED", "1"))
MAX_EPOCH_BYTES = 16 << 20
HERE = Path(__file__).parent


@pytest.mark.parametrize("part", range(2))
def test_a_follower_has_the_bytes_of_the_leader_after_any_history(
    part: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: Counter[str] = Counter()
    for seed in range(FIRST_SEED + part, FIRST_SEED + SEEDS, 2):
        directory = tmp_path / str(seed)
        directory.mkdir()
        with monkeypatch.context() as patch:
            cluster = Cluster(directory, Random(seed), counts, patch)
            try:
                cluster.run()
            except BaseException as error:
                error.add_note(f"seed {seed}, epoch {cluster.epoch}: LBC_SEED={seed} LBC_SEEDS=1 repeats it")
                raise
            finally:
                cluster.close()
    print(dict(counts))


class Cluster:
    """A leader and a follower in one process, without a log between them."""

    def __init__(self, directory: Path, random: Random, counts: Counter[str], patch: pytest.MonkeyPatch) -> None:
        self.random, self.counts, self.patch = random, counts, patch
        self.clock = Clock()
        self.epoch = 0
        self.path, self.primary_path = directory / "replica.db", directory / "primary.db"
        self.page_size = create_database(str(self.path), random)
        self.history = History(random, counts)
        # With a small cache transactions spill, also those that are rolled back later.
        self.spills = random.random() < 0.5
        patch.setattr(replica_module, "CHECKPOINT_FRAMES", random.choice((20, 200, 1000)))
        patch.setattr(replica_module, "WAIT_FRAMES", random.choice((40, 2000)))
        patch.setattr(replica_module, "_WAIT_MILLISECONDS", 1)
        self.replica = Replica.open(self.path, clock=self.clock)
        self.primary = self.make_primary()
        self.pinned: dict[int, str] = {}
        self.readers = self.open_readers()

    def make_primary(self) -> Primary:
        with self.replica.pages() as pages:
            primary = Primary.create(self.primary_path, pages, clock=self.clock, max_epoch_bytes=MAX_EPOCH_BYTES)
        if self.spills:
            primary._run("PRAGMA cache_size = 10")
        return primary

    def open_readers(self) -> list[sqlite3.Connection]:
        return [self.replica.connect() for _ in range(3)]

    def run(self) -> None:
        for _ in range(self.random.randrange(15, 35)):
            self.epoch += 1
            self.history.batch(self.primary)
            if self.random.random() < 0.05:
                self.fenced()
            if self.random.random() < 0.95:
                self.primary.system(epoch=self.epoch)
            raw = self.primary.take()
            if raw is None:
                self.counts["empty"] += 1
                continue
            self.counts["epochs"] += 1
            self.replicate(parse(raw, page_size=self.page_size))
            self.check()
            if self.random.random() < 0.2:
                self.checkpoint()
        for reader in tuple(self.pinned):
            self.unpin(reader)
        self.check_bytes()

    def replicate(self, wal: Wal) -> None:
        self.pin_or_unpin()
        expected = self.leader_checksum()
        assert self.replica.checksum_after(wal) == expected
        choice = self.random.random()
        if choice < 0.1:
            self.fail(wal)
        elif choice < 0.13 and self.killed(wal) == expected:
            return
        self.replica.apply(wal, expected_checksum=expected)

    def leader_checksum(self) -> int:
        """Of all bytes of the leader's file, which `take` has checkpointed."""
        checksum = StateChecksum(self.page_size)
        checksum.feed(self.primary_path.read_bytes())
        return checksum.value

    def fenced(self) -> None:
        """The batch was for nothing: the primary is thrown away."""
        self.counts["fenced"] += 1
        self.primary.discard()
        self.primary = self.make_primary()

    def fail(self, wal: Wal) -> None:
        """An attempt to apply that runs out of disk midway. Nobody sees anything of it."""
        before = content(self.readers[0])
        full = OSError(28, "No space left on device")

        def write_a_part(descriptor: int, data: bytes, offset: int) -> None:
            os.pwrite(descriptor, data[: self.random.randrange(len(data))], offset)
            raise full

        def add_a_part(index: WalIndex, frames: int, page_numbers: list[int]) -> None:
            add(index, frames, page_numbers[: self.random.randrange(len(page_numbers) + 1)])
            raise full

        add = WalIndex.add
        with self.patch.context() as patch:
            if self.random.random() < 0.5:
                patch.setattr(replica_module, "write_at", write_a_part)
            else:
                patch.setattr(WalIndex, "add", add_a_part)
            with pytest.raises(OSError, match="No space left"):
                self.replica.apply(wal, expected_checksum=None)
        assert content(self.readers[0]) == before
        self.counts["failed"] += 1

    def killed(self, wal: Wal) -> int:
        """Another process applies and dies midway; here all is opened again. Returns the state checksum then."""
        for reader in tuple(self.pinned):
            self.unpin(reader)
        self.close_replica()
        step = self.random.choice(STEPS)
        file = self.path.with_name("epoch.wal")
        file.write_bytes(wal.raw)
        # A foreign process that keeps the wal-index alive: then no recovery cleans up what was left behind.
        holder = hold(self.path) if self.random.random() < 0.5 else None
        try:
            assert apply_and_die(self.path, file, step) == -signal.SIGKILL
            self.replica = Replica.open(self.path, clock=self.clock)
        finally:
            if holder is not None:
                holder.kill()
                holder.communicate()
        self.readers = self.open_readers()
        self.counts[f"killed at {step}"] += 1
        return self.replica.checksum

    def pin_or_unpin(self) -> None:
        reader = self.random.randrange(3)
        if reader not in self.pinned and self.random.random() < 0.3:
            self.readers[reader].execute("BEGIN")
            self.pinned[reader] = content(self.readers[reader])
        elif reader in self.pinned and self.random.random() < 0.3:
            self.unpin(reader)

    def unpin(self, reader: int) -> None:
        assert content(self.readers[reader]) == self.pinned.pop(reader), "a pinned snapshot has changed"
        self.readers[reader].execute("COMMIT")
        self.counts["pinned"] += 1

    def check(self) -> None:
        with closing(sqlite3.connect(f"file:{self.primary_path}?mode=ro", uri=True)) as leader:
            want = content(leader)
        for number, reader in enumerate(self.readers):
            assert content(reader) == self.pinned.get(number, want)
        # The module keeps prepared statements by their text, so these were all prepared in older epochs.
        assert self.readers[0].execute("SELECT count(*) FROM plain").fetchone() is not None

    def checkpoint(self) -> None:
        """By somebody else, as the sqlite3 shell might do it."""
        mode = self.random.choice(("PASSIVE", "RESTART", "TRUNCATE"))
        connection = sqlite3.connect(self.path, timeout=0, isolation_level=None)
        busy, _, _ = connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
        connection.close()
        self.counts[f"{mode} {'busy' if busy else 'done'}"] += 1

    def check_bytes(self) -> None:
        leader = self.primary_path.read_bytes()
        with self.replica.pages() as pages:
            assert b"".join(pages.chunks(10_000)) == leader
        assert self.readers[0].execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        self.close_replica()
        assert self.path.read_bytes() == leader
        assert not Path(f"{self.path}-wal").exists()

    def close_replica(self) -> None:
        for reader in self.readers:
            reader.close()
        self.readers = []
        self.replica.close()

    def close(self) -> None:
        self.close_replica()
        self.primary.close()


def hold(path: Path) -> subprocess.Popen[str]:
    """A process that reads from the database, and keeps it open."""
    code = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None);"
        "c.execute('SELECT count(*) FROM sqlite_master').fetchall(); print('open', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "open\n"
    return process


def apply_and_die(replica: Path, wal: Path, step: str) -> int:
    return subprocess.run([sys.executable, HERE / "dying_applier.py", replica, wal, step], check=False).returncode
