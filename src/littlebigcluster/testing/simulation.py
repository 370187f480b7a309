"""A whole cluster in one thread, on virtual time, by one seed: nodes that join, die, stand still and are cut off."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextvars import Context, copy_context
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from littlebigcluster.cluster import Cluster, Node
from littlebigcluster.net import NETWORK
from littlebigcluster.settings import NodeSettings
from littlebigcluster.testing.clock import SimulatedClock
from littlebigcluster.testing.loop import MACHINE, Machine, VirtualLoop
from littlebigcluster.testing.network import SimulatedNetwork
from littlebigcluster.testing.store import SimulatedStore, Weather
from littlebigcluster.testing.threads import LockstepThreads
from littlebigcluster.testing.wires import Net
from littlebigcluster.threads import THREADS, in_thread

T = TypeVar("T")

_PORT = 7000
_SHARED_MEMORY = Path("/dev/shm")


class Member:
    """A process on a machine of its own, with one node. Use `Simulation.join`."""

    def __init__(
        self, simulation: Simulation, machine: Machine, cluster: Cluster, directory: Path, context: Context
    ) -> None:
        self.machine, self.cluster, self.directory = machine, cluster, directory
        self.node: Node
        self.failure: BaseException | None = None
        """What has ended the node, if it was neither left nor crashed."""
        self._simulation, self._context = simulation, context
        self._leaving = asyncio.Event()
        self._life: asyncio.Task[None] | None = None
        self._tasks: dict[asyncio.Task[Any], None] = {}

    @property
    def name(self) -> str:
        return self.machine.name

    @property
    def alive(self) -> bool:
        """Whether it runs, also if it stands still."""
        return not self.machine.dead and self._life is not None and not self._life.done()

    def spawn(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run it there: it stands still with the machine, goes by its clocks, and dies with it."""
        task = self._simulation.loop.create_task(coroutine, context=self._context.copy())
        self._tasks[task] = None
        task.add_done_callback(lambda task: self._tasks.pop(task, None))
        return task

    async def start(self, join: Callable[[], contextlib.AbstractAsyncContextManager[Node]]) -> None:
        joined: asyncio.Future[Node] = asyncio.get_running_loop().create_future()
        self._life = self._simulation.loop.create_task(self._live(join, joined), context=self._context.copy())
        try:
            self.node = await joined
        except asyncio.CancelledError:
            await self.end()
            raise

    async def _live(
        self, join: Callable[[], contextlib.AbstractAsyncContextManager[Node]], joined: asyncio.Future[Node]
    ) -> None:
        try:
            async with join() as node:
                if joined.done():
                    return
                joined.set_result(node)
                await self._leaving.wait()
        except asyncio.CancelledError:
            if not joined.done():
                joined.set_exception(RuntimeError(f"{self.name} died while it joined"))
            raise
        except Exception as error:
            if not joined.done():
                joined.set_exception(error)
            elif not self.machine.dead:
                self.failure = error

    async def leave(self) -> None:
        """Leave properly: a leader releases the leadership. Raises what has made the node fail."""
        self._leaving.set()
        assert self._life is not None
        await asyncio.wait([self._life])
        for task in list(self._tasks):
            task.cancel()
        if self.failure is not None:
            raise self.failure

    async def end(self) -> None:
        """Cancel all that runs there; of a dead machine, which can tell nobody, only to tidy up here."""
        for task in list(self._tasks):
            task.cancel()
        while self._life is not None and not self._life.done():
            self._life.cancel()
            await asyncio.sleep(0.01)


