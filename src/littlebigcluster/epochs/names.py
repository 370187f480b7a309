"""Every object name of a cluster is made here."""

from __future__ import annotations

import re

DIRECTORY = ".lbc/"
CLUSTER = DIRECTORY + "cluster.json"
LAST_SNAPSHOT = DIRECTORY + ".last_snapshot"
LAST_RETAINED = DIRECTORY + ".last_retained"
BEACON = DIRECTORY + ".beacon"

AUTHORITIES = DIRECTORY + "ca/"

PINS = DIRECTORY + "pins/"

REPAIRS = DIRECTORY + "repairs/"
ASIDE = DIRECTORY + "aside/"

LOG_PREFIX = DIRECTORY + "0"
"""What snapshots, epochs and merged epochs begin with (below epoch 10**19), and nothing else: for listing."""

MAX_EPOCH = 10**19 - 1

_KEPT_NAME = re.compile(
    re.escape(REPAIRS) + r"([0-9]{20})\.(json)|" + re.escape(ASIDE) + r"([0-9]{20})(?:-[0-9]{20})?\.(wal|db)"
)
_LOG_NAME = re.compile(re.escape(DIRECTORY) + r"([0-9]{20})\.(wal|db)")
_MERGED_NAME = re.compile(re.escape(DIRECTORY) + r"([0-9]{20})-([0-9]{20})\.wal")


def wal(epoch: int) -> str:
    """The name of an epoch."""
    return f"{DIRECTORY}{_digits(epoch)}.wal"


def snapshot(epoch: int) -> str:
    """The name of the snapshot of an epoch."""
    return f"{DIRECTORY}{_digits(epoch)}.db"


def parse(name: str) -> tuple[str, int] | None:
    """("wal" or "db", epoch) for a name of the log, None for any other."""
    match = _LOG_NAME.fullmatch(name)
    return (match[2], int(match[1])) if match else None


def merged(first: int, last: int) -> str:
    """The name of the object that holds the epochs from `first` to `last` as one. It sorts right before what belongs
    to `first`."""
    return f"{DIRECTORY}{_digits(first)}-{_digits(last)}.wal"


def parse_merged(name: str) -> tuple[int, int] | None:
    """The first and the last epoch that the object of this name holds as one, None for any other name."""
    match = _MERGED_NAME.fullmatch(name)
    return (int(match[1]), int(match[2])) if match and int(match[1]) < int(match[2]) else None


def authority(number: int) -> str:
    """The name of a certificate authority of the cluster."""
    return f"{AUTHORITIES}{_digits(number)}.json"


def parse_authority(name: str) -> int | None:
    """The number of the certificate authority of this name, None for any other name."""
    match = re.fullmatch(re.escape(AUTHORITIES) + r"([0-9]{20})\.json", name)
    return int(match[1]) if match else None


def pin(name: str) -> str:
    """The name of the object that pins a part of the log."""
    return f"{PINS}{name}.json"


def repair(epoch: int) -> str:
    """The name of the record of the repair that made this epoch, or its snapshot, the next one to go on from."""
    return f"{REPAIRS}{_digits(epoch)}.json"


def aside(name: str) -> str:
    """Where a damaged object of the log is kept."""
    return ASIDE + name.removeprefix(DIRECTORY)


def parse_kept(name: str) -> tuple[str, int] | None:
    """("json", epoch) for the record of a repair, ("wal" or "db", epoch) for what is kept aside, None for others."""
    match = _KEPT_NAME.fullmatch(name)
    return (match[2] or match[4], int(match[1] or match[3])) if match else None


def marker(epoch: int) -> bytes:
    """The content of `.last_snapshot` and `.last_retained`."""
    return _digits(epoch).encode()


def parse_marker(content: bytes | None) -> int | None:
    """The epoch a marker names; None when it is absent or damaged."""
    if content is None or not re.fullmatch(rb"[0-9]{20}", content.strip()):
        return None
    epoch = int(content)
    return epoch if epoch <= MAX_EPOCH else None


def _digits(epoch: int) -> str:
    if not 0 <= epoch <= MAX_EPOCH:
        raise ValueError(f"{epoch} is not an epoch")
    return f"{epoch:020}"
