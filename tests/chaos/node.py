"""One node of the cluster: a process that is started again whenever it has ended, and its disk."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from tests.scenarios.host import Host

DISK_BYTES = 48 << 20
START_SECONDS = 60.0
FORGIVEN = ("No space left on device", "database or disk is full", "disk I/O error", "File too large")
"""What a node may end with whose disk is full."""


class Disk:
    """A directory that can be filled: a small file system of its own where root may mount one, else the processes
    that use it may not write large files."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir()
        size = ("-o", f"size={DISK_BYTES}")
        mounted = subprocess.run(
            ("mount", "-t", "tmpfs", *size, "tmpfs", str(directory)), capture_output=True, check=False
        )
        self.is_own = mounted.returncode == 0
        self.full = False
        """At present."""
        self.was_full = False
        """At some time since the present process was started."""

    def fill(self, pid: int | None) -> None:
        self.full = self.was_full = True
        if self.is_own:
            with (self.directory / "ballast").open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(1 << 20))
        elif pid is not None:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (64 << 10, resource.RLIM_INFINITY))

    def free(self, pid: int | None) -> None:
        self.full = False
        if self.is_own:
            (self.directory / "ballast").unlink(missing_ok=True)
        elif pid is not None:
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    def wipe(self) -> None:
        for entry in self.directory.iterdir():
            if entry.name != "ballast":
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

    def remove(self) -> None:
        if self.is_own:
            subprocess.run(("umount", "--lazy", str(self.directory)), capture_output=True, check=False)


class ChaosNode:
    """Runs in `live` until that is cancelled. `host` is the process while it is a member, else None."""

    def __init__(
        self,
        number: int,
        place: str,
        *,
        prefix: tuple[str, ...],
        join: Mapping[str, Any],
        settings: Mapping[str, Any],
        store_timeout: float,
        disk: Disk,
        log: IO[bytes],
    ) -> None:
        self.number, self.disk = number, disk
        self.host: Host | None = None
        self.status: dict[str, Any] | None = None
        """What it has said of itself last; None when it does not answer."""
        self.starts = 0
        self.ended_by_itself: list[str] = []
        self.inexcusable: list[str] = []
        self._place, self._prefix, self._join, self._settings = place, prefix, join, dict(settings)
        self._store_timeout, self._log = store_timeout, log
        self._wanted = asyncio.Event()
        self._wanted.set()
        self._process: asyncio.subprocess.Process | None = None
        self._told_to_end = False

    async def live(self) -> None:
        try:
            while True:
                await self._wanted.wait()
                await self._once()
        finally:
            if self._process is not None and self._process.returncode is None:
                self._process.kill()
                await self._process.wait()

    async def _once(self) -> None:
        began = self._log.seek(0, os.SEEK_END)
        self._told_to_end = False
        self.starts += 1
        self.disk.was_full = self.disk.full
        host = await Host.spawn(
            self._place,
            self._join,
            {**self._settings, "directory": str(self.disk.directory / "node")},
            prefix=self._prefix,
            store_timeout=self._store_timeout,
            log=self._log,
        )
        self._process = host.process
        try:
            try:
                await host.joined(within_seconds=START_SECONDS)
                joined, self.host = True, host
            except Exception as error:  # it has ended before; or it still tries, and that is too long
                joined = False
                if isinstance(error, TimeoutError):
                    self.inexcusable.append(f"node {self.number} did not join within {START_SECONDS:g} s")
                    host.process.kill()
            await host.process.wait()
        finally:
            self.host = None
        if not self._told_to_end:
            self._judge(began, joined)
            await asyncio.sleep(0.5)

    def _judge(self, began: int, joined: bool) -> None:
        """A node that ends by itself says why. A full disk excuses it, and while it joins a silent store."""
        text = Path(self._log.name).read_bytes()[began:].decode(errors="replace")
        last = next((line for line in reversed(text.splitlines()) if line.strip()), "it said nothing")
        why = f"node {self.number}: {last[:300]}"
        self.ended_by_itself.append(why)
        without_store = not joined and "StoreUnavailable" in last
        if not without_store and not (self.disk.was_full and any(word in text for word in FORGIVEN)):
            self.inexcusable.append(why)

    def unseen_failures(self) -> list[str]:
        """What asyncio complains of in the log: a failure in the background that nobody has seen."""
        lines = Path(self._log.name).read_text(errors="replace").splitlines()
        return [f"node {self.number}: {line}" for line in lines if " asyncio: " in line]

    def signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    def kill(self) -> None:
        """It stays away until it is wanted again."""
        self._wanted.clear()
        self._told_to_end = True
        self.signal(signal.SIGKILL)

    def leave(self) -> None:
        self._wanted.clear()
        self._told_to_end = True
        self.host = None
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()

    def come_back(self) -> None:
        self._wanted.set()