class Simulation:
    """One cluster, its store and its network. Use `run`.

    Attributes:
        loop: `loop.now` is the time in seconds; `loop.chance` a generator of the seed.
        store: the object store: its `weather`, outages, and what is in it.
        net: what is cut between machines (by name), and how slow it is.
        transcript: what happened, a line each: faults, and what the library has logged.
    """

    def __init__(self, loop: VirtualLoop, threads: LockstepThreads, seed: int, directory: Path) -> None:
        self.loop, self.seed, self.threads = loop, seed, threads
        self.store, self.net = SimulatedStore(loop), Net(loop)
        self.members: list[Member] = []
        self.transcript: list[str] = []
        self.failures: list[str] = []
        """What the loop has met and nobody has waited for."""
        self._directory, self._count = directory, 0
        self._lives: dict[str, int] = {}
        self.clock = SimulatedClock(loop, None, self._next_seed())
        self.cluster = Cluster(self.store.of(None, self.clock), clock=self.clock)
        """Looks at the store from outside, where nothing is ever cut."""

    def note(self, text: str) -> None:
        """A line for the transcript."""
        self.transcript.append(f"{self.loop.now - 1000.0:10.3f}  {text}")

    def unhandled(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """What nobody has waited for has failed."""
        self.note(f"!    {context['message']}: {context.get('exception')!r}")
        self.failures.append(f"{context['message']}: {context.get('exception')!r}")

    @property
    def alive(self) -> list[Member]:
        return [member for member in self.members if member.alive]

    async def join(
        self,
        name: str | None = None,
        *,
        settings: NodeSettings | None = None,
        disk_of: Member | None = None,
        machine: Machine | None = None,
        **join: Any,
    ) -> Member:
        """A machine starts a node; `join` is for `Cluster.join`. `disk_of` names one that is dead: its machine comes
        back, with what it had on its disk. Raises what joining raises."""
        if disk_of is not None:
            name = disk_of.name
            machine = Machine(name, rate=disk_of.machine.rate, offset=disk_of.machine.offset)
        name = name or f"n{len(self._lives) + 1}"
        self._lives[name] = self._lives.get(name, 0) + 1
        if machine is None:
            rate = 1 + (self.loop.chance.random() - 0.5) / 500
            machine = Machine(name, rate=rate, offset=self.loop.chance.random() * 10000)
        directory = self._directory / f"{name}-{self._lives[name]}"
        if disk_of is not None:
            shutil.copytree(disk_of.directory.with_suffix(".crashed"), directory)
        clock = SimulatedClock(self.loop, machine, self._next_seed())
        context = copy_context()
        context.run(MACHINE.set, machine)
        context.run(NETWORK.set, SimulatedNetwork(self.net, machine, context))
        cluster = Cluster(self.store.of(machine, clock), clock=clock)
        settings = replace(settings or NodeSettings(), directory=directory, tls="off", insecure=True)
        member = Member(self, machine, cluster, directory, context)
        self.members.append(member)
        address = f"{name}:{_PORT}"
        await member.start(lambda: cluster.join(settings=settings, address=address, **join))
        return member

    async def crash(self, member: Member, *, silently: bool = False) -> None:
        """SIGKILL, or, `silently`, a power cut that no peer is told of. What is on the disk stays for `disk_of`."""
        self.net.dies(member.machine, silently=silently)
        if member.directory.exists():
            shutil.copytree(member.directory, member.directory.with_suffix(".crashed"))
        self.loop.go_on(member.machine)
        await member.end()

    async def pause(self, member: Member, seconds: float, *, suspended: bool = False) -> None:
        """It stands still for so long: by SIGSTOP, or suspended, when its monotonic clock stands still, too."""
        if member.machine.frozen:
            return
        self.loop.freeze(member.machine)
        self.net.stands_still(member.machine)
        await asyncio.sleep(seconds)
        if not member.machine.dead:
            self.loop.go_on(member.machine, slept_seconds=seconds if suspended else 0.0)

    def partition(self, here: Iterable[Member], there: Iterable[Member], *, one_way: bool = False) -> None:
        """Nothing goes from these to those any more, nor, unless `one_way`, back."""
        there = list(there)
        for one in here:
            for other in there:
                self.net.cut(one.name, other.name)
                if not one_way:
                    self.net.cut(other.name, one.name)

    def heal(self) -> None:
        """No machine is cut off any more, from any other or from the store; the store works."""
        self.net.mend_all()
        store = self.store
        store.cut_from.clear()
        store.cut_creates.clear()
        store.cut_to.clear()
        store.refused.clear()
        store.down, store.throttled = False, 0.0
        store.weather = store.weather.calm()

    async def close(self) -> None:
        for member in self.members:
            if not member.machine.dead:
                self.net.dies(member.machine, silently=False)
                self.loop.go_on(member.machine)
            await member.end()

    def _next_seed(self) -> int:
        self._count += 1
        return self.seed * 1_000_003 + self._count


class _Transcriber(logging.Handler):
    def __init__(self, simulation: Simulation) -> None:
        super().__init__()
        self._simulation = simulation

    def emit(self, record: logging.LogRecord) -> None:
        machine = MACHINE.get()
        if machine is None or not machine.dead:
            text = record.getMessage().replace(str(self._simulation._directory), "")
            text = re.sub(r"\b\d+ bytes\b", "... bytes", text)  # of epochs: SQLite itself draws the salts in them
            self._simulation.note(f"{'-' if machine is None else machine.name:4} {text}")


@contextlib.contextmanager
def _listening(simulation: Simulation, level: int) -> Any:
    logger, handler = logging.getLogger("littlebigcluster"), _Transcriber(simulation)
    former = logger.level, logger.propagate
    logger.setLevel(level)
    logger.propagate = False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.level, logger.propagate = former


@contextlib.asynccontextmanager
async def _prepared(seed: int, level: int) -> AsyncIterator[Simulation]:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    shared = _SHARED_MEMORY if _SHARED_MEMORY.is_dir() else None
    directory = Path(
        await in_thread(partial(tempfile.mkdtemp, prefix="lbc-simulation-", dir=shared), undo=shutil.rmtree)
    )
    threads = LockstepThreads(loop)
    simulation = Simulation(loop, threads, seed, directory)
    THREADS.set(threads)
    loop.set_exception_handler(simulation.unhandled)
    with _listening(simulation, level):
        try:
            yield simulation
        finally:
            try:
                await simulation.close()
            finally:
                threads.end()
                shutil.rmtree(directory, ignore_errors=True)


def run(main: Callable[[Simulation], Awaitable[T]], *, seed: int = 0, log_level: int = logging.INFO) -> T:
    """Run `main(simulation)` on virtual time; the same seed gives the same run, whatever the machine does.

    Raises what `main` raises, and RuntimeError when everybody waits for nothing.
    """

    async def prepared() -> T:
        async with _prepared(seed, log_level) as simulation:
            return await main(simulation)

    collecting = gc.isenabled()
    gc.disable()  # when garbage is found, and what its finalizers do, is no matter of the seed
    try:
        with asyncio.Runner(loop_factory=lambda: VirtualLoop(seed), debug=False) as runner:
            return runner.run(prepared())
    finally:
        if collecting:
            gc.enable()
        gc.collect()


__all__ = ["Member", "Simulation", "Weather", "run"]
