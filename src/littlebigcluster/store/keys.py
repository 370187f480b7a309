"""What a key may look like, the same for every store, so that a cluster can move from one to another."""

from __future__ import annotations

MAX_KEY_BYTES = 900
"""S3, GCS and Azure allow 1,024; the rest is left for the prefix."""

TEMPORARY = ".~lbc-tmp"
"""Directory stores write here before an object gets its name; never part of a key."""


def checked(key: str) -> str:
    """`key` itself. Raises ValueError unless it is relative, `/`-separated, without empty, `.` or `..` segments,
    and without control characters or backslashes (a separator to some)."""
    if not isinstance(key, str):
        raise TypeError(f"a key is a str, not {type(key).__name__}")
    if not is_key(key):
        raise ValueError(
            f"{key[:200]!r} is not a key: use relative names separated by single slashes, without '.' or '..' "
            f"segments, control characters, backslash, {TEMPORARY!r}, and at most {MAX_KEY_BYTES} bytes"
        )
    return key


def is_key(key: str) -> bool:
    """Whether `key` names an object."""
    segments = key.split("/")
    return (
        not any(segment in ("", ".", "..", TEMPORARY) for segment in segments)
        and not any(char < " " or char in "\\\x7f" or "\ud800" <= char <= "\udfff" for char in key)
        and len(key.encode()) <= MAX_KEY_BYTES
    )


def check_range(start: int, length: int) -> None:
    """Raises ValueError unless `start` >= 0 and `length` > 0."""
    if start < 0 or length <= 0:
        raise ValueError(f"a range needs start >= 0 and length > 0, not {start} and {length}")


def check_body(body: object) -> None:
    """Raises TypeError unless `body` is bytes: obstore would take a str for the name of a file to upload."""
    if not isinstance(body, bytes):
        raise TypeError(f"an object's body is bytes, not {type(body).__name__}")
