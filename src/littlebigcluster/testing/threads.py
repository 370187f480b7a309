"""Threads in lock-step with the loop: exactly one runs at a time, and when is a matter of the seed."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextvars import Context, copy_context
from typing import Any

from littlebigcluster.testing.loop import MACHINE, VirtualLoop, on_disk
from littlebigcluster.threads import Threads


class _Abandoned(BaseException):
    """Ends a thread that nobody will ever wake."""


class LockstepThreads(Threads):
    """Real threads, each of which runs only while the loop waits for it."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self._alive: dict[_Thread, None] = {}
        self.running: _Thread | None = None

    def start(self, run: Callable[[], None], *, name: str) -> None:
        thread = _Thread(self, run, name)
        self._alive[thread] = None
        self.wake(thread)

    def queue(self) -> Any:
        return _Queue(self)

    def event(self) -> Any:
        return _Event(self)

    def wake(self, thread: _Thread, seconds: float | None = None) -> Any:
        """Let it go on a little later, or after `seconds`."""
        seconds = self._loop.work_seconds() if seconds is None else seconds
        return self._loop.after(seconds, self._resume, thread, context=thread.context)

    def sleep(self, seconds: float) -> None:
        """In a thread: let the others go on, and come back after seconds of the simulation."""
        assert self.running is not None
        self.wake(self.running, seconds)
        self.running.rest()

    def end(self) -> None:
        """End what is left of them."""
        while self._alive:
            thread = next(iter(self._alive))
            thread.abandoned = True
            self._resume(thread)

    def _resume(self, thread: _Thread) -> None:
        former, self.running = self.running, thread
        with on_disk(MACHINE.get()):
            alive = thread.run_a_while()
        if not alive:
            del self._alive[thread]
        self.running = former


class _Thread:
    def __init__(self, threads: LockstepThreads, run: Callable[[], None], name: str) -> None:
        inside = copy_context()
        self.context: Context = inside.copy()
        self.abandoned = False
        self._run, self._ended = run, False
        self._go, self._back = threading.Lock(), threading.Lock()
        self._go.acquire()
        self._back.acquire()
        threading.Thread(target=inside.run, args=(self._main,), name=name, daemon=True).start()

    def run_a_while(self) -> bool:
        """On the loop's thread: until it rests; False when it has ended."""
        self._go.release()
        self._back.acquire()
        return not self._ended

    def rest(self) -> None:
        """In the thread: until it is woken."""
        self._back.release()
        self._go.acquire()
        if self.abandoned:
            raise _Abandoned

    def _main(self) -> None:
        self._go.acquire()
        try:
            if not self.abandoned:
                self._run()
        except _Abandoned:
            pass
        finally:
            self._ended = True
            self._back.release()


class _Queue:
    """What is used of `queue.SimpleQueue`."""

    def __init__(self, threads: LockstepThreads) -> None:
        self._threads = threads
        self._items: deque[Any] = deque()
        self._waiting: deque[_Thread] = deque()

    def put(self, item: Any) -> None:
        self._items.append(item)
        if self._waiting:
            self._threads.wake(self._waiting.popleft())

    def get(self) -> Any:
        while not self._items:
            thread = self._threads.running
            assert thread is not None
            self._waiting.append(thread)
            thread.rest()
        return self._items.popleft()

    def empty(self) -> bool:
        return not self._items


class _Event:
    """What is used of `threading.Event`."""

    def __init__(self, threads: LockstepThreads) -> None:
        self._threads = threads
        self._set = False
        self._timers: dict[_Thread, Any] = {}

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        self._set = True
        for thread, timer in self._timers.items():
            timer.cancel()
            self._threads.wake(thread)
        self._timers.clear()

    def wait(self, timeout: float) -> bool:
        thread = self._threads.running
        assert thread is not None
        if not self._set:
            self._timers[thread] = self._threads.wake(thread, timeout)
            thread.rest()
            self._timers.pop(thread, None)
        return self._set
