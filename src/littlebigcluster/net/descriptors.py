"""A listening socket that takes no new connections while file descriptors are scarce.

The HTTP/2 library gives up, with all its connections, when it cannot accept one. So the kernel is told to drop what
asks for a new one before that (Linux only); to whoever connects, the node is out of reach. What is open goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import socket
import struct
import sys

_log = logging.getLogger(__name__)

LOOK_SECONDS = 0.25
SCARCE = 8
"""With fewer free descriptors than this no connection is taken; with twice as many they are again."""

# linux/filter.h and asm-generic/socket.h: a filter of one instruction, "return 0", lets no packet through.
_SO_ATTACH_FILTER, _SO_DETACH_FILTER = 26, 27
_DROP_ALL = struct.pack("HBBI", 0x06, 0, 0, 0)


async def guard(listener: socket.socket) -> None:
    """Until cancelled, or the socket is closed."""
    if sys.platform != "linux":
        return
    closed = False
    with contextlib.suppress(OSError):  # closed, or filters are forbidden here
        while True:
            if not closed and _free(listener, SCARCE) < SCARCE:
                _drop(listener)
                closed = True
                _log.warning("file descriptors are scarce: no new connections are taken until some are free")
            elif closed and _free(listener, 2 * SCARCE) == 2 * SCARCE:
                listener.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)
                closed = False
                _log.warning("there are file descriptors again: new connections are taken")
            await asyncio.sleep(LOOK_SECONDS)


def _free(listener: socket.socket, most: int) -> int:
    """How many descriptors can be had, up to `most`."""
    taken: list[int] = []
    try:
        for _ in range(most):
            taken.append(os.dup(listener.fileno()))
    except OSError:
        if listener.fileno() < 0:
            raise
    finally:
        for descriptor in taken:
            os.close(descriptor)
    return len(taken)


def _drop(listener: socket.socket) -> None:
    instruction = ctypes.create_string_buffer(_DROP_ALL)
    program = struct.pack("HL", 1, ctypes.addressof(instruction))
    listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
