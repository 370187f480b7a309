"""The feed, on the leader's side: what every follower is told over one streaming response."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator

from littlebigcluster.cluster import frames

MAX_WAITING_BYTES = 8 << 20
"""A follower for which more than this waits is dropped; it polls the store, and comes back when it can."""

LARGE_BYTES = 1 << 20
"""A larger epoch is only named; followers fetch it from the store, which has more bandwidth than the leader."""

RECENT_BYTES = 4 << 20
"""So much of the newest epochs is kept, for followers that connect a little behind. Less than may wait."""


class Subscriber:
    """One follower's stream. Invariant: what waits is at most `MAX_WAITING_BYTES`, or it is dropped."""

    def __init__(self) -> None:
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._woken = asyncio.Event()
        self._ended = False

    @property
    def dropped(self) -> bool:
        return self._ended

    def push(self, frame: bytes) -> None:
        if self._ended:
            return
        self._waiting.append(frame)
        self._waiting_bytes += len(frame)
        if self._waiting_bytes > MAX_WAITING_BYTES:
            self._waiting.clear()
            self._waiting_bytes = 0
            self._ended = True
        self._woken.set()

    def end(self) -> None:
        """Send what waits, then no more."""
        self._ended = True
        self._woken.set()

    async def frames(self) -> AsyncGenerator[bytes]:
        """What to send, as it comes."""
        while True:
            while self._waiting:
                # Each as it is: all streams share one copy of a frame, also while they are slow to take it.
                frame = self._waiting.popleft()
                self._waiting_bytes -= len(frame)
                yield frame
            if self._ended:
                return
            self._woken.clear()
            await self._woken.wait()


class Feed:
    """All streams of one leadership."""

    def __init__(self, epoch: int) -> None:
        self._epoch = epoch
        self._subscribers: dict[Subscriber, None] = {}
        self._recent: deque[tuple[int, bytes]] = deque()
        self._recent_bytes = 0
        self._ended = False

    def __len__(self) -> int:
        return len(self._subscribers)

    def subscribe(self, epoch: int) -> Subscriber:
        """A stream for a follower that has applied `epoch`."""
        subscriber = Subscriber()
        missed = [frame for number, frame in self._recent if number > epoch]
        if len(missed) < self._epoch - epoch:
            missed = [frames.pack(frames.NAMED, str(self._epoch).encode())]
        for frame in missed:
            subscriber.push(frame)
        self._subscribers[subscriber] = None
        if self._ended:  # since its request came
            subscriber.end()
        return subscriber

    def leave(self, subscriber: Subscriber) -> None:
        self._subscribers.pop(subscriber, None)

    def publish_epoch(self, epoch: int, body: bytes) -> None:
        """This epoch is durable."""
        large = len(body) > LARGE_BYTES
        frame = frames.pack(frames.NAMED, str(epoch).encode()) if large else frames.pack(frames.EPOCH, body)
        self._epoch = epoch
        self._recent.append((epoch, frame))
        self._recent_bytes += len(frame)
        while self._recent_bytes > RECENT_BYTES:
            self._recent_bytes -= len(self._recent.popleft()[1])
        self.publish(frame)

    def publish(self, frame: bytes) -> None:
        for subscriber in self._subscribers:
            subscriber.push(frame)

    def end(self) -> None:
        """The leadership ends; every stream ends after what waits in it."""
        self._ended = True
        for subscriber in self._subscribers:
            subscriber.end()
