"""What the demo and its nodes say to each other: one JSON object per line, over stdin and stdout.

Moments are in seconds of the monotonic clock, which all processes of one machine share.
"""

from __future__ import annotations

import json
from typing import Any

MAX_LINE_BYTES = 1 << 26
TABLE = "demo_write"
SCHEMA = f"CREATE TABLE {TABLE}(number INTEGER, node TEXT)"
"""Without a key: nothing but the library keeps a write from being done twice."""

Message = dict[str, Any]


def encode(message: Message) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def decode(line: bytes) -> Message:
    message: Message = json.loads(line)
    return message
