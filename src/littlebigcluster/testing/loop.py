"""An event loop on virtual time: when nothing is ready it jumps to the next timer, and order is a matter of the seed.

No socket, no signal and no thread's clock has a part in it. What belongs to a machine runs in a context that names
it (`MACHINE`); a machine that stands still keeps its handles until it goes on, and its timers go by its own clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
from asyncio import Future, Handle, Task, TimerHandle
from collections import deque
from collections.abc import Callable, Iterator
from contextvars import Context, ContextVar, copy_context
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from littlebigcluster.clock import seeded

resource: Any
try:
    import resource
except ImportError:  # Windows
    resource = None

T = TypeVar("T")

TURN_SECONDS = 1e-6
"""So long a turn of the loop takes: whoever waits for the clock in circles gets there."""

DISK_SECONDS = 0.002
"""At most so long, mostly, a thread takes to begin, and what it does on the disk."""

_MANY_CANCELLED = 1000


class Machine:
    """The clocks of one machine, and whether it stands still."""

    def __init__(self, name: str, *, rate: float = 1.0, offset: float = 0.0) -> None:
        self.name = name
        self.rate = rate
        """Seconds of its clocks in one second."""
        self.offset = offset
        self.suspended_seconds = 0.0
        """So long it has been suspended: `boottime` tells, `monotonic` does not."""
        self.wall_offset = 0.0
        """How far its time of day is wrong."""
        self.disk_full = False
        """Its threads can write no file. (POSIX only.)"""
        self.slowness = 1.0
        """So many times longer than usual its threads take."""
        self.frozen = False
        self.dead = False
        self.parked: deque[Handle] = deque()

    def monotonic(self, now: float) -> float:
        return self.offset + self.rate * now - self.suspended_seconds

    def moment(self, monotonic: float) -> float:
        """When its clock shows this, in the time of the simulation."""
        return (monotonic - self.offset + self.suspended_seconds) / self.rate


MACHINE: ContextVar[Machine | None] = ContextVar("MACHINE", default=None)
"""Where the code runs; None for the world around: the store, the wires, the test itself."""

_WORLD = Context()


class VirtualLoop(asyncio.BaseEventLoop):
    """The loop. `now` is its time in seconds."""

    _ready: deque[Handle]
    _scheduled: list[TimerHandle]

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.now = 1000.0
        self.chance = seeded(seed)
        self._number = 0
        self._cancelled = 0
        self._free_at: WeakKeyDictionary[Any, float] = WeakKeyDictionary()
        self.set_task_factory(_make_task)

    def number(self) -> int:
        """The next one: tasks and futures are told apart by it, so that sets of them have the same order each time."""
        self._number += 1
        return self._number

    # -- time --------------------------------------------------------------------------------------------------------

    def time(self) -> float:
        machine = MACHINE.get()
        return self.now if machine is None else machine.monotonic(self.now)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> TimerHandle:
        context = copy_context() if context is None else context
        machine: Machine | None = context.get(MACHINE)
        return self._schedule(when if machine is None else machine.moment(when), callback, args, context)

    def after(self, seconds: float, callback: Callable[..., Any], *args: Any, context: Any = None) -> TimerHandle:
        """Call back in the world, or in `context`, after seconds of the simulation."""
        return self._schedule(self.now + seconds, callback, args, context or _WORLD.copy())

    def _schedule(self, at: float, callback: Callable[..., Any], args: Any, context: Context) -> TimerHandle:
        timer = TimerHandle(at, callback, args, self, context)
        heapq.heappush(self._scheduled, timer)
        timer._scheduled = True  # type: ignore[attr-defined]
        return timer

    def _timer_handle_cancelled(self, handle: TimerHandle) -> None:
        self._cancelled += 1
        if self._cancelled > _MANY_CANCELLED and self._cancelled * 2 > len(self._scheduled):
            self._scheduled = [timer for timer in self._scheduled if not timer.cancelled()]
            heapq.heapify(self._scheduled)
            self._cancelled = 0

    def _run_once(self) -> None:
        ready, scheduled = self._ready, self._scheduled
        while scheduled and scheduled[0].cancelled():
            heapq.heappop(scheduled)._scheduled = False  # type: ignore[attr-defined]
            self._cancelled = max(0, self._cancelled - 1)
        if not ready:
            if not scheduled:
                raise RuntimeError("the simulation stands still: everybody waits, and no timer runs")
            self.now = max(self.now, scheduled[0].when())
        self.now += TURN_SECONDS
        while scheduled and scheduled[0].when() <= self.now:
            timer = heapq.heappop(scheduled)
            timer._scheduled = False  # type: ignore[attr-defined]
            ready.append(timer)
        for _ in range(len(ready)):
            handle = ready.popleft()
            if handle.cancelled():
                continue
            machine = handle._context.get(MACHINE)  # type: ignore[attr-defined]
            if machine is not None and machine.frozen:
                machine.parked.append(handle)
            else:
                handle._run()

    # -- machines that stand still -----------------------------------------------------------------------------------

    def freeze(self, machine: Machine) -> None:
        """Nothing of it runs from now on: as SIGSTOP, or a virtual machine that is not scheduled."""
        machine.frozen = True

    def go_on(self, machine: Machine, *, slept_seconds: float = 0.0) -> None:
        """It goes on. `slept_seconds`: it was suspended for so long, and its timers with it."""
        machine.frozen = False
        if slept_seconds:
            machine.suspended_seconds += slept_seconds * machine.rate
            for timer in self._scheduled:
                if timer._context.get(MACHINE) is machine:  # type: ignore[attr-defined]
                    timer._when += slept_seconds  # type: ignore[attr-defined]
            heapq.heapify(self._scheduled)
        for handle in machine.parked:
            if slept_seconds and isinstance(handle, TimerHandle):  # it came due in the sleep, of which it knows nothing
                self._schedule_again(handle, slept_seconds)
            else:
                self._ready.append(handle)
        machine.parked.clear()

    def _schedule_again(self, timer: TimerHandle, seconds: float) -> None:
        timer._when += seconds  # type: ignore[attr-defined]
        heapq.heappush(self._scheduled, timer)
        timer._scheduled = True  # type: ignore[attr-defined]

    # -- what real loops do with threads and sockets -----------------------------------------------------------------

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> Future[T]:  # type: ignore[override]
        """On this thread, a moment later; in order for each executor, with one worker each."""
        future: Future[T] = self.create_future()
        at = self.now + self.work_seconds()
        if executor is not None:
            at = self._free_at[executor] = max(at, self._free_at.get(executor, 0.0) + TURN_SECONDS)
        self._schedule(at, _work, (future, func, args), copy_context())
        return future

    def work_seconds(self) -> float:
        """How long some work of a thread takes, where the code runs."""
        machine = MACHINE.get()
        seconds = self.chance.random() * DISK_SECONDS
        if self.chance.random() < 0.01:
            seconds *= 50
        return seconds if machine is None else seconds * machine.slowness

    def create_future(self) -> Future[Any]:
        return _Future(loop=self)

    def _write_to_self(self) -> None:
        """Threads run in lock-step with the loop, which never sleeps."""

    def _process_events(self, event_list: Any) -> None:
        """There are none."""


class _Future(Future[Any]):
    def __new__(cls, *, loop: VirtualLoop) -> _Future:
        made: _Future = super().__new__(cls)
        made._number = loop.number()  # type: ignore[attr-defined]
        return made

    def __hash__(self) -> int:
        return self._number  # type: ignore[attr-defined,no-any-return]


class _Task(Task[Any]):
    def __new__(cls, coro: Any, *, loop: VirtualLoop, **options: Any) -> _Task:
        made: _Task = super().__new__(cls)
        made._number = loop.number()  # type: ignore[attr-defined]
        return made

    def __hash__(self) -> int:
        return self._number  # type: ignore[attr-defined,no-any-return]


def _make_task(loop: Any, coro: Any, **options: Any) -> Any:
    return _Task(coro, loop=loop, **options)


def _work(future: Future[Any], func: Callable[..., Any], args: Any) -> None:
    if future.cancelled():
        return
    try:
        with on_disk(MACHINE.get()):
            result = func(*args)
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)


@contextlib.contextmanager
def on_disk(machine: Machine | None) -> Iterator[None]:
    """For work in a thread of that machine: while its disk is full, no write to a file succeeds (EFBIG)."""
    if machine is None or not machine.disk_full or machine.dead or resource is None:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
