"""The feed's frames: a letter, the length of the rest (4 bytes, big-endian), the rest.

E  an epoch's whole object            K  keep-alive, JSON: term, epoch, store_age (seconds)
N  an epoch's number, to be fetched   M  members, JSON
G  goodbye, JSON: successor; the leadership is released in one of the next epochs
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from typing import Any

EPOCH, NAMED, KEEP_ALIVE, MEMBERS, GOODBYE = b"E", b"N", b"K", b"M", b"G"
MAX_FRAME_BYTES = 64 << 20

_HEAD = struct.Struct(">cI")


def pack(kind: bytes, payload: bytes) -> bytes:
    return _HEAD.pack(kind, len(payload)) + payload


def pack_json(kind: bytes, value: Any) -> bytes:
    return pack(kind, json.dumps(value, separators=(",", ":")).encode())


class Unpacker:
    """Cuts a byte stream into frames."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, piece: bytes) -> Iterator[tuple[bytes, bytes]]:
        """The frames that are complete now. Raises ValueError for one that is too large."""
        self._rest += piece
        while len(self._rest) >= _HEAD.size:
            kind, size = _HEAD.unpack_from(self._rest)
            if size > MAX_FRAME_BYTES:
                raise ValueError(f"a frame of {size} bytes; at most {MAX_FRAME_BYTES} are allowed")
            end = _HEAD.size + size
            if len(self._rest) < end:
                return
            payload = bytes(self._rest[_HEAD.size : end])
            del self._rest[:end]
            yield kind, payload
