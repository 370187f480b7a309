"""Where threads come from, and what they wait on, so that a simulation can let them run one at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import ContextVar
from queue import SimpleQueue
from typing import Any


class Threads:
    """The threads of this process."""

    def start(self, run: Callable[[], None], *, name: str) -> None:
        """Run `run` in a thread of its own, which does not keep the process from ending."""
        threading.Thread(target=run, name=name, daemon=True).start()

    def queue(self) -> SimpleQueue[Any]:
        """A queue between threads, without a bound."""
        return SimpleQueue()

    def event(self) -> threading.Event:
        """A flag that threads wait for."""
        return threading.Event()


THREADS: ContextVar[Threads] = ContextVar("THREADS", default=Threads())  # noqa: B039 - has no state
"""Those that are used here."""
