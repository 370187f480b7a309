"""Processes that are killed, stopped and continued, on a store in a directory."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from littlebigcluster import Cluster, DirectoryInUse, NodeSettings
from tests.scenarios.checker import Recorder
from tests.scenarios.member import STEPS
from tests.scenarios.stage import WAIT

REPOSITORY = Path(__file__).parents[2]


class Member:
    """A process that runs `tests.scenarios.member`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []
        self._news = asyncio.Event()
        self._listening = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.lines.append(line.decode().strip())
            self._news.set()
        self._news.set()

    async def says(self, condition: Callable[[list[str]], object]) -> None:
        """Until what it has said so far fulfils the condition."""
        async with asyncio.timeout(WAIT):
            while not condition(self.lines):
                assert not self._listening.done(), f"it ended: {self.lines[-5:]}"
                self._news.clear()
                await self._news.wait()

    async def says_word(self, word: str, times: int = 1) -> None:
        await self.says(lambda lines: sum(line.split()[0] == word for line in lines) >= times)

    def words(self) -> list[str]:
        return [line.split()[0] for line in self.lines]

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def ends(self) -> int:
        async with asyncio.timeout(WAIT):
            await self._listening
            return await self.process.wait()


class Processes:
    def __init__(self, place: Path) -> None:
        self.place = place
        self.members: list[Member] = []

    async def member(self, *arguments: str) -> Member:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.scenarios.member", str(self.place),
            "--first", str(1000 * len(self.members) + 1), *arguments,
            stdout=asyncio.subprocess.PIPE, cwd=REPOSITORY,
        )  # fmt: skip
        member = Member(process)
        self.members.append(member)
        return member

    async def check(self) -> Recorder:
        """All that the processes have told, against the store."""
        recorder = Recorder(Cluster(self.place))
        for member in self.members:
            recorder.transcript(member.lines)
        await recorder.check()
        return recorder


@pytest.fixture
async def processes(tmp_path: Path) -> AsyncIterator[Processes]:
    made = Processes(tmp_path / "store")
    await Cluster(made.place).init("lol")
    yield made
    for member in made.members:
        with contextlib.suppress(ProcessLookupError):
            member.process.kill()
        await member.ends()


@pytest.mark.parametrize("step", STEPS)
async def test_a_leader_that_is_killed_in_an_append_loses_nothing(processes: Processes, step: str) -> None:
    a = await processes.member("--die", step)
    await a.says_word("leads")
    b = await processes.member()
    assert await a.ends() == -signal.SIGKILL
    assert a.lines[-1] == "begin 6"  # killed in the midst of it
    await b.says_word("done", times=5)
    b.signal(signal.SIGTERM)
    assert await b.ends() == 0
    recorder = await processes.check()
    assert recorder.history.fates[6] == "unknown"
    async with Cluster(processes.place).head() as head:
        there = (await head.query("SELECT count(*) FROM op WHERE id = 6")).rows == [(1,)]
    assert there == (step != "before-put")


async def test_a_stopped_leader_is_replaced_and_fenced_and_rejoins_as_standby(processes: Processes) -> None:
    # When it is a standby again, only a release can make it lead: the new leader may be slow, too.
    a = await processes.member("--leader-timeout", "60", "--suspect-timeout", "inf")
    await a.says_word("done", times=5)
    b = await processes.member()
    await b.says_word("joined")
    a.signal(signal.SIGSTOP)
    before = len(a.lines)
    await b.says_word("done", times=5)
    a.signal(signal.SIGCONT)
    await a.says_word("follows")
    await b.says_word("done", times=20)
    # Of what it had said it would write it acknowledges nothing; only an answer that was there before it stopped.
    late = [line for line in a.lines[before:] if line.startswith("done")]
    assert len(late) <= 1
    assert "leads 3" not in a.lines
    b.signal(signal.SIGTERM)
    assert await b.ends() == 0
    await a.says(lambda lines: "leads 3" in lines)
    a.signal(signal.SIGTERM)
    assert await a.ends() == 0
    await processes.check()


async def test_a_leader_that_is_told_to_stop_hands_over_at_once(processes: Processes) -> None:
    a = await processes.member("--leader-timeout", "3600")
    await a.says_word("done", times=5)
    b = await processes.member("--leader-timeout", "3600")
    await b.says_word("joined")
    a.signal(signal.SIGTERM)
    assert await a.ends() == 0
    await b.says_word("done", times=5)
    b.signal(signal.SIGTERM)
    assert await b.ends() == 0
    await processes.check()


async def test_processes_are_killed_one_after_the_other(processes: Processes, tmp_path: Path) -> None:
    """Each in its own directory, to which it returns: what a killed process has left there is used or dropped."""
    for number in range(4):
        member = await processes.member("--directory", str(tmp_path / f"node{number % 2}"))
        await member.says_word("done", times=10)
        member.signal(signal.SIGKILL)
        await member.ends()
    await processes.check()


async def test_a_join_removes_the_directory_of_a_killed_node_and_not_that_of_a_living_one(
    processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setenv("TMPDIR", str(temporary))
    killed = await processes.member()
    await killed.says_word("done")
    (left,) = temporary.iterdir()
    living = await processes.member()
    await living.says_word("joined")
    (kept,) = set(temporary.iterdir()) - {left}
    killed.signal(signal.SIGKILL)
    await killed.ends()
    assert left.exists()
    async with Cluster(processes.place).join(settings=NodeSettings(directory=tmp_path / "given")):
        assert left.exists(), "who brings a directory has no business there"
    async with Cluster(processes.place).join(settings=NodeSettings()):
        pass
    assert list(temporary.iterdir()) == [kept]
    await living.says_word("done")
    living.signal(signal.SIGTERM)
    assert await living.ends() == 0
    assert list(temporary.iterdir()) == []
    await processes.check()


async def test_two_processes_cannot_share_a_directory(processes: Processes, tmp_path: Path) -> None:
    a = await processes.member("--directory", str(tmp_path / "node"))
    await a.says_word("done")
    cluster = Cluster(processes.place)
    with pytest.raises(DirectoryInUse, match=str(tmp_path / "node")):
        async with cluster.join(settings=NodeSettings(directory=tmp_path / "node")):
            pass
    a.signal(signal.SIGKILL)
    await a.ends()
    async with cluster.join(settings=NodeSettings(directory=tmp_path / "node")):
        pass
    await processes.check()
